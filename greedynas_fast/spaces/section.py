"""A mapping read from a YAML file, with checks whose errors name the file and the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import suggestion

Choice = TypeVar("Choice", bound=str)


class _Required:
    """Type of the mark for keys without a default."""


REQUIRED: Final = _Required()


class Section:
    """One mapping of a definition file.

    Args:
        data: what the file holds there.
        file: the file's name, for errors.
        prefix: where in the file, such as `stages[0]`; empty at the top.
        keys: the keys that may occur.

    Raises:
        InputError: it is not a mapping, or holds an unknown key.
    """

    def __init__(self, data: object, file: str, prefix: str, keys: Sequence[str]) -> None:
        self.file = file
        self._prefix = prefix
        place = f"{file}: {prefix}" if prefix else file
        if not isinstance(data, dict):
            raise InputError(f"{place}: expected keys and values ({', '.join(keys)}), got {data!r}")
        for key in data:
            if key not in keys:
                raise InputError(f"{place}: unknown key {key!r}; {suggestion(str(key), keys)}")
        self._data: dict[str, object] = data

    def where(self, key: str) -> str:
        """The file and the full name of a key."""
        return f"{self.file}: {self._prefix}.{key}" if self._prefix else f"{self.file}: {key}"

    def error(self, key: str, expected: str, value: object) -> InputError:
        """An error that names the file, the key, what was expected and what came."""
        return InputError(f"{self.where(key)}: expected {expected}, got {value!r}")

    def has(self, key: str) -> bool:
        """Whether the key occurs."""
        return key in self._data

    def value(self, key: str, default: object = REQUIRED) -> object:
        """The value as it is, or the default."""
        if key in self._data:
            return self._data[key]
        if isinstance(default, _Required):
            raise InputError(f"{self.where(key)} is missing")
        return default

    def integer(self, key: str, default: int | _Required = REQUIRED) -> int:
        """A positive integer."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, "a positive integer", value)
        return value

    def optional_integer(self, key: str) -> int | None:
        """A positive integer, or None where the file says null or nothing."""
        return None if self.value(key, None) is None else self.integer(key)

    def number(self, key: str, default: float | _Required = REQUIRED) -> float:
        """A number."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "a number", value)
        return float(value)

    def flag(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        """True or false."""
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def text(self, key: str, default: str | _Required = REQUIRED) -> str:
        """A text that is not empty."""
        value = self.value(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, "a text", value)
        return value

    def choice(self, key: str, options: Sequence[Choice], default: Choice | _Required = REQUIRED) -> Choice:
        """One of a few texts."""
        value = self.value(key, default)
        for option in options:
            if value == option:
                return option
        raise self.error(key, f"one of {', '.join(options)}", value)

    def words(self, key: str) -> list[str]:
        """A list of at least one text."""
        value = self.value(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.error(key, "a list of operation names", value)
        return [str(item) for item in value]

    def section(self, key: str, keys: Sequence[str]) -> Section:
        """A mapping inside this one."""
        prefix = f"{self._prefix}.{key}" if self._prefix else key
        return Section(self.value(key), self.file, prefix, keys)

    def sections(self, key: str, keys: Sequence[str]) -> list[Section]:
        """A list of mappings inside this one; empty where the key does not occur."""
        value = self.value(key, [])
        if not isinstance(value, list):
            raise self.error(key, "a list", value)
        prefix = f"{self._prefix}.{key}" if self._prefix else key
        return [Section(item, self.file, f"{prefix}[{i}]", keys) for i, item in enumerate(value)]
