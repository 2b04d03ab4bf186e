"""Dataclass trees from and to plain mappings, with errors that name the key, the value and the file.

Generic: knows no configuration of its own. `config.py` builds on it; so may any other dataclass that a user fills in.
A mapping is what YAML or JSON gives: text, numbers, booleans, nothing, lists and mappings of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from greedynas_fast.errors import InputError

T = TypeVar("T")


@functools.cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def field_types(cls: type) -> dict[str, Any]:
    """Type of each field of the dataclass `cls`, string annotations resolved, in the order of definition."""
    return _field_types(cls)


def known_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """All dotted keys of the dataclass tree `cls`, sections included."""
    for name, hint in field_types(cls).items():
        yield prefix + name
        section = _dataclass_of(hint)
        if section is not None:
            yield from known_keys(section, f"{prefix}{name}.")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The entry of `known` most like `word`, compared whole and by its last dotted part; None if none is alike."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found:
        last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
        found = [last[hit] for hit in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    return found[0] if found else None


def nest(flat: Mapping[str, object]) -> dict[str, object]:
    """Expand dotted keys: {"a.b": 1, "a": {"c": 2}} -> {"a": {"b": 1, "c": 2}}; a later key wins."""
    result: dict[str, object] = {}
    for key, value in flat.items():
        head, _, rest = key.partition(".")
        if rest:
            value = nest({rest: value})
        elif isinstance(value, Mapping):
            value = nest(value)
        result = merge(result, {head: value})
    return result


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`over` laid over `base`, mapping by mapping; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def flatten(mapping: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The leaves of nested mappings under dotted keys."""
    result: dict[str, object] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def read_mapping(cls: type, mapping: object, origin: str, prefix: str = "", root: type | None = None) -> dict[str, Any]:
    """Check the keys and the types of a (partial) mapping for the dataclass tree `cls`.

    Args:
        cls: the dataclass.
        mapping: keys and values, nested; not every field has to be there.
        origin: where it comes from, for messages ("config.yaml", "the command line").
        prefix: dotted prefix of `cls` in the whole configuration, for messages.
        root: the dataclass of the whole configuration, whose keys are proposed for an unknown one.

    Returns:
        The same mapping with values in the types of the fields.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    root = root or cls
    if not isinstance(mapping, Mapping):
        where = prefix[:-1] or "the configuration"
        raise InputError(f"{origin}: {where} must hold keys and values, got {mapping!r}.")
    hints = field_types(cls)
    result: dict[str, Any] = {}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if name not in hints:
            near = nearest(key, list(known_keys(root)))
            hint = f" The nearest known key is {near!r}." if near else ""
            raise InputError(f"{origin}: unknown configuration key {key!r}.{hint}")
        section = _dataclass_of(hints[name])
        if section is not None and not (value is None and type(None) in get_args(hints[name])):
            result[name] = read_mapping(section, value, origin, f"{key}.", root)
            continue
        try:
            result[name] = coerce(value, hints[name], key)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from None
    return result


def build(cls: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """The dataclass `cls` from a mapping that `read_mapping` returned; missing fields take their defaults.

    Raises:
        InputError: the dataclass refuses a value; the message begins with the dotted `prefix` of `cls`.
    """
    arguments: dict[str, Any] = {}
    for name, value in mapping.items():
        section = _dataclass_of(field_types(cls)[name])
        nested = section is not None and isinstance(value, Mapping)
        arguments[name] = build(section, value, f"{prefix}{name}.") if section is not None and nested else value
    try:
        return cls(**arguments)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(prefix[:-1]) else prefix + message) from None


def to_mapping(value: object) -> Any:
    """A dataclass tree as plain mappings, lists, text and numbers, fields in their order of definition."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_mapping(getattr(value, name)) for name in field_types(type(value))}
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_mapping(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_types(instance: object, section: str) -> None:
    """Hold every field of a dataclass instance against its type, and store it in that type (a list as a tuple).

    Meant for `__post_init__`. `section` is the dotted name of the instance in the configuration.

    Raises:
        InputError: a field has the wrong type.
    """
    for name, hint in field_types(type(instance)).items():
        value = coerce(getattr(instance, name), hint, f"{section}.{name}" if section else name)
        object.__setattr__(instance, name, value)


def check_range(
    instance: object,
    section: str,
    *fields: str,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
) -> None:
    """Hold the named number fields against `low <= value <= high` (`low < value` if `open_low`); None passes.

    Raises:
        InputError: a field is out of its range.
    """
    for name in fields:
        value = getattr(instance, name)
        if value is None:
            continue
        too_low = low is not None and (value <= low if open_low else value < low)
        if too_low or (high is not None and value > high):
            bounds = [] if low is None else [f"{'above' if open_low else 'at least'} {low:g}"]
            bounds += [] if high is None else [f"at most {high:g}"]
            key = f"{section}.{name}" if section else name
            raise InputError(f"{key} must be {' and '.join(bounds)}, got {value!r}.")


def coerce(value: object, hint: Any, key: str) -> Any:
    """`value` in the type `hint`, where that loses nothing (3 as 3.0, 3.0 as 3, a list as a tuple, text as a Path).

    Raises:
        InputError: the value does not have that type.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, hint, key)
    if origin in (tuple, list) and isinstance(value, (tuple, list)):
        return _coerce_sequence(value, hint, key)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {name: coerce(item, get_args(hint)[1], f"{key}.{name}") for name, item in value.items()}
    if origin is Literal:
        ok = any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    elif hint is int or hint is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        number = typing.cast(float, value)
        if ok and (hint is float or number == int(number)):
            return hint(number)
        ok = False
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(hint, type):
        ok = isinstance(value, hint)
    else:
        ok = hint is Any
    if not ok:
        raise InputError(f"{key} must be {describe(hint)}, got {value!r}.")
    return value


def describe(hint: Any) -> str:
    """A type in plain words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"a list, each {describe(arguments[0])}"
    if origin in (dict, Mapping):
        return "keys and values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, "a path" if hint is Path else f"a {getattr(hint, '__name__', hint)}")


def _coerce_union(value: object, hint: Any, key: str) -> Any:
    """The first member of the union that takes the value; an exact type goes before a conversion."""
    members = get_args(hint)
    for member in sorted(members, key=lambda member: not (isinstance(member, type) and type(value) is member)):
        try:
            return coerce(value, member, key)
        except InputError:
            continue
    raise InputError(f"{key} must be {describe(hint)}, got {value!r}.")


def _coerce_sequence(value: Sequence[object], hint: Any, key: str) -> Any:
    """A list as the tuple or list that `hint` asks for, item by item."""
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return [coerce(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(value)]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise InputError(f"{key} must be a list of {len(arguments)}, got {list(value)!r}.")
    return tuple(
        coerce(item, argument, f"{key}[{index}]")
        for index, (item, argument) in enumerate(zip(value, arguments, strict=True))
    )


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass that a field holds (also as `Config | None`), or None."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None
