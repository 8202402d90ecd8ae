"""What MkDocs does not do by itself: the generated pages, and links that leave docs/.

mkdocs.yml names this module. The pages below reference/ are written from the code
(docs/_site/reference.py); files of the repository that pages link to are copied into the site.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference

REPOSITORY = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\]\(\.\./((?:benchmarks|deploy)/[^)#]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files of the repository that pages link to."""
    pages = {
        "reference/configuration.md": reference.configuration(REPOSITORY),
        "reference/command-line.md": reference.command_line(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    linked: set[str] = set()
    for page in files.documentation_pages():
        linked |= set(OUTSIDE.findall(page.content_string))
    for name in sorted(linked):
        files.append(File.generated(config, f"repository/{name}", content=_read(name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ to the copies."""
    up = "../" * page.file.src_uri.count("/")
    return OUTSIDE.sub(rf"]({up}repository/\1)", markdown)


def _read(name: str) -> bytes:
    return (REPOSITORY / name).read_bytes()
