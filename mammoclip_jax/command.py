"""What the commands share: errors that are the user's, logs, the JSON file."""

import json
import logging
import sys
from pathlib import Path

from absl import app

from mammoclip_jax.errors import UserError

INTERRUPTED = 75    # EX_TEMPFAIL: stopped on request and saved; the same command goes on


def run(main) -> None:
    """`main(argv)` as a program: a UserError is printed without a traceback and ends with status 2."""

    def guarded(argv):
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        logging.getLogger("absl").setLevel(logging.WARNING)
        for noisy in ("jax", "orbax", "grain", "pydicom"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if len(argv) > 1:
            raise SystemExit(f"error: unknown arguments {argv[1:]}; options are written --name=value, see --help")
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    try:
        app.run(guarded)
    except (AttributeError, KeyError) as error:   # ml_collections raises these for an unknown --config.field
        if "--config" not in " ".join(sys.argv) or "locked" not in str(error) + str(error.__context__):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def write_json(path: str, figures: dict) -> None:
    """Writes `figures` where --json asked for it ('' is nowhere), whole or not at all."""
    if not path:
        return
    partial = Path(f"{path}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(figures, indent=2, default=str) + "\n")
    partial.replace(path)
