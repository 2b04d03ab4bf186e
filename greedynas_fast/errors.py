"""The exceptions that the command line turns into an exit code: input that cannot be used, and an asked-for stop.

Every room may import this leaf. The command line turns an `InputError` into one or two plain sentences on standard
error and exit code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class InputError(ValueError):
    """Input (a path, a configuration value, a file, a folder) that cannot be used as it is.

    The message is a plain sentence that names the offending thing, what was expected and what came.
    """


class EchoedError(InputError):
    """An `InputError` of another process of the same job, which has told the user; this one need not."""


class LostRankError(RuntimeError):
    """Another process of the job has ended or does not answer, so this one cannot go on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, on which a stage has saved what it has and left; Ctrl-C is a plain KeyboardInterrupt."""


def call(function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
    """Call a function of the compiled core.

    Raises:
        InputError: the core refuses an argument.
    """
    try:
        return function(*args, **kwargs)
    except ValueError as error:  # std::invalid_argument of the core
        raise InputError(str(error)) from None
