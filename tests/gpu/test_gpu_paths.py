"""Paths and keys on the GPU against the CPU core and numpy, bit for bit."""

import numpy as np
import pytest
import torch

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.paths import cuda as paths_cuda


def mask_of(layers: int, operations: int) -> np.ndarray:
    mask = np.random.default_rng(layers).random((layers, operations)) < 0.6
    mask[np.arange(layers), np.arange(layers) % operations] = True
    return mask


def as_set(keys: np.ndarray) -> list[tuple[int, int]]:
    return [(int(high), int(low)) for high, low in keys]


@pytest.mark.parametrize(("layers", "operations"), [(1, 1), (8, 3), (21, 13), (25, 32)])
@pytest.mark.parametrize("start", [0, 2**32 - 5, 2**64 - 1000])
def test_proposals_are_those_of_the_cpu(device: torch.device, layers: int, operations: int, start: int) -> None:
    mask = mask_of(layers, operations)
    for count in (0, 1, 1001):
        drawn = paths_cuda.propose(mask, 2**63 + 5, 9, start, count, device)
        np.testing.assert_array_equal(drawn.cpu().numpy(), paths.propose(mask, 2**63 + 5, 9, start, count))


def test_many_proposals(device: torch.device) -> None:
    mask = mask_of(21, 13)
    drawn = paths_cuda.propose(mask, 3, 0, 0, 3_000_001, device)
    np.testing.assert_array_equal(drawn[-1000:].cpu().numpy(), paths.propose(mask, 3, 0, 2_999_001, 1000))


@pytest.mark.parametrize("layers", [1, 12, 13, 25])
def test_codec_is_that_of_the_cpu(device: torch.device, layers: int) -> None:
    for n in (0, 1, 257, 70_001):
        batch = np.random.default_rng(n).integers(0, 32, (n, layers), dtype=np.uint8)
        keys = paths_cuda.pack(torch.from_numpy(batch).to(device))
        np.testing.assert_array_equal(keys.cpu().numpy(), paths.pack(batch))
        np.testing.assert_array_equal(paths_cuda.unpack(keys, layers).cpu().numpy(), batch)
        np.testing.assert_array_equal(paths_cuda.unpack(keys.view(torch.int64), layers).cpu().numpy(), batch)


def test_strided_input_is_taken(device: torch.device) -> None:
    batch = torch.arange(60, dtype=torch.uint8, device=device).reshape(6, 10) % 32
    expected = paths.pack(batch[::2, 1::3].cpu().numpy())
    np.testing.assert_array_equal(paths_cuda.pack(batch[::2, 1::3]).cpu().numpy(), expected)


@pytest.mark.parametrize(("n", "different"), [(0, 2), (1, 2), (5000, 3), (200_003, 12), (100_000, 32)])
def test_sort_unique_and_find(device: torch.device, n: int, different: int) -> None:
    rng = np.random.default_rng(n)
    keys = paths.pack(rng.integers(0, different, (n, 25), dtype=np.uint8)) if n else np.empty((0, 2), np.uint64)
    keys[: n // 2] = keys[n - n // 2 :]
    expected = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    on_device = torch.from_numpy(keys).to(device)
    ordered = paths_cuda.sort_keys(on_device)
    np.testing.assert_array_equal(ordered.cpu().numpy(), expected)
    unique = paths_cuda.unique_keys(on_device)
    kept = np.ones(n, bool)
    kept[1:] = (expected[1:] != expected[:-1]).any(axis=1)
    np.testing.assert_array_equal(unique.cpu().numpy(), expected[kept])
    queries = np.concatenate([keys[: n // 3], rng.integers(0, 2**64, (1001, 2), dtype=np.uint64)])
    found = paths_cuda.find_keys(unique, torch.from_numpy(queries).to(device))
    known = set(as_set(keys))
    assert found.tolist() == [key in known for key in as_set(queries)]


def test_bad_input_is_refused(device: torch.device) -> None:
    zeros = torch.zeros(3, 4, dtype=torch.uint8, device=device)
    keys = paths_cuda.pack(zeros + 1)
    with pytest.raises(InputError, match="path 2 has operation 32"):
        paths_cuda.pack(torch.tensor([[1, 2], [31, 0], [1, 32]], dtype=torch.uint8, device=device))
    with pytest.raises(InputError, match="key 0 holds more than 3 layers"):
        paths_cuda.unpack(keys, 3)
    with pytest.raises(InputError, match="must be uint8"):
        paths_cuda.pack(zeros.int())
    with pytest.raises(InputError, match="1 to 25 layers"):
        paths_cuda.pack(torch.zeros(1, 26, dtype=torch.uint8, device=device))
    with pytest.raises(InputError, match="must be uint64"):
        paths_cuda.sort_keys(keys.view(torch.int64).to(torch.int32))
    with pytest.raises(InputError, match="layer 0 has no allowed operation"):
        paths_cuda.propose(np.zeros((2, 2), bool), 0, 0, 0, 1, device)
    with pytest.raises(InputError, match="seed must be"):
        paths_cuda.propose(np.ones((2, 2), bool), -1, 0, 0, 1, device)


def test_other_devices_are_refused(device: torch.device) -> None:
    with pytest.raises(InputError, match="must be a CUDA device, got cpu"):
        paths_cuda.pack(torch.zeros(3, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="must be a CUDA device, got cpu"):
        paths_cuda.find_keys(torch.zeros(3, 2, dtype=torch.int64, device=device), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(InputError, match=f"no CUDA device {torch.cuda.device_count()}"):
        paths_cuda.propose(np.ones((2, 2), bool), 0, 0, 0, 1, f"cuda:{torch.cuda.device_count()}")


def test_work_follows_the_current_stream(device: torch.device) -> None:
    mask = mask_of(21, 13)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        drawn = paths_cuda.propose(mask, 1, 0, 0, 5000, device)
        keys = paths_cuda.pack(drawn)
    np.testing.assert_array_equal(keys.cpu().numpy(), paths.pack(paths.propose(mask, 1, 0, 0, 5000)))
