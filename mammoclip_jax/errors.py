"""The error that is the user's to mend."""


class UserError(ValueError):
    """Wrong input or configuration. The message names the file or field, the value, and what to do.

    The commands print it without a traceback and exit with status 2.
    """
