"""Packing against plain Python integers, with every instruction set."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greedynas_fast import paths
from greedynas_fast.errors import InputError

batches = st.tuples(st.integers(0, 20), st.integers(1, paths.MAX_LAYERS)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 31))
)


def key_of(path: np.ndarray) -> int:
    """The oracle: the path as one number in base 32, moved to the top of 128 bits."""
    number = 0
    for operation in path:
        number = number * 32 + int(operation)
    return number << (128 - 5 * len(path))


def bit_keys(batch: np.ndarray) -> np.ndarray:
    """The oracle for many paths: their bits one after the other, filled up to 128."""
    bits = np.unpackbits(batch[:, :, None], axis=2)[:, :, 3:].reshape(len(batch), 5 * batch.shape[1])
    filled = np.pad(bits, ((0, 0), (0, 128 - bits.shape[1])))
    return np.packbits(filled, axis=1).view(">u8").astype(np.uint64)


@pytest.mark.usefixtures("level")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
def test_keys_are_base_32_numbers_and_come_back(batch: np.ndarray) -> None:
    keys = paths.pack(batch)
    assert [(int(high) << 64) | int(low) for high, low in keys] == [key_of(path) for path in batch]
    np.testing.assert_array_equal(paths.unpack(keys, batch.shape[1]), batch)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("layers", range(1, paths.MAX_LAYERS + 1))
def test_every_number_of_layers(layers: int) -> None:
    rng = np.random.default_rng(layers)
    for n in (0, 1, 3, 257):
        batch = rng.integers(0, 32, (n, layers), dtype=np.uint8)
        keys = paths.pack(batch)
        assert (keys.shape, keys.dtype) == ((n, 2), np.uint64)
        np.testing.assert_array_equal(keys, bit_keys(batch))
        np.testing.assert_array_equal(paths.unpack(keys, layers), batch)
    batch[200, layers - 1] = 32
    with pytest.raises(InputError, match=f"path 200 has operation 32 at layer {layers - 1}"):
        paths.pack(batch)
    keys[100, 1] |= np.uint64(1)
    with pytest.raises(InputError, match=f"key 100 holds more than {layers} layers"):
        paths.unpack(keys, layers)


@pytest.mark.usefixtures("level")
def test_a_million_paths_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_NUM_THREADS", "3")
    batch = np.random.default_rng(0).integers(0, 21, (1_000_000, 21), dtype=np.uint8)
    keys = paths.pack(batch)
    for begin in range(0, len(batch), 200_000):
        part = slice(begin, begin + 2_000)
        np.testing.assert_array_equal(keys[part], bit_keys(batch[part]))
    np.testing.assert_array_equal(paths.unpack(keys, 21), batch)
    for row in (900_000, 40_000):  # the first one is named, whichever thread comes first
        batch[row, 20] = 255
        with pytest.raises(InputError, match=f"path {row} has operation 255 at layer 20"):
            paths.pack(batch)


@pytest.mark.usefixtures("level")
def test_columns_and_steps_of_larger_arrays() -> None:
    batch = np.random.default_rng(1).integers(0, 32, (30, 60), dtype=np.uint8)
    for view in (batch[::3, 5:20], batch[::-1, :25], batch[:, ::-3], np.asfortranarray(batch[:, :9]), batch[4:4, :7]):
        np.testing.assert_array_equal(paths.pack(view), bit_keys(np.ascontiguousarray(view)))
    keys = paths.pack(batch[:, :21])
    wide = np.zeros((30, 4), dtype=np.uint64)
    wide[:, 1:3] = keys
    np.testing.assert_array_equal(paths.unpack(wide[::2, 1:3], 21), batch[::2, :21])


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "sse9")
    with pytest.raises(InputError, match="GREEDYNAS_CPU_ISA is sse9; this build has portable"):
        paths.pack(np.zeros((1, 3), np.uint8))


@given(batches)
def test_keys_order_like_paths(batch: np.ndarray) -> None:
    keys = paths.pack(batch)
    by_key = np.lexsort((keys[:, 1], keys[:, 0]))
    assert [tuple(batch[i]) for i in by_key] == sorted(map(tuple, batch))


def test_other_integer_types_and_strides_are_taken() -> None:
    wide = np.arange(40, dtype=np.int64).reshape(4, 10) % 32
    np.testing.assert_array_equal(paths.pack(wide[::2, ::3]), paths.pack(wide[::2, ::3].astype(np.uint8)))
    keys = paths.pack(wide)
    np.testing.assert_array_equal(paths.unpack(keys[::-1], 10), wide[::-1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(3, np.uint8), "must be \\[n, L\\]"),
        (np.zeros((2, 3)), "must be integers"),
        (np.full((2, 3), 32, np.uint8), "path 0 has operation 32 at layer 0"),
        (np.full((2, 3), -1), "must be 0 to 31"),
        (np.full((2, 3), 256 + 1), "must be 0 to 31"),
        (np.zeros((1, 26), np.uint8), "1 to 25 layers, got 26"),
        (np.zeros((1, 0), np.uint8), "1 to 25 layers, got 0"),
    ],
)
def test_pack_refuses(bad: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paths.pack(bad)


def test_unpack_refuses() -> None:
    keys = paths.pack(np.ones((1, 5), np.uint8))
    with pytest.raises(InputError, match="holds more than 4 layers"):
        paths.unpack(keys, 4)
    with pytest.raises(InputError, match="uint64"):
        paths.unpack(keys.astype(np.int64), 5)
    with pytest.raises(InputError, match="num_layers must be 1 to 25, got 26"):
        paths.unpack(keys, 26)
