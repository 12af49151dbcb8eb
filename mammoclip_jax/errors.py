"""The error that is the user's to mend, and the line that ends what the user stopped."""

import sys

STOPPED = "stopped by Ctrl-C. What was finished is kept; run the same command again."


class UserError(ValueError):
    """Wrong input or configuration. The message names the file or field, the value, and what to do.

    The commands print it without a traceback and exit with status 2.
    """


def in_one_line(kind, error, trace) -> None:
    """A `sys.excepthook` that answers Ctrl-C by one line."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{STOPPED}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
