"""What the user must mend, told apart from what is a fault of this program."""


class UserError(ValueError):
    """A setting, a file, a service or a machine that the user must mend.

    The message is one sentence that names what is wrong and what to do. The command line prints
    the sentence alone; any other exception keeps its traceback.
    """
