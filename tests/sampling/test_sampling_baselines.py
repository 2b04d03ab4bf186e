"""Fair, greedy-pool and tree sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_toys import toy_space

from greedynas_fast.errors import InputError
from greedynas_fast.sampling import FairSampler, GreedyPoolSampler, TreeSampler, pool_probability

SPACE = toy_space(5, 2, 3, 4)


class TestFair:
    @settings(max_examples=40, deadline=None)
    @given(num_ops=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 2**64 - 1))
    def test_each_operation_once_a_group(self, num_ops: list[int], seed: int) -> None:
        sampler = FairSampler(toy_space(*num_ops), seed=seed)
        size = max(num_ops)
        assert sampler.group_size == size
        for _ in range(3):
            group = sampler.sample(size).paths
            for layer, n in enumerate(num_ops):
                counts = np.bincount(group[:, layer], minlength=n)
                assert len(counts) == n
                assert counts.min() == size // n
                assert counts.max() == -(-size // n)

    def test_mask_shrinks_the_group(self) -> None:
        mask = SPACE.allowed
        mask[0, [1, 3]] = False
        sampler = FairSampler(SPACE, mask)
        assert sampler.group_size == 4
        assert sorted(sampler.sample(4).paths[:, 3]) == [0, 1, 2, 3]

    @given(parts=st.lists(st.integers(0, 12), max_size=6))
    @settings(max_examples=30, deadline=None)
    def test_groups_may_be_split(self, parts: list[int]) -> None:
        whole, split = FairSampler(SPACE, seed=4), FairSampler(SPACE, seed=4)
        np.testing.assert_array_equal(
            whole.sample(sum(parts)).paths,
            np.concatenate([np.empty((0, 4), np.uint8), *[split.sample(n).paths for n in parts]]),
        )

    def test_permutations_are_independent_over_layers_and_groups(self) -> None:
        groups = FairSampler(toy_space(3, 3), seed=0).sample(3 * 2000).paths.reshape(2000, 3, 2)
        first = groups[:, 0]
        counts = np.bincount(first[:, 0] * 3 + first[:, 1], minlength=9)
        assert float(((counts - 2000 / 9) ** 2 / (2000 / 9)).sum()) < 26.12  # 0.999 quantile, 8 degrees of freedom


class TestGreedyPool:
    def test_keeps_the_best_half(self) -> None:
        sampler = GreedyPoolSampler(SPACE, seed=1)
        asked = sampler.ask()
        assert asked.shape == (10, 4)
        losses = np.array([3, 1, 2, 9, 8, 7, 1, 5, 4, 6.0])
        np.testing.assert_array_equal(sampler.tell(asked, losses), asked[[1, 6, 2, 0, 8]])

    def test_pool_holds_the_best_with_their_latest_loss(self) -> None:
        sampler = GreedyPoolSampler(SPACE, pool_size=3)
        a, b, c, d = ([0, 0, 0, i] for i in range(4))
        sampler.tell([a, b, c], [1.0, 2.0, 3.0])
        sampler.tell([d, a], [2.5, 9.0])
        np.testing.assert_array_equal(sampler.pool, [b, d, c])
        sampler.tell([c, c], [0.5, 2.2])
        np.testing.assert_array_equal(sampler.pool, [b, c, d])

    def test_epsilon_is_the_share_from_the_pool(self) -> None:
        sampler = GreedyPoolSampler(SPACE, seed=2)
        member = np.array([4, 1, 2, 3], dtype=np.uint8)
        sampler.epsilon = 0.8
        assert len(np.unique(sampler.sample(200).paths, axis=0)) > 50  # the pool is empty still
        sampler.tell(member[None], [1.0])
        share = (sampler.sample(2000).paths == member).all(axis=1).mean()
        assert share == pytest.approx(0.8 + 0.2 / SPACE.size, abs=0.04)

    def test_overlap_tells_when_the_pool_is_steady(self) -> None:
        sampler = GreedyPoolSampler(SPACE, pool_size=4)
        assert sampler.overlap() == 0.0
        sampler.tell([[0, 0, 0, i] for i in range(4)], [4.0, 3.0, 2.0, 1.0])
        assert sampler.overlap() == 0.0
        sampler.mark()
        assert sampler.overlap() == 1.0
        sampler.tell([[1, 0, 0, 0]], [0.5])
        assert sampler.overlap() == 0.75

    def test_probability_schedule(self) -> None:
        assert [pool_probability(step, 20, 120) for step in (0, 20, 70, 120, 200)] == pytest.approx(
            [0, 0, 0.4, 0.8, 0.8]
        )

    def test_bad_input(self) -> None:
        sampler = GreedyPoolSampler(SPACE)
        with pytest.raises(InputError, match="finite"):
            sampler.tell([[0, 0, 0, 0]], [float("nan")])
        with pytest.raises(InputError, match=r"losses \[m\]"):
            sampler.tell([[0, 0, 0, 0]], [1.0, 2.0])
        with pytest.raises(InputError, match="keep"):
            GreedyPoolSampler(SPACE, keep=11)
        assert not len(sampler.pool)


class TestTree:
    def test_finds_the_good_operations(self) -> None:
        best = np.array([3, 1, 0, 2])
        sampler = TreeSampler(SPACE, seed=0)
        wrong = np.empty(0)
        for _ in range(600):
            drawn = sampler.sample(2).paths
            wrong = np.append(wrong, (drawn != best).sum(axis=1))
            sampler.tell(drawn, 1.0 + 0.25 * wrong[-2:])
        assert wrong[-200:].mean() < 0.5  # uniform paths have 2.7 of 4 operations wrong on average

    def test_learns_what_is_good_after_a_prefix_only(self) -> None:
        space = toy_space(2, 2)
        sampler = TreeSampler(space, seed=3, sharing=0.0)
        drawn = np.empty((0, 2), np.uint8)
        for _ in range(400):
            drawn = sampler.sample(4).paths
            sampler.tell(drawn, 1.0 + (drawn[:, 0] != drawn[:, 1]))  # the second operation should equal the first
        last = sampler.sample(400).paths
        assert (last[:, 0] == last[:, 1]).mean() > 0.95

    def test_tries_every_operation_first(self) -> None:
        sampler = TreeSampler(toy_space(6, 6), seed=1)
        for _ in range(6):
            sampler.tell(sampler.sample(1).paths, [1.0])
        visits = sampler.state_dict()["visits"][:2]
        assert torch.equal(visits, torch.ones(2, 6, dtype=torch.int64))

    def test_rewards_are_averaged_as_documented(self) -> None:
        sampler = TreeSampler(toy_space(2, 2), decay=0.5)
        sampler.tell([[0, 1], [0, 0]], [2.0, 1.0])  # rewards 2/2, then (0.5 * 2 + 0.5 * 1) / 1
        state = sampler.state_dict()
        assert state["mean_loss"] == 1.5
        assert state["values"][:2].tolist() == [[1.25, 0.0], [1.5, 1.0]]  # shared by a depth
        assert state["values"][2].tolist() == [1.25, 0.0]  # the root
        assert state["values"][3].tolist() == [1.5, 1.0]  # after operation 0: added by the first path

    def test_tree_stops_to_grow(self) -> None:
        sampler = TreeSampler(SPACE, seed=1, max_nodes=10)
        for _ in range(30):
            drawn = sampler.sample(3).paths
            sampler.tell(drawn, np.ones(3))
        assert sampler.num_nodes == 10

    def test_bad_input(self) -> None:
        sampler = TreeSampler(SPACE)
        for losses in ([0.0], [-1.0], [float("nan")], [float("inf")]):
            with pytest.raises(InputError, match="finite and above 0"):
                sampler.tell([[0, 0, 0, 0]], losses)
        with pytest.raises(InputError, match="not allowed"):
            sampler.tell([[0, 2, 0, 0]], [1.0])
        with pytest.raises(InputError, match="not allowed"):
            sampler.tell([[9, 0, 0, 0]], [1.0])
        with pytest.raises(InputError, match="expected paths"):
            sampler.tell([[0, 0, 0]], [1.0])
        with pytest.raises(InputError, match="temperature"):
            TreeSampler(SPACE, temperature=0)
