"""An HTML page that needs no other file, from one of the templates beside this module."""

from pathlib import Path

import jinja2

from mammoclip_jax.files import write_text


def write_page(out: Path | str, template: str, *given, **more) -> Path:
    """Writes what the template makes of `given` and `more` to `out`, and returns that path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(f"{template}.html.jinja").render(*given, **more)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out
