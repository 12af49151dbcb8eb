"""An HTML page that needs no other file, from one of the templates beside this module."""

from pathlib import Path

from mammoclip_jax import pages
from mammoclip_jax.files import write_text


def write_page(out: Path | str, template: str, *given, **more) -> Path:
    """Writes what the template makes of `given` and `more` to `out`, and returns that path."""
    environment = pages.environment(Path(__file__).parent)
    page = environment.get_template(f"{template}.html.jinja").render(*given, **more)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out
