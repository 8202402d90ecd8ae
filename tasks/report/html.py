"""The templates of our pages: names from outside are escaped, an unknown variable is an error."""

from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def environment(folder: Path = TEMPLATES) -> jinja2.Environment:
    """The environment of the templates in `folder`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
