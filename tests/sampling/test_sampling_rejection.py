"""The filter sampler against a loop over single proposals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_toys import HashEngine, toy_space

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.sampling import FilterSampler, RejectionError

SPACE = toy_space(4, 3, 6, 5)


def one_by_one(n: int, threshold: float, seed: int, start: int, limit: int) -> tuple[np.ndarray, int, int]:
    """The n paths, the next proposal index and the fallbacks, by the plainest loop there is."""
    engine = HashEngine()
    accepted: list[np.ndarray] = []
    rejected: list[tuple[float, int, np.ndarray]] = []
    index = start
    while len(accepted) < n and index < start + limit:
        path = paths.propose(SPACE.allowed, seed, 0, index, 1)
        score = float(engine.log_prob_weak(path)[0])
        if score <= threshold:
            accepted.append(path[0])
        else:
            rejected.append((score, index, path[0]))
        index += 1
    missing = n - len(accepted)
    accepted += [path for _, _, path in sorted(rejected, key=lambda entry: entry[:2])[:missing]]
    return np.array(accepted, dtype=np.uint8).reshape(-1, 4), index, missing


def make(threshold: float, **options: Any) -> FilterSampler:
    return FilterSampler(SPACE, HashEngine(), threshold=threshold, **options)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.integers(0, 25), max_size=4),
    chunk_size=st.integers(1, 70),
    threshold=st.floats(-1.0, -0.1),
    seed=st.integers(0, 2**64 - 1),
    limit=st.integers(25, 120),
)
def test_equals_the_plain_loop(calls: list[int], chunk_size: int, threshold: float, seed: int, limit: int) -> None:
    sampler = make(threshold, seed=seed, chunk_size=chunk_size, max_proposals=limit)
    start = 0
    for n in calls:
        batch = sampler.sample(n)
        expected, end, fallbacks = one_by_one(n, threshold, seed, start, limit)
        np.testing.assert_array_equal(batch.paths, expected)
        assert (batch.proposals, batch.fallbacks) == (end - start, fallbacks)
        assert sampler.state_dict()["next"] == end
        start = end


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    chunks=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    threshold=st.floats(-0.99, -0.3),
)
def test_any_split_and_chunking_gives_the_same(parts: list[int], chunks: tuple[int, int], threshold: float) -> None:
    whole = make(threshold, seed=1, chunk_size=chunks[0])
    split = make(threshold, seed=1, chunk_size=chunks[1])
    expected = whole.sample(sum(parts))
    batches = [split.sample(n) for n in parts]
    np.testing.assert_array_equal(np.concatenate([batch.paths for batch in batches]), expected.paths)
    assert sum(batch.proposals for batch in batches) == expected.proposals
    assert split.state_dict() == whole.state_dict()


def test_scores_do_not_depend_on_the_split_even_if_the_engine_is_batch_sensitive() -> None:
    class Wobbly(HashEngine):
        def log_prob_weak(self, paths: np.ndarray) -> np.ndarray:
            return super().log_prob_weak(paths) + np.arange(len(paths)) * 1e-3

    whole = FilterSampler(SPACE, Wobbly(), threshold=-0.6, chunk_size=32)
    split = FilterSampler(SPACE, Wobbly(), threshold=-0.6, chunk_size=32)
    np.testing.assert_array_equal(
        whole.sample(60).paths, np.concatenate([split.sample(n).paths for n in (1, 2, 20, 37)])
    )


def test_acceptance_is_the_share_below_the_threshold() -> None:
    batch = make(-0.9).sample(400)
    assert (HashEngine().log_prob_weak(batch.paths) <= -0.9).all()
    assert batch.acceptance == pytest.approx(400 / batch.proposals)
    assert 0.05 < batch.acceptance < 0.2  # 101 of the 1,000 score levels are accepted


def test_small_calls_score_each_chunk_once() -> None:
    engine = HashEngine()
    sampler = FilterSampler(SPACE, engine, threshold=-0.5, chunk_size=64)
    total = sum(sampler.sample(1).proposals for _ in range(100))
    assert engine.calls == [64] * math.ceil(total / 64)


def test_a_float32_tensor_and_the_exact_threshold_are_accepted() -> None:
    class Torch(HashEngine):
        def log_prob_weak(self, paths: np.ndarray) -> Any:
            return torch.from_numpy(super().log_prob_weak(paths)).requires_grad_()

    level = float(np.float32(-0.3))
    scores = HashEngine(10).log_prob_weak(FilterSampler(SPACE, Torch(10), threshold=level).sample(200).paths)
    assert scores.max() == np.float32(level)
    just_below = np.nextafter(level, -1)  # would round to the level itself in float32
    scores = HashEngine(10).log_prob_weak(FilterSampler(SPACE, Torch(10), threshold=just_below).sample(200).paths)
    assert scores.max() < np.float32(level)


def test_fallback_takes_the_best_rejected_once_each() -> None:
    batch = make(-2.0, max_proposals=50).sample(10)
    everything = paths.propose(SPACE.allowed, 0, 0, 0, 50)
    order = np.argsort(HashEngine().log_prob_weak(everything), kind="stable")[:10]
    np.testing.assert_array_equal(batch.paths, everything[order])
    assert (batch.fallbacks, batch.proposals, batch.acceptance) == (10, 50, 0.0)


def test_fallback_orders_equal_scores_by_index() -> None:
    class Constant(HashEngine):
        def log_prob_weak(self, paths: np.ndarray) -> np.ndarray:
            return np.zeros(len(paths), dtype=np.float32)

    batch = FilterSampler(SPACE, Constant(), threshold=-1, max_proposals=40, chunk_size=7).sample(15)
    np.testing.assert_array_equal(batch.paths, paths.propose(SPACE.allowed, 0, 0, 0, 15))


def test_strict_mode_raises_and_stays_where_it_was() -> None:
    sampler = make(-0.95, max_proposals=60, strict=True)
    accepted = sum(HashEngine().log_prob_weak(paths.propose(SPACE.allowed, 0, 0, 0, 60)) <= -0.95)
    with pytest.raises(RejectionError, match=r"accepted \d+ of 60 proposals") as caught:
        sampler.sample(50)
    assert isinstance(caught.value, RuntimeError)
    assert (caught.value.requested, caught.value.accepted, caught.value.proposals) == (50, accepted, 60)
    assert sampler.state_dict()["next"] == 0


def test_nothing_asked() -> None:
    batch = make(-0.5, max_proposals=0).sample(0)
    assert batch.paths.shape == (0, 4)
    assert (batch.proposals, batch.acceptance, batch.fallbacks) == (0, 1.0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_scores_that_are_no_numbers(value: float) -> None:
    class Broken(HashEngine):
        def log_prob_weak(self, paths: np.ndarray) -> np.ndarray:
            scores = super().log_prob_weak(paths)
            scores[3] = value
            return scores

    with pytest.raises(InputError, match="1 NaN or infinite"):
        FilterSampler(SPACE, Broken(), threshold=-0.5).sample(2)


def test_refuses_wrong_shapes_and_options() -> None:
    class Wide(HashEngine):
        def log_prob_weak(self, paths: np.ndarray) -> np.ndarray:
            return super().log_prob_weak(paths)[:, None]

    with pytest.raises(InputError, match="values for 2048 paths"):
        FilterSampler(SPACE, Wide(), threshold=-0.5).sample(1)
    with pytest.raises(InputError, match="threshold"):
        make(float("nan"))
    with pytest.raises(InputError, match="chunk_size"):
        make(-0.5, chunk_size=0)
    with pytest.raises(InputError, match="max_proposals is 3"):
        make(-0.5, max_proposals=3).sample(4)
