"""Uniform sampling, and what all samplers share: masks, seeds, states that survive `torch.save`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sampling_toys import HashEngine, toy_space

from greedynas_fast import paths, spaces
from greedynas_fast.errors import InputError
from greedynas_fast.sampling import (
    FairSampler,
    FilterSampler,
    GreedyPoolSampler,
    Sampler,
    TreeSampler,
    UniformSampler,
    check_mask,
)

SPACE = toy_space(3, 2, 4)


def filter_sampler(space: Any, allowed: Any = None, seed: int = 0, stream: int = 0) -> FilterSampler:
    return FilterSampler(space, HashEngine(), threshold=-0.5, allowed=allowed, seed=seed, stream=stream)


MAKERS: list[Callable[..., Sampler]] = [UniformSampler, FairSampler, TreeSampler, GreedyPoolSampler, filter_sampler]


def test_uniform_is_uniform_over_the_mask() -> None:
    mask = SPACE.allowed
    mask[0, 1] = mask[2, 0] = False
    n = 12_000
    drawn = UniformSampler(SPACE, mask, seed=5).sample(n).paths
    codes, counts = np.unique(drawn @ np.array([100, 10, 1]), return_counts=True)
    cells = 2 * 2 * 3
    assert len(codes) == cells
    chi_square = float(((counts - n / cells) ** 2 / (n / cells)).sum())
    assert chi_square < 31.26  # 0.999 quantile of chi-square with 11 degrees of freedom
    assert set(drawn[:, 0]) == {0, 2}


def test_uniform_draws_numbered_proposals() -> None:
    sampler = UniformSampler(SPACE, seed=3, stream=9)
    parts = [sampler.sample(n).paths for n in (0, 1, 7, 0, 4)]
    assert parts[0].shape == (0, 3)
    np.testing.assert_array_equal(np.concatenate(parts), paths.propose(SPACE.allowed, 3, 9, 0, 12))


@pytest.mark.parametrize("make", MAKERS)
class TestEverySampler:
    def test_same_seed_same_paths_other_seed_others(self, make: Callable[..., Sampler]) -> None:
        space = spaces.get("mb-se")
        first = make(space, None, 1, 2).sample(20).paths
        np.testing.assert_array_equal(first, make(space, None, 1, 2).sample(20).paths)
        assert first.dtype == np.uint8
        assert (first != make(space, None, 2, 2).sample(20).paths).any()
        assert (first != make(space, None, 1, 3).sample(20).paths).any()

    def test_ignores_and_keeps_the_global_generators(self, make: Callable[..., Sampler]) -> None:
        np.random.seed(0)  # noqa: NPY002
        first = make(SPACE).sample(50).paths
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = torch.get_rng_state()
        np.testing.assert_array_equal(first, make(SPACE).sample(50).paths)
        assert torch.equal(before, torch.get_rng_state())

    def test_respects_the_mask(self, make: Callable[..., Sampler]) -> None:
        mask = SPACE.allowed
        mask[0, 0] = mask[2, 1:3] = False
        drawn = make(SPACE, mask).sample(200).paths
        assert mask[np.arange(3), drawn].all()
        assert {tuple(row) for row in drawn} <= {(a, b, c) for a in (1, 2) for b in (0, 1) for c in (0, 3)}

    def test_state_survives_a_file(self, make: Callable[..., Sampler]) -> None:
        sampler = make(SPACE, None, 7)
        told = sampler.sample(13).paths
        if isinstance(sampler, (GreedyPoolSampler, TreeSampler)):
            sampler.tell(told, np.linspace(1, 2, len(told)))
        if isinstance(sampler, GreedyPoolSampler):
            sampler.epsilon = 0.5
        buffer = io.BytesIO()
        torch.save(sampler.state_dict(), buffer)
        expected = sampler.sample(30)
        buffer.seek(0)
        reloaded = make(SPACE, None, 7)
        reloaded.load_state_dict(torch.load(buffer, weights_only=True))
        again = reloaded.sample(30)
        np.testing.assert_array_equal(again.paths, expected.paths)
        assert (again.proposals, again.acceptance) == (expected.proposals, expected.acceptance)

    def test_refuses_the_state_of_another(self, make: Callable[..., Sampler]) -> None:
        state = make(SPACE, None, 7).state_dict()
        with pytest.raises(InputError, match="seed is 7, this sampler has 8"):
            make(SPACE, None, 8).load_state_dict(state)
        mask = SPACE.allowed
        mask[0, 0] = False
        with pytest.raises(InputError, match=r"allowed is '1110\|1100\|1111', this sampler has '0110"):
            make(SPACE, mask, 7).load_state_dict(state)
        with pytest.raises(InputError, match="kind"):
            make(SPACE, None, 7).load_state_dict({**state, "kind": "other"})

    @pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
    def test_refuses_bad_counts(self, make: Callable[..., Sampler], n: Any) -> None:
        with pytest.raises(InputError, match="n must be a whole number"):
            make(SPACE).sample(n)

    @pytest.mark.parametrize(("seed", "stream", "word"), [(-1, 0, "seed"), (2**64, 0, "seed"), (0, 2**32, "stream")])
    def test_refuses_bad_keys(self, make: Callable[..., Sampler], seed: int, stream: int, word: str) -> None:
        with pytest.raises(InputError, match=word):
            make(SPACE, None, seed, stream)

    def test_refuses_bad_masks(self, make: Callable[..., Sampler]) -> None:
        empty = SPACE.allowed
        empty[1] = False
        with pytest.raises(InputError, match="layer 1 has no operation left"):
            make(SPACE, empty)
        with pytest.raises(InputError, match="layer 0 of the space toy has no operation 3"):
            make(SPACE, np.ones((3, 4), dtype=bool))
        with pytest.raises(InputError, match=r"boolean mask \[3, 4\].*got int64 \[3, 4\]"):
            make(SPACE, SPACE.allowed.astype(np.int64))
        with pytest.raises(InputError, match=r"got bool \[2, 4\]"):
            make(SPACE, SPACE.allowed[:2])


def test_masks_are_copied() -> None:
    mask = SPACE.allowed
    kept = check_mask(SPACE, mask)
    mask[:] = False
    np.testing.assert_array_equal(kept, SPACE.allowed)
