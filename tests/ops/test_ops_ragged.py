"""Ragged groups: the layout against arithmetic written out here, packing, and the launch grid."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast.errors import InputError
from greedynas_fast.ops import ragged as module
from greedynas_fast.ops.ragged import Ragged, ragged

SHAPES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=5).flatmap(
    lambda groups: st.builds(
        Ragged,
        st.just(tuple(samples for samples, _ in groups)),
        st.integers(1, 4),
        st.integers(1, 4),
        st.just(tuple(width for _, width in groups)),
    )
)


@given(SHAPES)
def test_groups_lie_one_behind_the_other(shape: Ragged) -> None:
    element = channel = gate = 0
    for g in range(shape.groups):
        assert shape.offsets[g] % 16 == 0
        assert 0 <= shape.offsets[g] - element < 16
        assert shape.channel_offsets[g] == channel
        assert shape.gate_offsets[g] == gate
        element = shape.offsets[g] + shape.samples[g] * shape.height * shape.width * shape.widths[g]
        channel += shape.widths[g]
        gate += shape.samples[g] * shape.widths[g]
    assert 0 <= shape.numel - element < 16
    assert shape.channel_offsets[-1] == channel
    assert shape.gate_offsets[-1] == gate


@given(SHAPES)
def test_pack_and_view_are_inverse(shape: Ragged) -> None:
    parts = [
        torch.randn(samples, width, shape.height, shape.width)
        for samples, width in zip(shape.samples, shape.widths, strict=True)
    ]
    flat = shape.pack(parts)
    assert flat.shape == (shape.numel,) == shape.empty(torch.float32, "cpu").shape
    for g, part in enumerate(parts):
        view = shape.view(flat, g)
        assert torch.equal(view, part)
        if part.numel():
            assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
            assert view.is_contiguous(memory_format=torch.channels_last)


@given(SHAPES, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_tiles_cover_each_element_of_the_live_groups_once(
    shape: Ragged, rows: int, channels: int, per_sample: bool
) -> None:
    pixels = shape.height * shape.width
    want = []
    for g in range(shape.groups):
        if per_sample:
            row_tiles = sum(1 for _ in range(shape.samples[g]) for _ in range(0, pixels, rows))
        else:
            row_tiles = sum(1 for _ in range(0, shape.samples[g] * pixels, rows))
        assert shape.row_tiles(rows, per_sample=per_sample)[g] == (row_tiles if shape.widths[g] else 0)
        across = range(0, shape.widths[g], channels)
        want += [(g, row, channel) for row in range(row_tiles) for channel in range(len(across))]
    assert [tuple(tile) for tile in shape.tiles(rows, channels, "cpu", per_sample=per_sample).tolist()] == want


def test_table_and_vectors() -> None:
    shape = Ragged((2, 1, 3), 2, 3, (5, 0, 7))
    table = shape.table("cpu")
    assert table.dtype is torch.int64
    assert table.is_contiguous()
    assert table[:, module.SAMPLES].tolist() == [2, 1, 3]
    assert table[:, module.WIDTH].tolist() == [5, 0, 7]
    assert table[:, module.ROWS].tolist() == [12, 0, 18]
    assert table[:, module.OFFSET].tolist() == [0, 64, 64]
    assert table[:, module.CHANNEL_OFFSET].tolist() == [0, 5, 5]
    assert table[:, module.GATE_OFFSET].tolist() == [0, 10, 10]
    assert shape.live == (0, 2)
    vector = torch.arange(12)
    assert [shape.channels(vector, g).tolist() for g in range(3)] == [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9, 10, 11]]
    assert shape.gates(torch.arange(31), 2).tolist() == torch.arange(10, 31).view(3, 7).tolist()


def test_the_same_shape_keeps_its_tables() -> None:
    one, two = ragged([2, 1], 4, 4, [3, 8]), ragged((2, 1), 4, 4, (3, 8))
    assert one is two
    assert one.table("cpu") is two.table(torch.device("cpu"))
    assert one.tiles(16, 16, "cpu") is two.tiles(16, 16, "cpu")
    assert one.with_widths([8, 3]).widths == (8, 3)
    assert Ragged((2, 1), 4, 4, (3, 8)) == one


def test_gradient_flows_through_pack_and_view() -> None:
    shape = Ragged((1, 2), 1, 2, (3, 2))
    parts = [torch.randn(1, 3, 1, 2, requires_grad=True), torch.randn(2, 2, 1, 2, requires_grad=True)]
    (shape.view(shape.pack(parts), 1) * 3).sum().backward()
    assert parts[0].grad is not None
    assert not parts[0].grad.any()
    assert torch.equal(parts[1].grad, torch.full_like(parts[1], 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1,), 2, 2, (3, 4)), "samples of 1 groups, but widths of 2"),
        (((-1,), 2, 2, (3,)), "no negative number"),
        (((1,), 0, 2, (3,)), "at least 1, got 0 x 2"),
    ],
)
def test_bad_shapes(arguments: tuple[tuple[int, ...], int, int, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ragged(*arguments)


def test_pack_refuses_other_shapes() -> None:
    shape = Ragged((1, 1), 1, 1, (2, 3))
    for parts in itertools.permutations([torch.zeros(1, 2, 1, 1), torch.zeros(1, 3, 1, 1)], 2):
        if parts[0].shape[1] == 2:
            assert shape.pack(list(parts)).numel() == 32
        else:
            with pytest.raises(InputError, match="expected parts of shapes"):
                shape.pack(list(parts))
