"""Paths as text: operation names, or one base-32 digit a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import suggestion

DIGITS = "0123456789abcdefghijklmnopqrstuv"
_SEPARATORS = re.compile(r"[\s,|]+")


def indices_from_text(text: str, ops: Sequence[Sequence[str]]) -> list[int]:
    """Operation indices of a path written as text.

    One word with as many characters as there are layers is a digit string, unless it is the name of the single layer's
    operation; anything else is a list of names.

    Raises:
        InputError: empty text, a wrong number of operations, an unknown name or digit.
    """
    words = [word for word in _SEPARATORS.split(text) if word]
    if not words:
        raise InputError(f"path: expected {len(ops)} operations, got an empty text")
    if len(words) == 1 and not (len(ops) == 1 and _find(words[0], ops[0]) is not None):
        word = words[0].lower()
        is_digits = all(character in DIGITS for character in word)
        if len(word) == len(ops) and is_digits:
            return [DIGITS.index(character) for character in word]
        if is_digits or word[0].isdigit():
            raise InputError(f"path: expected {len(ops)} digits (0-9, a-v), one a layer, got {words[0]!r}")
    return indices_from_names(words, ops)


def indices_from_names(words: Sequence[str], ops: Sequence[Sequence[str]]) -> list[int]:
    """Operation indices of a path given as one name a layer, in any case.

    Raises:
        InputError: a wrong number of names, or one that its layer does not have.
    """
    if len(words) != len(ops):
        raise InputError(f"path: expected {len(ops)} operations, got {len(words)}")
    indices = []
    for layer, (word, names) in enumerate(zip(words, ops, strict=True)):
        index = _find(word, names)
        if index is None:
            raise InputError(f"path: layer {layer} has no operation {word!r}; {suggestion(word, names)}")
        indices.append(index)
    return indices


def names_text(names: Sequence[str], stages: Sequence[int]) -> str:
    """Names joined by spaces, with a bar between stages."""
    words = [names[0]]
    for name, stage, previous in zip(names[1:], stages[1:], stages[:-1], strict=True):
        words += ["|", name] if stage != previous else [name]
    return " ".join(words)


def digits_text(indices: Sequence[int]) -> str:
    """One base-32 digit a layer."""
    return "".join(DIGITS[index] for index in indices)


def _find(word: str, names: Sequence[str]) -> int | None:
    """Index of a name in any case, or None."""
    for index, name in enumerate(names):
        if name.lower() == word.lower():
            return index
    return None
