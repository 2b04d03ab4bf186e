"""The filter on the GPU: float32 with the CPU engine's bits, bf16 in its band, rejection as a plain loop decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterEngine, PathFilter
from greedynas_fast.filter.cuda_backend import CudaBackend, CudaEngineBackend
from greedynas_fast.filter.rejection import RejectionRequest
from greedynas_fast.filter.tensors import filter_tensors

SIZES = [((3,), 16, 5), ((2, 1, 4), 48, 130), ((5,) * 8, 64, 65), ((13,) * 21, 128, 3001), ((32,) * 5, 256, 70)]


def lively_filter(num_ops: tuple[int, ...], hidden: int, seed: int = 0) -> PathFilter:
    """A filter whose scores differ between paths: embeddings and output weights are larger than at the start."""
    net = PathFilter(num_ops, hidden, seed=seed, embedding_std=1.5)
    with torch.no_grad():
        net.fc2.weight.mul_(8)
    return net


def backend_of(net: PathFilter, precision: str, device: torch.device, chunk: int = 32768) -> CudaBackend:
    backend = CudaBackend(net.num_ops, net.hidden, precision, device, chunk=chunk)
    backend.load(filter_tensors(net))
    return backend


def random_paths(num_ops: tuple[int, ...], n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_ops, (n, len(num_ops)), dtype=np.uint8)


@pytest.mark.parametrize(("num_ops", "hidden", "n"), SIZES)
def test_float32_agrees_with_the_module(device: torch.device, num_ops: tuple[int, ...], hidden: int, n: int) -> None:
    net = lively_filter(num_ops, hidden)
    batch = random_paths(num_ops, n)
    scores = backend_of(net, "float32", device).log_prob_weak(batch)
    # The CPU engine, which has the same bits, is measured within 6e-7 of the module on these cases.
    torch.testing.assert_close(scores.cpu(), net.log_prob_weak(batch), atol=5e-6, rtol=0)


@pytest.mark.parametrize(("num_ops", "hidden", "n"), SIZES)
def test_float32_has_the_bits_of_the_cpu_engine(
    device: torch.device, num_ops: tuple[int, ...], hidden: int, n: int
) -> None:
    net = lively_filter(num_ops, hidden)
    batch = random_paths(num_ops, n)
    expected = FilterEngine(net, "cpu").log_prob_weak(batch)
    scores = backend_of(net, "float32", device).log_prob_weak(torch.from_numpy(batch).to(device)).cpu().numpy()
    np.testing.assert_array_equal(scores.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("num_ops", "hidden", "n"), SIZES)
def test_bf16_stays_in_its_band(device: torch.device, num_ops: tuple[int, ...], hidden: int, n: int) -> None:
    net = lively_filter(num_ops, hidden)
    batch = random_paths(num_ops, n)
    scores = backend_of(net, "bf16", device).log_prob_weak(batch).cpu()
    # Measured with the CPU engine in bf16: 3e-4, where scores spread by 0.1 to 0.2.
    torch.testing.assert_close(scores, net.log_prob_weak(batch), atol=2e-3, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_keys_batches_and_repeats_give_the_same_bits(device: torch.device, precision: str) -> None:
    num_ops = (13,) * 21
    backend = backend_of(lively_filter(num_ops, 128), precision, device)
    batch = random_paths(num_ops, 140_001)
    scores = backend.log_prob_weak(batch)
    assert torch.equal(scores, backend.log_prob_weak(torch.from_numpy(batch).long()))
    assert torch.equal(scores, backend.log_prob_weak_of_keys(paths.pack(batch)))
    assert torch.equal(scores[77_000:77_123], backend.log_prob_weak(batch[77_000:77_123]))
    assert backend.log_prob_weak(batch[:0]).shape == (0,)
    batch.setflags(write=False)
    assert torch.equal(scores[:99], backend.log_prob_weak(batch[:99]))


def naive(scores: np.ndarray, start: int, wanted: int, limit: int, threshold: float, fallbacks: int) -> tuple:
    accepted, rejected, looked_at = [], [], 0
    while looked_at < limit and len(accepted) < wanted:
        number, score = start + looked_at, float(scores[looked_at])
        (accepted.append(number) if score <= threshold else rejected.append((score, number)))
        looked_at += 1
    missing = min(wanted - len(accepted), fallbacks)
    return accepted, [number for _, number in sorted(rejected)[:missing]], looked_at


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("chunk", [100, 4096, 32768])
def test_rejection_is_the_plain_loop(device: torch.device, precision: str, chunk: int) -> None:
    num_ops = (4, 2, 5, 3)
    backend = backend_of(lively_filter(num_ops, 32), precision, device, chunk)
    mask = np.arange(5) < np.array(num_ops)[:, None]
    mask[2, 1] = False
    start, limit = 2**40, 20_000
    scores = backend.log_prob_weak(paths.propose(mask, 5, 6, start, limit)).cpu().numpy()
    for wanted, most, share, fallbacks in [
        (500, limit, 0.2, 0),
        (1, limit, 0.01, 0),
        (5000, limit, 0.05, 5000),
        (300, 400, 0.5, 40),
        (0, limit, 0.5, 0),
        (9, 0, 0.5, 9),
    ]:
        threshold = float(np.quantile(scores, share, method="lower"))
        accepted, lowest, proposals = backend.reject(mask, 5, 6, start, wanted, most, threshold, fallbacks)
        expected = naive(scores, start, wanted, most, threshold, fallbacks)
        assert (accepted.tolist(), lowest.tolist(), proposals) == expected


def test_load_replaces_the_weights(device: torch.device) -> None:
    first, second = lively_filter((4, 4), 32, seed=1), lively_filter((4, 4), 32, seed=2)
    batch = random_paths((4, 4), 9)
    backend = backend_of(first, "float32", device)
    before = backend.log_prob_weak(batch)
    backend.load(filter_tensors(second))
    assert torch.equal(backend.log_prob_weak(batch), backend_of(second, "float32", device).log_prob_weak(batch))
    assert not torch.equal(backend.log_prob_weak(batch), before)


def test_bad_input_is_refused(device: torch.device) -> None:
    net = lively_filter((4, 2), 16)
    backend = CudaBackend(net.num_ops, 16, "float32", device)
    with pytest.raises(InputError, match="call load first"):
        backend.log_prob_weak(np.zeros((1, 2), np.uint8))
    tensors = filter_tensors(net)
    with pytest.raises(InputError, match="fc1_bias must be float32"):
        backend.load(replace(tensors, fc1_bias=tensors.fc1_bias.double()))
    for value in (float("nan"), float("-inf"), 2e15):
        with pytest.raises(InputError, match="recurrent has a value that is NaN or beyond"):
            backend.load(replace(tensors, recurrent=torch.full_like(tensors.recurrent, value)))
    backend.load(tensors)
    with pytest.raises(InputError, match="path 3 has an operation"):
        backend.log_prob_weak(np.array([[0, 0], [3, 1], [1, 1], [0, 2]]))
    with pytest.raises(InputError, match="path 0 has an operation"):
        backend.log_prob_weak(np.array([[0, 256], [0, -1]]))
    with pytest.raises(InputError, match="must be integers"):
        backend.log_prob_weak(np.zeros((1, 3), np.uint8))
    with pytest.raises(InputError, match="must be integers"):
        backend.log_prob_weak(np.zeros((1, 2)))
    with pytest.raises(InputError, match="must be uint64"):
        backend.log_prob_weak_of_keys(torch.zeros(1, 2))
    with pytest.raises(InputError, match="allowed has more operations at layer 1"):
        backend.reject(np.ones((2, 4), bool), 0, 0, 0, 1, 1, 0.0, 0)
    with pytest.raises(InputError, match="limit must be"):
        backend.reject(np.arange(4) < np.array([[4], [2]]), 0, 0, 0, 1, -1, 0.0, 0)
    with pytest.raises(InputError, match="multiple of 16"):
        CudaBackend((3,), 24, "float32", device)
    with pytest.raises(InputError, match="precision must be"):
        CudaBackend((3,), 16, "float16", device)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_engine_rejects_as_on_the_cpu(device: torch.device, precision: str) -> None:
    num_ops = (13,) * 21
    net = lively_filter(num_ops, 128)
    on_gpu = CudaEngineBackend(num_ops, precision, device)
    on_gpu.load(filter_tensors(net))
    scores = on_gpu.log_prob_weak(random_paths(num_ops, 4000))
    threshold = float(np.quantile(scores, 0.02, method="lower"))
    request = RejectionRequest(np.ones((21, 13), bool), 3, 1, 10, 50, 3000, threshold, want_fallbacks=True)
    got = on_gpu.reject(request)
    assert got.proposals == (3000 if len(got.accepted) < 50 else int(got.accepted[-1]) - 9)
    if precision == "float32":
        expected = FilterEngine(net, "cpu").reject(request)
        assert got.accepted.tolist() == expected.accepted.tolist()
        assert got.fallbacks.tolist() == expected.fallbacks.tolist()
        assert got.proposals == expected.proposals
