"""The generic reading of dataclass trees: types, unknown keys, merging."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast.dataclass_io import (
    build,
    check_range,
    check_types,
    coerce,
    describe,
    flatten,
    known_keys,
    merge,
    nearest,
    nest,
    read_mapping,
    to_mapping,
)
from greedynas_fast.errors import InputError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kernel_sizes: tuple[int, ...] = (3, 5)
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_types(self, "inner")
        check_range(self, "inner", "rate", low=0, high=1)


@dataclass(frozen=True)
class Outer:
    count: int = 1
    name: str | None = None
    folder: Path | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3.0, int, 3),
        (3, float, 3.0),
        ("x", str, "x"),
        (None, int | None, None),
        (4, int | None, 4),
        (True, bool, True),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2.5], tuple[int, float], (1, 2.5)),
        ((1, 2), list[int], [1, 2]),
        ("b", Literal["a", "b"], "b"),
        ("p/q", Path, Path("p/q")),
        (3, int | float, 3),
        (2.5, int | float, 2.5),
        ({"k": 1}, dict[str, float], {"k": 1.0}),
    ],
)
def test_coerce_takes_what_loses_nothing(value: object, hint: Any, expected: object) -> None:
    result = coerce(value, hint, "key")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("3", int),
        (2.5, int),
        (True, int),
        (True, float),
        (float("nan"), float),
        (float("inf"), int),
        (1, bool),
        (1, str),
        (None, int),
        ("c", Literal["a", "b"]),
        (1, Literal[True]),
        ([1, "x"], tuple[int, ...]),
        ([1], tuple[int, int]),
        ("12", tuple[int, ...]),
        ({}, list[int]),
        ([1], dict[str, int]),
    ],
)
def test_coerce_refuses_and_names_the_key(value: object, hint: Any) -> None:
    with pytest.raises(InputError, match=r"^train\.key"):
        coerce(value, hint, "train.key")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "a"),
        (tuple[float, ...], "a list, each a number"),
        (dict[str, int], "keys and values"),
        (bool, "true or false"),
        (Path, "a path"),
    ],
)
def test_describe_speaks_plainly(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_unknown_key_names_file_and_nearest() -> None:
    with pytest.raises(InputError, match=r"f\.yaml: unknown configuration key 'inner\.rat'.*'inner\.rate'"):
        read_mapping(Outer, {"inner": {"rat": 1}}, "f.yaml")
    with pytest.raises(InputError, match=r"unknown configuration key 'rate'.*'inner\.rate'"):
        read_mapping(Outer, {"rate": 1}, "f.yaml")
    with pytest.raises(InputError, match=r"unknown configuration key 'zzzzzz'\.$"):
        read_mapping(Outer, {"zzzzzz": 1}, "f.yaml")


@pytest.mark.parametrize("mapping", [3, "x", [1], {"inner": 3}, {"inner": None}, {"inner": [1]}])
def test_no_mapping_where_one_belongs(mapping: object) -> None:
    with pytest.raises(InputError, match="must hold keys and values"):
        read_mapping(Outer, mapping, "f.yaml")


def test_build_and_to_mapping_are_inverse() -> None:
    outer = Outer(3, "n", Path("a/b"), Inner(0.25, (7,), "b"))
    mapping = to_mapping(outer)
    assert mapping == {
        "count": 3,
        "name": "n",
        "folder": "a/b",
        "inner": {"rate": 0.25, "kernel_sizes": [7], "mode": "b"},
    }
    assert build(Outer, read_mapping(Outer, mapping, "f")) == outer
    assert build(Outer, {}) == Outer()


def test_values_are_checked_when_made() -> None:
    with pytest.raises(InputError, match=r"^inner\.rate must be at least 0 and at most 1, got 2"):
        build(Outer, {"inner": {"rate": 2}})
    with pytest.raises(InputError, match=r"^inner\.mode must be one of a, b, got 'c'"):
        Inner(mode="c")  # type: ignore[arg-type]
    assert Inner(kernel_sizes=[3]).kernel_sizes == (3,)  # type: ignore[arg-type]


def test_build_puts_the_section_before_a_message_without_it() -> None:
    @dataclass(frozen=True)
    class Bare:
        n: int = 1

        def __post_init__(self) -> None:
            raise InputError("n is never good")

    with pytest.raises(InputError, match=r"^part\.n is never good"):
        build(Bare, {}, "part.")


def test_nearest_and_known_keys() -> None:
    keys = list(known_keys(Outer))
    assert keys == ["count", "name", "folder", "inner", "inner.rate", "inner.kernel_sizes", "inner.mode"]
    assert nearest("inner.kernel_size", keys) == "inner.kernel_sizes"
    assert nearest("qqq", keys) is None


_KEYS = st.text("abc", min_size=1, max_size=2)
_NESTED = st.recursive(
    st.dictionaries(_KEYS, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(_KEYS, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=8,
)


@given(_NESTED)
def test_nest_undoes_flatten(mapping: dict[str, object]) -> None:
    assert nest(flatten(mapping)) == mapping


@given(_NESTED, _NESTED)
def test_merge_prefers_the_second(base: dict[str, object], over: dict[str, object]) -> None:
    merged = merge(base, over)
    assert merge(merged, over) == merged
    for key, value in flatten(over).items():
        assert flatten(merged)[key] == value
    assert set(merged) == set(base) | set(over)
