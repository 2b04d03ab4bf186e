"""Small argument checks shared by the files of this folder."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

from greedynas_fast.errors import InputError


def positive_int(name: str, value: object) -> int:
    """Return `value` as a Python int of at least 1.

    Args:
        name: what the error message calls the value.
        value: an integer of any kind (a bool is not one).

    Raises:
        InputError: it is not a positive integer.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name}: expected a positive integer, got {value!r}")
    number = operator.index(value)
    if number < 1:
        raise InputError(f"{name}: expected a positive integer, got {number}")
    return number


def suggestion(word: str, known: Iterable[str]) -> str:
    """A clause naming the known word nearest to `word`, or all of them where none is near."""
    by_lower = {item.lower(): item for item in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean {by_lower[near[0]]}?"
    return f"known are {', '.join(by_lower.values())}"
