"""Architectures that the literature published, as paths of the built-in spaces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import suggestion
from greedynas_fast.spaces.lookup import get
from greedynas_fast.spaces.space import SearchSpace

# GreedyNAS (CVPR 2020), found in the MB-SE space.
_PATHS = {
    "GreedyNAS-A": (
        "MB3_K5_SE MB3_K3 ID MB3_K3_SE | MB3_K5 MB3_K7 MB6_K3_SE MB6_K5_SE | MB3_K5_SE MB3_K7_SE MB6_K7 MB3_K5 | "
        "MB3_K5_SE MB3_K3_SE MB6_K3 MB3_K7_SE | MB3_K7_SE MB6_K7_SE MB3_K5 MB6_K3_SE | MB6_K7_SE"
    ),
    "GreedyNAS-B": (
        "MB3_K5_SE MB3_K5_SE MB3_K5_SE ID | MB3_K5_SE MB3_K7_SE MB3_K5_SE MB3_K3 | MB6_K5 ID MB3_K7_SE MB3_K7_SE | "
        "MB3_K3_SE MB3_K5 MB3_K5 MB3_K7_SE | MB6_K5_SE MB3_K7_SE MB3_K3_SE MB3_K7_SE | MB6_K7_SE"
    ),
    "GreedyNAS-C": (
        "MB3_K7 ID ID MB3_K3_SE | MB3_K5_SE ID MB3_K3_SE MB3_K3_SE | MB3_K7_SE MB6_K5_SE MB3_K5_SE ID | "
        "MB3_K5_SE MB3_K5 MB6_K3 MB3_K7 | MB3_K5_SE MB3_K3 MB3_K7_SE MB3_K5 | MB6_K7_SE"
    ),
}


@dataclass(frozen=True)
class Published:
    """A published architecture.

    Attributes:
        name: as in its paper.
        space: the space that it was found in.
        path_text: its path, for `space.parse`.
    """

    name: str
    space: SearchSpace
    path_text: str


def published_names() -> tuple[str, ...]:
    """Names that `published` knows."""
    return tuple(_PATHS)


def published(name: str) -> Published:
    """A published architecture by name, in any case: GreedyNAS-A, GreedyNAS-B or GreedyNAS-C.

    Raises:
        InputError: no such architecture.
    """
    for known, path_text in _PATHS.items():
        if known.lower() == name.lower():
            return Published(known, get("mb-se"), path_text)
    raise InputError(f"unknown published architecture {name!r}; {suggestion(name, _PATHS)}")


def path_text(text: str) -> tuple[str, str]:
    """The path that a user means, for `space.parse`, and where it comes from.

    Args:
        text: a path, `@file`, or the name of a published architecture in any case.

    Returns:
        The path's text, and `given` or the published name.

    Raises:
        InputError: the file cannot be read.
    """
    if text.startswith("@"):
        file = Path(text[1:])
        try:
            return file.read_text(encoding="utf-8").strip(), "given"
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read the path file {file}: {reason}.") from None
    if text.lower() in map(str.lower, _PATHS):
        architecture = published(text)
        return architecture.path_text, architecture.name
    return text, "given"
