"""The native rejection loop against the chunked one, which asks an engine that can only score."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sampling_toys import toy_space

from greedynas_fast import paths, spaces
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterEngine, PathFilter
from greedynas_fast.sampling import FilterSampler, RejectionError
from greedynas_fast.spaces import SearchSpace

SPACE = toy_space(4, 3, 6, 5)


class OnlyScores:
    """A `FilterEngine` whose native loop is out of sight."""

    def __init__(self, engine: FilterEngine) -> None:
        self._engine = engine

    def log_prob_weak(self, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._engine.log_prob_weak(paths)


def make_engine(space: SearchSpace = SPACE, seed: int = 0, threads: int | None = None) -> FilterEngine:
    net = PathFilter(space, 16, seed=seed, embedding_std=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 3.0
    return FilterEngine(net, num_threads=threads)


def quantile(engine: FilterEngine, space: SearchSpace, share: float) -> float:
    rng = np.random.default_rng(0)
    sample = rng.integers(0, space.num_ops, (4000, space.num_layers)).astype(np.uint8)
    return float(np.quantile(engine.log_prob_weak(sample), share, method="lower"))


@pytest.mark.parametrize("chunk_size", [1, 7, 256, 4096])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_equals_the_chunked_loop_for_any_chunks_and_threads(chunk_size: int, share: float) -> None:
    engine = make_engine()
    threshold = quantile(engine, SPACE, share)
    options: dict[str, Any] = {"threshold": threshold, "seed": 2**63 + 5, "stream": 9, "max_proposals": 900}
    reference = FilterSampler(SPACE, OnlyScores(engine), chunk_size=chunk_size, **options)
    expected = [reference.sample(n) for n in (0, 1, 40, 3)]
    for threads in (1, 2, 4):
        sampler = FilterSampler(SPACE, make_engine(threads=threads), **options)
        for n, batch in zip((0, 1, 40, 3), expected, strict=True):
            found = sampler.sample(n)
            np.testing.assert_array_equal(found.paths, batch.paths)
            assert (found.proposals, found.acceptance, found.fallbacks) == (
                batch.proposals,
                batch.acceptance,
                batch.fallbacks,
            )
        assert sampler.state_dict() == reference.state_dict()


def test_mask_and_reload() -> None:
    engine = make_engine()
    allowed = SPACE.allowed
    allowed[2, [0, 3]] = False
    options: dict[str, Any] = {"threshold": quantile(engine, SPACE, 0.2), "allowed": allowed, "seed": 4}
    whole = FilterSampler(SPACE, engine, **options).sample(200)
    assert not np.isin(whole.paths[:, 2], [0, 3]).any()
    first = FilterSampler(SPACE, engine, **options)
    head = first.sample(77)
    second = FilterSampler(SPACE, engine, **options)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(np.concatenate([head.paths, second.sample(123).paths]), whole.paths)


def test_strict_mode_and_fallbacks() -> None:
    engine = make_engine()
    strict = FilterSampler(SPACE, engine, threshold=-1e9, max_proposals=50, strict=True)
    with pytest.raises(RejectionError, match="accepted 0 of 50 proposals, 3 were asked for"):
        strict.sample(3)
    assert strict.state_dict()["next"] == 0
    lenient = FilterSampler(SPACE, engine, threshold=-1e9, max_proposals=50)
    batch = lenient.sample(3)
    assert (batch.fallbacks, batch.proposals, batch.acceptance) == (3, 50, 0.0)
    scores = engine.log_prob_weak(FilterSampler(SPACE, engine, threshold=0.0).sample(50).paths)
    np.testing.assert_array_equal(engine.log_prob_weak(batch.paths), np.sort(scores)[:3])


@pytest.mark.parametrize("seed", range(5))
def test_accepted_paths_are_uniform_on_the_accepted_set(seed: int) -> None:
    """Chi-square over all 6,561 paths of the benchmark space."""
    from scipy.stats import chi2

    space = spaces.get("nas-bench-macro")
    engine = make_engine(space, seed=seed)
    everything = np.stack(np.meshgrid(*[np.arange(3, dtype=np.uint8)] * 8, indexing="ij"), -1).reshape(-1, 8)
    threshold = float(np.quantile(engine.log_prob_weak(everything), 0.1))
    accepted = engine.decide(everything, threshold).accepted
    drawn = FilterSampler(space, engine, threshold=threshold, seed=seed).sample(20_000)
    index = drawn.paths.astype(np.int64) @ (3 ** np.arange(7, -1, -1))
    counts = np.bincount(index, minlength=len(everything))
    assert counts[~accepted].sum() == 0
    expected = 20_000 / accepted.sum()
    statistic = float(((counts[accepted] - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, accepted.sum() - 1) > 0.001
    assert drawn.acceptance == pytest.approx(accepted.mean(), rel=0.05)


def test_an_interrupt_stops_the_loop() -> None:
    """As Ctrl-C does; here a timer, which needs no terminal."""

    class Stop(Exception):
        pass

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stop

    sampler = FilterSampler(SPACE, make_engine(), threshold=-1e9, max_proposals=2**40, strict=True)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    began_s = time.monotonic()
    try:
        with pytest.raises(Stop):
            sampler.sample(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began_s < 30
    assert sampler.state_dict()["next"] == 0


def test_without_replacement() -> None:
    """What the sampler with replacement draws, each path at its first occurrence."""
    space = toy_space(2, 3, 3)
    engine = make_engine(space)
    threshold = quantile(engine, space, 0.5)
    repeated = FilterSampler(space, engine, threshold=threshold, seed=3).sample(300).paths
    keys = paths.unique_keys(paths.pack(repeated))
    expected = repeated[np.sort(keys.first)]
    sampler = FilterSampler(space, engine, threshold=threshold, seed=3, unique=True)
    first = sampler.sample(4)
    other = FilterSampler(space, engine, threshold=threshold, seed=3, unique=True)
    other.load_state_dict(sampler.state_dict())
    rest = other.sample(len(expected) - 4)
    np.testing.assert_array_equal(np.concatenate([first.paths, rest.paths]), expected)
    assert first.proposals >= 4
    before = other.state_dict()
    with pytest.raises(RejectionError, match="accepted 0 of 1000 proposals, 1 were asked for"):
        other.sample(1)
    after = other.state_dict()
    assert torch.equal(before.pop("returned"), after.pop("returned"))
    assert before == after
    assert other.sample(0).paths.shape == (0, 3)
    with pytest.raises(InputError, match="kind is 'filter without replacement'"):
        FilterSampler(space, engine, threshold=threshold, seed=3).load_state_dict(other.state_dict())


def test_an_engine_of_another_space_is_refused() -> None:
    with pytest.raises(InputError, match="its filter is not one of the space"):
        FilterSampler(SPACE, make_engine(toy_space(3, 3, 6, 5)), threshold=0.0)


@pytest.mark.slow
def test_ten_million_paths() -> None:
    space = toy_space(3, 2)
    engine = make_engine(space)
    batch = FilterSampler(space, engine, threshold=quantile(engine, space, 0.7)).sample(10**7)
    assert batch.paths.shape == (10**7, 2)
    assert batch.fallbacks == 0
    assert engine.decide(np.unique(batch.paths, axis=0), quantile(engine, space, 0.7)).accepted.all()
