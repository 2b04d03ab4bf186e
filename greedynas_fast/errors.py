"""The one exception that means "the user's input cannot be used".

Every room may import this leaf. The command line turns an `InputError` into one or two plain sentences on standard
error and exit code 2; any other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """Input (a path, a configuration value, a file, a folder) that cannot be used as it is.

    The message is a plain sentence that names the offending thing, what was expected and what came.
    """
