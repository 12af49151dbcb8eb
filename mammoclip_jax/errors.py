"""The error that is the user's to mend, and the line that ends what the user stopped."""

import sys
from collections.abc import Callable, Iterable

STOPPED = "stopped by Ctrl-C. What was finished is kept; run the same command again."


class UserError(ValueError):
    """Wrong input or configuration. The message names the file or field, the value, and what to do.

    The commands print it without a traceback and exit with status 2.
    """


class Faults(UserError):
    """Several such errors, found at once; `faults` are their messages."""

    def __init__(self, faults: Iterable[str]):
        self.faults = tuple(faults)
        super().__init__("\n".join([f"{len(self.faults)} things are wrong:", *(f"- {fault}" for fault in self.faults)]))


def raise_all(faults: Iterable[str]) -> None:
    """Raises a UserError with all of the messages `faults`, each once, if there is one."""
    found = tuple(dict.fromkeys(faults))
    if found:
        raise Faults(found) if len(found) > 1 else UserError(found[0])


def together(*checks: Callable[[], object]) -> None:
    """Calls each of `checks`; raises what all of them found as one UserError."""
    found: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found += error.faults if isinstance(error, Faults) else [str(error)]
    raise_all(found)


def in_one_line(kind, error, trace) -> None:
    """A `sys.excepthook` that answers Ctrl-C by one line."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{STOPPED}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
