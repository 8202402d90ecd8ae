"""The templates of our pages: names from outside are escaped, an unknown variable is an error."""

import shutil
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("style.css", "report.js")


def copy_assets(folder: Path) -> None:
    """Copy what every page of a report loads into `folder`, which must exist."""
    for name in ASSETS:
        shutil.copyfile(TEMPLATES / name, folder / name)


def environment(folder: Path = TEMPLATES) -> jinja2.Environment:
    """The environment of the templates in `folder`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
