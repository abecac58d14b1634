"""What the user must mend, told apart from what is a fault of this program."""


def first_line(error: Exception) -> str:
    """Return the first line of what another's error says, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]


class UserError(ValueError):
    """A setting, a file, a service or a machine that the user must mend.

    The message is one sentence that names what is wrong and what to do. The command line prints
    the sentence alone; any other exception keeps its traceback.
    """
