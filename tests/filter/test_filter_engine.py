"""The compiled engine against the torch module in double precision."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast import _core, paths
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterEngine, PathFilter, RejectionRequest

LEVELS = _core.build_info()["cpu_levels"]
FUSED = [level for level in LEVELS if level != "portable" and _core.cpu_isa_available(level)]
NUM_OPS = (3, 1, 5, 2, 4)


def network(num_ops: Sequence[int], hidden: int, seed: int = 0, scale: float = 3.0) -> PathFilter:
    """With weights that are large enough for log Phi to spread over several units, as after training."""
    net = PathFilter(num_ops, hidden, seed=seed, embedding_std=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale
    return net


def random_paths(num_ops: Sequence[int], count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, num_ops, (count, len(num_ops))).astype(np.uint8)


def exact(net: PathFilter, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return copy.deepcopy(net).double().log_prob_weak(batch).numpy()


@pytest.mark.parametrize(
    ("num_ops", "hidden"),
    [((13,) * 21, 128), (NUM_OPS, 1), (NUM_OPS, 9), (NUM_OPS, 48), ((2, 32), 256), ((2,) * 64, 16)],
)
def test_float32_is_that_of_the_module(level: str, num_ops: tuple[int, ...], hidden: int) -> None:
    net = network(num_ops, hidden)
    engine = FilterEngine(net)
    batch = random_paths(num_ops, 200)
    expected = exact(net, batch)
    np.testing.assert_allclose(engine.log_prob_weak(batch), expected, rtol=2e-6, atol=1e-5)
    assert engine.isa == ("avx512" if level in ("avx512_bf16", "amx") else level)  # pairs and tiles are for bf16


def test_bf16_is_within_its_band(level: str) -> None:
    net = network((13,) * 21, 128, scale=1.5)
    engine = FilterEngine(net, precision="bf16")
    batch = random_paths((13,) * 21, 1000)
    expected = exact(net, batch)
    found = engine.log_prob_weak(batch)
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(found - expected).max() > 1e-6  # it does round
    # Decisions may differ from float32 only inside the band.
    threshold = float(np.quantile(expected, 0.05))
    decisions = engine.decide(batch, threshold, band=0.02)
    differs = decisions.accepted != (expected <= threshold)
    assert np.all(np.abs(expected[differs] - threshold) < 0.02)
    assert decisions.in_band == np.mean(np.abs(found.astype(np.float64) - threshold) <= 0.02)
    assert engine.isa == level


def test_fused_levels_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(FUSED) < 2:
        pytest.skip("this machine has only one level with fused multiply-add")
    net, batch = network((13,) * 21, 128), random_paths((13,) * 21, 500)
    results = []
    for level in FUSED:
        monkeypatch.setenv("GREEDYNAS_CPU_ISA", level)
        results.append(FilterEngine(net).log_prob_weak(batch))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@settings(max_examples=30, deadline=None)
@given(
    num_ops=st.lists(st.integers(1, 32), min_size=1, max_size=25),
    hidden=st.integers(1, 40),
    count=st.integers(0, 300),
    threads=st.integers(1, 4),
)
def test_any_shape(num_ops: list[int], hidden: int, count: int, threads: int) -> None:
    net = PathFilter(num_ops, hidden, seed=count, embedding_std=1.0)
    engine = FilterEngine(net, num_threads=threads)
    batch = random_paths(num_ops, count)
    found = engine.log_prob_weak(batch)
    assert (found.dtype, found.shape) == (np.float32, (count,))
    np.testing.assert_allclose(found, exact(net, batch), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(engine.log_prob_weak_of_keys(paths.pack(batch)), found)


def test_batches_and_threads_change_nothing(level: str) -> None:
    net, batch = network(NUM_OPS, 32), random_paths(NUM_OPS, 6000)
    expected = FilterEngine(net, num_threads=1).log_prob_weak(batch)
    for threads in (1, 2, 4):
        engine = FilterEngine(net, num_threads=threads)
        for size in (7, 256, 4096):
            parts = [engine.log_prob_weak(batch[i : i + size]) for i in range(0, len(batch), size)]
            np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_it_follows_the_module() -> None:
    net, batch = network(NUM_OPS, 16), random_paths(NUM_OPS, 50)
    engine = FilterEngine(net)
    for change in (
        lambda: net.fc1.weight.data.mul_(0.5),  # torch does not see this one
        lambda: net.load_state_dict(network(NUM_OPS, 16, seed=4).state_dict()),
        lambda: torch.nn.init.normal_(net.lstm.weight_hh_l0),
        lambda: setattr(net, "embedding", torch.nn.Parameter(torch.randn_like(net.embedding))),
    ):
        before = engine.log_prob_weak(batch)
        change()
        engine.refresh()
        assert np.abs(engine.log_prob_weak(batch) - before).max() > 1e-4
        np.testing.assert_allclose(engine.log_prob_weak(batch), exact(net, batch), rtol=2e-6, atol=1e-5)
    with torch.no_grad():
        net.fc2.bias += 1.0
        net.fc2.bias[1] -= 3.0
    np.testing.assert_allclose(engine.log_prob_weak(batch), exact(net, batch), rtol=2e-6, atol=1e-5)


def test_bad_weights_leave_the_old_ones() -> None:
    net, batch = network(NUM_OPS, 16), random_paths(NUM_OPS, 50)
    engine = FilterEngine(net)
    before = engine.log_prob_weak(batch)
    backup = net.fc2.bias.detach().clone()
    for bad in (float("nan"), float("inf"), 1e16):
        with torch.no_grad():
            net.fc2.bias[0] = bad
        with pytest.raises(InputError, match=r"fc2_bias holds .*; weights must be finite and at most 1e15"):
            engine.log_prob_weak(batch)
    with torch.no_grad():
        net.fc2.bias.copy_(backup)
    np.testing.assert_array_equal(engine.log_prob_weak(batch), before)


def test_inputs_of_many_kinds() -> None:
    engine = FilterEngine(network(NUM_OPS, 16))
    batch = random_paths(NUM_OPS, 40)
    expected = engine.log_prob_weak(batch)
    wide = np.zeros((40, 10), dtype=np.uint8)
    wide[:, ::2] = batch
    for same in (
        batch.astype(np.int64),
        batch.astype(np.int8),
        torch.from_numpy(batch),
        torch.from_numpy(batch.astype(np.int32)),
        wide[:, ::2],
        np.asfortranarray(batch),
    ):
        np.testing.assert_array_equal(engine.log_prob_weak(same), expected)
    np.testing.assert_array_equal(engine.log_prob_weak(batch[0]), expected[:1])
    assert engine.log_prob_weak(batch[:0]).shape == (0,)
    assert engine.log_prob_weak_of_keys(paths.pack(batch[:0])).shape == (0,)
    assert engine.decide(batch[:0], 0.0).in_band == 0.0
    keys = np.repeat(paths.pack(batch), 2, axis=0)[::2]
    np.testing.assert_array_equal(engine.log_prob_weak_of_keys(keys), expected)


def test_a_module_in_double_precision_is_rounded() -> None:
    net, batch = network(NUM_OPS, 16), random_paths(NUM_OPS, 40)
    expected = FilterEngine(net).log_prob_weak(batch)
    np.testing.assert_array_equal(FilterEngine(copy.deepcopy(net).double()).log_prob_weak(batch), expected)


def test_copies_and_pickles_are_equal() -> None:
    engine = FilterEngine(network(NUM_OPS, 16), num_threads=2, precision="bf16")
    batch = random_paths(NUM_OPS, 40)
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        np.testing.assert_array_equal(other.log_prob_weak(batch), engine.log_prob_weak(batch))
        assert (other.precision, other.device) == ("bf16", torch.device("cpu"))


def test_several_python_threads() -> None:
    nets = [network(NUM_OPS, 32, seed=seed) for seed in range(2)]
    batch = random_paths(NUM_OPS, 1500)
    expected = [FilterEngine(net).log_prob_weak(batch) for net in nets]
    engines = [FilterEngine(net, num_threads=3) for net in nets]
    wrong: list[int] = []

    def work(which: int) -> None:
        results = [engines[which].log_prob_weak(batch) for _ in range(15)]
        wrong.extend(which for result in results if not np.array_equal(result, expected[which]))

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _score_in_child(engine: FilterEngine, batch: npt.NDArray[np.uint8], queue: Any) -> None:
    queue.put(engine.log_prob_weak(batch))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_score() -> None:
    engine = FilterEngine(network(NUM_OPS, 32), num_threads=4)
    batch = random_paths(NUM_OPS, 3000)
    expected = engine.log_prob_weak(batch)  # the pool has threads now, which the child lacks
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_score_in_child, args=(engine, batch, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(), expected)
    child.join(timeout=20)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 4), np.uint8), r"paths must be \[n, 5\], got \[2, 4\]"),
        (np.zeros((2, 5), np.float32), "paths must be integers, got float32"),
        (np.array([[0, 0, 0, 0, 0], [0, 0, 5, 0, 0]], np.uint8), "path 1 has operation 5 at layer 2, which has 5 op"),
        (np.full((1, 5), -1), "path 0 has operation -1 at layer 0"),
        (np.full((1, 5), 256), "path 0 has operation 256 at layer 0"),
        (np.zeros((1, 1, 5), np.uint8), r"paths must be \[n, 5\], got \[1, 1, 5\]"),
    ],
)
def test_bad_paths(batch: npt.NDArray[Any], message: str) -> None:
    engine = FilterEngine(network(NUM_OPS, 16))
    with pytest.raises(InputError, match=message):
        engine.log_prob_weak(batch)


def test_bad_keys() -> None:
    engine = FilterEngine(network(NUM_OPS, 16))
    good = paths.pack(random_paths(NUM_OPS, 3))
    for bad, message in (
        (good.astype(np.int64), r"keys must be uint64 \[n, 2\], got int64"),
        (good[:, :1], r"keys must be uint64 \[n, 2\], got uint64 \[3, 1\]"),
        (paths.pack(np.ones((1, 6), np.uint8)), "key 0 holds more than 5 layers"),
        (paths.pack(np.full((1, 5), 7, np.uint8)), "path 0 has operation 7 at layer 0"),
    ):
        with pytest.raises(InputError, match=message):
            engine.log_prob_weak_of_keys(bad)
    long = FilterEngine(network((2,) * 26, 16))
    with pytest.raises(InputError, match="1 to 25 layers"):
        long.log_prob_weak_of_keys(good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float64"}, "precision must be float32 or bf16, got 'float64'"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"precision": "bf16", "screen": True}, "screen is for float32 on a CPU, got bf16 on cpu"),
        ({"device": "cuda", "screen": True}, "screen is for float32 on a CPU, got float32 on cuda"),
        ({"device": "meta"}, "device must be cpu or cuda, got meta"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FilterEngine(network(NUM_OPS, 16), **options)


@pytest.mark.parametrize(
    ("num_ops", "hidden", "message"),
    [
        ((2,) * 65, 16, "1 to 64 layers are supported, got 65"),
        ((33,), 16, "1 to 32 operations a layer are supported, got 33"),
        ((2,), 257, "supports up to 256 units, got 257"),
    ],
)
def test_networks_that_are_too_large(num_ops: tuple[int, ...], hidden: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FilterEngine(PathFilter(num_ops, hidden))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named_at_the_call() -> None:
    with pytest.raises(InputError, match=r"built without CUDA|finds no CUDA device"):
        FilterEngine(network(NUM_OPS, 16), "cuda")


def test_bad_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FilterEngine(network(NUM_OPS, 16))
    batch = random_paths(NUM_OPS, 3)
    for bad in ("0", "two", "-1", "3.5", "99999"):
        monkeypatch.setenv("GREEDYNAS_NUM_THREADS", bad)
        with pytest.raises(InputError, match=f"GREEDYNAS_NUM_THREADS must be a whole number from 1 to 1024, got {bad}"):
            engine.log_prob_weak(batch)
    monkeypatch.delenv("GREEDYNAS_NUM_THREADS")
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "sse9")
    with pytest.raises(InputError, match="GREEDYNAS_CPU_ISA is sse9; this build has portable"):
        FilterEngine(network(NUM_OPS, 16))
    for level in LEVELS:
        if not _core.cpu_isa_available(level):
            monkeypatch.setenv("GREEDYNAS_CPU_ISA", level)
            with pytest.raises(InputError, match=f"GREEDYNAS_CPU_ISA is {level}, which this machine cannot run"):
                FilterEngine(network(NUM_OPS, 16))


def test_bad_decisions_and_requests() -> None:
    engine = FilterEngine(network((3, 1), 16))
    batch = random_paths((3, 1), 3)
    with pytest.raises(InputError, match="threshold must be a number"):
        engine.decide(batch, float("nan"))
    with pytest.raises(InputError, match="band at least 0"):
        engine.decide(batch, 0.0, band=-0.1)

    def ask(allowed: npt.NDArray[Any], threshold: float = 0.0) -> None:
        engine.reject(RejectionRequest(allowed, 0, 0, 0, 1, 10, threshold))

    good = np.array([[True, True, True], [True, False, False]])
    with pytest.raises(InputError, match=r"allowed must be bool \[2, 3\] for this filter, got uint8 \[2, 3\]"):
        ask(good.astype(np.uint8))
    with pytest.raises(InputError, match=r"allowed must be bool \[2, 3\]"):
        ask(good[:, :2])
    with pytest.raises(InputError, match="the mask allows operation 1 at layer 1, which the filter does not have"):
        ask(np.ones((2, 3), dtype=np.bool_))
    with pytest.raises(InputError, match="layer 1 has no allowed operation"):
        ask(good & np.array([[True], [False]]))
    with pytest.raises(InputError, match="the threshold is NaN"):
        ask(good, float("nan"))
