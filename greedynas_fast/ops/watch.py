"""Whether what something was worked out from still is as it was."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from greedynas_fast import _core


class Watch:
    """Notices when entries of dictionaries, sizes of dictionaries, types of objects or places of tensors change.

    Entries are compared by identity: an equal object in the place of another one is a change. What is watched is kept
    alive.
    """

    def __init__(self) -> None:
        self._entries: list[Any] = []
        self._sizes: list[Any] = []
        self._types: list[Any] = []
        self._places: list[Any] = []

    def entries(self, place: dict[str, Any], *names: str) -> None:
        """Watch the objects by these names, and whether there are any."""
        for name in names:
            self._entries += place, name, place.get(name, ...)

    def size(self, place: dict[Any, Any]) -> None:
        """Watch how many entries a dictionary has."""
        self._sizes += place, len(place)

    def type_of(self, value: object) -> None:
        """Watch the class of an object."""
        self._types += value, type(value)

    def place_of(self, tensor: Tensor) -> None:
        """Watch where the elements of a tensor are."""
        self._places += tensor, tensor.data_ptr()

    def holds(self) -> bool:
        """Whether nothing has changed since it was taken in."""
        return _core.unchanged(self._entries, self._sizes, self._types, self._places)
