"""Paths as text and arrays, masks, normal forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace, operation
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, StemSpec

SPACES = {name: spaces.get(name) for name in spaces.names()}


def draw_path(data: st.DataObject, space: SearchSpace) -> np.ndarray:
    return np.array([data.draw(st.integers(0, n - 1)) for n in space.num_ops], dtype=np.uint8)


def tiny_space(*op_names: tuple[str, ...], stride: int = 1, channels: int = 8) -> SearchSpace:
    """One stage of layers with their own operation lists, 8 channels."""
    layers, width = [], 8
    for index, words in enumerate(op_names):
        step = stride if index == 0 else 1
        ops = tuple(operation(word) for word in words)
        layers.append(LayerSpec(index, 0, width, channels, step, ops))
        width = channels
    return SearchSpace("tiny", StemSpec(8), tuple(layers), HeadSpec(channels, 16), 3, 2, 8)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), name=st.sampled_from(spaces.names()))
def test_round_trips(data: st.DataObject, name: str) -> None:
    space = SPACES[name]
    path = draw_path(data, space)
    names = space.format(path)
    digits = space.format(path, style="digits")
    assert len(digits) == space.num_layers
    separator = data.draw(st.sampled_from([" ", ",", ", ", "|", " | ", "\n"]))
    words = names.replace("|", " ").split()
    for text in (names, digits, names.lower(), digits.upper(), separator.join(words), words, path, path.tolist()):
        parsed = space.parse(text)
        assert parsed.dtype == np.uint8
        np.testing.assert_array_equal(parsed, path)


def test_bars_stand_between_stages() -> None:
    space = SPACES["nas-bench-macro"]
    assert space.format([0, 1, 2, 0, 1, 2, 0, 1]) == "ID MB3_K3 | MB6_K5 ID MB3_K3 | MB6_K5 ID MB3_K3"
    assert space.format(np.array([0, 1, 2, 0, 1, 2, 0, 1]), "digits") == "01201201"


def test_digits_are_base_32() -> None:
    space = SPACES["mb-se-mix-shuffle"]
    assert space.parse("k" * 21).tolist() == [20] * 21
    assert space.format([20] * 21, "digits") == "k" * 21


def test_one_layer_name_is_not_taken_for_digits() -> None:
    assert tiny_space(("MB3_K3", "ID")).parse("ID").tolist() == [1]
    assert tiny_space(("MB3_K3", "ID")).parse("1").tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 8 operations, got an empty text"),
        (" | ", "empty text"),
        ("0120120", "expected 8 digits"),
        ("012012012", "expected 8 digits"),
        ("0120120x", "expected 8 digits"),
        ("01201203", "layer 7 for operation 3, expected 0 to 2"),
        ("ID ID", "expected 8 operations, got 2"),
        ("ID ID ID ID ID ID ID MB3_K33", r"layer 7 has no operation 'MB3_K33'; did you mean MB3_K3\?"),
        ("ID ID ID ID ID ID ID banana", "known are ID, MB3_K3, MB6_K5"),
        (["ID"] * 7, "expected 8 operations, got 7"),
        ([0] * 9, "expected 8 operations"),
        ([0, 1, 2, 0, 1, 2, 0, -1], "layer 7 for operation -1"),
        ([0.0] * 8, "expected integers, got float64"),
        ([True] * 8, "expected integers, got bool"),
        ([], "expected 8 operations"),
        (["ID", 1, 1, 1, 1, 1, 1, 1], "expected integers"),
        (np.zeros((2, 8), dtype=np.uint8), "expected one path"),
    ],
)
def test_bad_paths(text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SPACES["nas-bench-macro"].parse(text)


def test_bad_style() -> None:
    style: Any = "hex"
    with pytest.raises(InputError, match=r"style.*'hex'"):
        SPACES["sample"].format([0] * 6, style)


def test_check_returns_batches() -> None:
    space = SPACES["sample"]
    one = space.check([0, 1, 2, 2, 4, 5])
    assert one.shape == (1, 6)
    assert one.dtype == np.uint8
    many = space.check(np.arange(12, dtype=np.int64).reshape(2, 6) % 3)
    np.testing.assert_array_equal(many, np.arange(12).reshape(2, 6) % 3)
    assert space.check(np.empty((0, 6), dtype=np.int32)).shape == (0, 6)


@pytest.mark.parametrize(
    "paths", [[0] * 5, [[0] * 5], np.zeros((1, 1, 6), int), 3, [[0] * 6, [0] * 5], [300] * 6, [2**70] * 6, None]
)
def test_check_refuses_other_shapes_and_values(paths: Any) -> None:
    with pytest.raises(InputError, match="path"):
        SPACES["sample"].check(paths)


def test_check_names_removed_operations() -> None:
    space = SPACES["sample"]
    allowed = space.allowed
    allowed[4, 6] = False
    paths = np.zeros((3, 6), dtype=np.uint8)
    space.check(paths, allowed)
    paths[2, 4] = 6
    with pytest.raises(InputError, match="path 2 uses ID at layer 4, which was removed"):
        space.check(paths, allowed)
    with pytest.raises(InputError, match=r"allowed: expected a bool array \[6, 7\]"):
        space.check(paths, allowed[:5])
    with pytest.raises(InputError, match=r"allowed: expected a bool array"):
        space.check(paths, allowed.astype(np.uint8))


def test_allowed_marks_what_exists() -> None:
    space = tiny_space(("MB3_K3", "ID"), ("ID", "MB3_K3", "MB6_K3"), ("ID",))
    assert space.allowed.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    space.allowed[0, 0] = False
    assert space.allowed[0, 0]
    assert (space.size, space.num_ops, space.max_ops) == (6, (2, 3, 1), 3)
    params, macs = space.op_costs()
    assert params[0, 2] == macs[0, 2] == params[2, 1] == 0


def test_normal_form_has_the_known_number_of_classes() -> None:
    space = SPACES["nas-bench-macro"]
    paths = np.stack(np.unravel_index(np.arange(3**8), (3,) * 8), axis=1).astype(np.uint8)
    before = paths.copy()
    classes = space.canonical(paths)
    np.testing.assert_array_equal(paths, before)
    assert len(np.unique(classes, axis=0)) == 3969
    np.testing.assert_array_equal(space.canonical(classes), classes)
    np.testing.assert_array_equal(space.costs(paths), space.costs(classes))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(spaces.names()))
def test_normal_form_against_lists(data: st.DataObject, name: str) -> None:
    space = SPACES[name]
    path = draw_path(data, space)
    if data.draw(st.booleans()):  # many identities
        identity = [names.index("ID") if "ID" in names else 0 for names in space.ops]
        keep = np.array([data.draw(st.booleans()) for _ in identity])
        path = np.where(keep, path, identity).astype(np.uint8)
    expected: list[str] = []
    for stage in sorted({layer.stage for layer in space.layers}):
        fixed, others, identities = [], [], []
        for layer in space.layers:
            if layer.stage != stage:
                continue
            word = space.ops[layer.index][path[layer.index]]
            if layer.stride != 1 or layer.in_channels != layer.out_channels:
                fixed.append(word)
            else:
                (identities if word == "ID" else others).append(word)
        expected += fixed + others + identities
    assert space.format(space.canonical(path)[0]).replace(" |", "").split() == expected


def test_normal_form_goes_by_specification() -> None:
    space = tiny_space(("ID", "MB3_K3"), ("MB3_K3", "ID"))
    assert space.canonical(space.parse("ID MB3_K3")).tolist() == [space.parse("MB3_K3 ID").tolist()]
    assert space.canonical(space.parse("ID ID")).tolist() == [space.parse("ID ID").tolist()]


def test_normal_form_stays_among_layers_with_the_same_operations() -> None:
    space = tiny_space(("ID", "MB3_K3"), ("ID", "MB3_K3", "MB6_K3"), ("MB6_K3", "MB3_K3", "ID"))
    path = space.parse("ID ID MB3_K3")
    assert space.format(space.canonical(path)[0]) == "ID MB3_K3 ID"


def test_normal_form_leaves_a_changing_identity() -> None:
    space = tiny_space(("ID", "MB3_K3"), ("ID", "MB3_K3"), channels=16)
    path = space.parse("ID MB3_K3")
    np.testing.assert_array_equal(space.canonical(path)[0], path)
