"""The one exception for what a user did wrong; everything else that escapes is a bug and keeps its traceback."""


class UserError(ValueError):
    """Something the user can mend. The message says what, where and how, in one line.

    The command line prints it without a traceback and leaves with exit code 2.
    """


class Refused(UserError):
    """What is asked would undo what a run has done so far; the run stays as it is."""
