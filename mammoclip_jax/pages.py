"""Templates of HTML pages."""

from pathlib import Path

import jinja2


def environment(*folders: Path | str) -> jinja2.Environment:
    """Of the templates in `folders`, the first that has a name: what they are given is escaped, and must be there."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
