"""Gradients of the active blocks added up over ranks, against one sum of all gradients after the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks, successes
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.runtime import World, all_reduce
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet import GradientReducer, ParameterBank, Supernet

PATHS = [(0, 2, 3, 4), (1, 2, 0, 5), (4, 4, 3, 0)]
BATCHES = (5, 3)  # images of each rank
UNTOUCHED = 7.25


class Messages:
    """`all_reduce` that remembers what was sent, and how many gradients had come by then."""

    def __init__(self) -> None:
        self.floats: list[int] = []
        self.arrived: list[int] = []
        self.count = 0

    def __call__(self, tensor: Tensor) -> Any:
        self.floats.append(tensor.numel())
        self.arrived.append(self.count)
        return all_reduce(tensor)

    def watch(self, net: nn.Module) -> None:
        """Count gradients; before the reducer's own hooks, so that a gradient that sends a bucket is counted."""
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, parameter: Tensor) -> None:
        self.count += 1


def _loss(net: Supernet, path: tuple[int, ...], rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(BATCHES[rank], 3, 16, 16, generator=generator)
    labels = torch.arange(BATCHES[rank]) % 5
    torch.manual_seed(step)
    return functional.cross_entropy(net(images, path), labels) * (BATCHES[rank] / sum(BATCHES))


def _reduce(world: World, space: SearchSpace, bucket_floats: int, spare: bool) -> list[dict[str, Any]]:
    """Three steps of a reducer, and of its oracle; what a rank finds out about each.

    Args:
        world: the ranks.
        space: what to train.
        bucket_floats: of the reducer.
        spare: give an operation of the first path a parameter that it does not use.
    """
    net, other = Supernet(space, seed=1).train(), Supernet(space, seed=1).train()
    if spare:
        for one in (net, other):
            one.layers[0][0].register_parameter("spare", nn.Parameter(torch.zeros(3)))
    bank, oracle = ParameterBank(net), ParameterBank(other)
    messages = Messages()
    messages.watch(net)
    reducer = GradientReducer(bank, messages, bucket_floats)
    found = []
    for step, path in enumerate(PATHS):
        active = np.zeros(len(bank.grad), dtype=bool)
        for block in bank.active(path):
            active[block.start : block.end] = True
        mask = torch.from_numpy(active)
        for grad in (bank.grad, oracle.grad):
            grad.fill_(UNTOUCHED).masked_fill_(mask, 0.0)
        messages.floats, messages.arrived, messages.count = [], [], 0
        reducer.begin(np.array([path]), torch.tensor([world.rank + 1.0, 10.0]))
        _loss(net, path, world.rank, step).backward()
        before = len(messages.floats)
        tail = reducer.finish().tolist()
        _loss(other, path, world.rank, step).backward()
        wanted = oracle.grad.clone()
        all_reduce(wanted).wait()
        found.append(
            {
                "equal": torch.equal(bank.grad[mask], wanted[mask]),
                "moved": bool(bank.grad[mask].abs().sum() > 0),
                "untouched": bool((bank.grad[~mask] == UNTOUCHED).all()) and bool((~mask).any()),
                "tail": tail,
                "active": int(mask.sum()),
                "floats": messages.floats,
                "in_backward": before,
                "arrived": messages.arrived,
                "total": messages.count,
            }
        )
    reducer.close()
    _loss(net, PATHS[0], world.rank, 0).backward()
    found[-1]["closed"] = len(messages.floats)
    return found


def _reduce_groups(world: World, space: SearchSpace, bucket_floats: int) -> list[dict[str, Any]]:
    """Two steps that train several paths each; what a rank finds out about them."""
    net, other = Supernet(space, seed=1).train(), Supernet(space, seed=1).train()
    bank, oracle = ParameterBank(net), ParameterBank(other)
    messages = Messages()
    messages.watch(net)
    reducer = GradientReducer(bank, messages, bucket_floats)
    found = []
    for step, group in enumerate((np.array(PATHS), np.array([PATHS[1], PATHS[0], PATHS[1]]))):
        paths = [tuple(path) for path in group.tolist()]
        active = np.zeros(len(bank.grad), dtype=bool)
        for block in bank.active(group):
            active[block.start : block.end] = True
        mask = torch.from_numpy(active)
        for grad in (bank.grad, oracle.grad):
            grad.fill_(UNTOUCHED).masked_fill_(mask, 0.0)
        for index, path in enumerate(paths[:-1]):
            _loss(net, path, world.rank, 10 * step + index).backward()
        messages.floats, messages.arrived, messages.count = [], [], 0
        reducer.begin(group, torch.tensor([world.rank + 1.0, 10.0]))
        at_once = sum(messages.floats)
        _loss(net, paths[-1], world.rank, 10 * step + len(paths) - 1).backward()
        before = len(messages.floats)
        tail = reducer.finish().tolist()
        for index, path in enumerate(paths):
            _loss(other, path, world.rank, 10 * step + index).backward()
        wanted = oracle.grad.clone()
        all_reduce(wanted).wait()
        last = {(block.start, block.end) for block in bank.active(paths[-1])}
        found.append(
            {
                "equal": torch.equal(bank.grad[mask], wanted[mask]),
                "untouched": bool((bank.grad[~mask] == UNTOUCHED).all()) and bool((~mask).any()),
                "tail": tail,
                "active": int(mask.sum()),
                "left": sum(b.end - b.start for b in bank.active(group) if (b.start, b.end) not in last),
                "at_once": at_once,
                "floats": messages.floats,
                "in_backward": before,
            }
        )
    return found


@pytest.mark.parametrize("bucket_floats", [1, 2000, 1 << 20])
def test_the_bank_holds_the_sum_over_several_paths(space: SearchSpace, bucket_floats: int) -> None:
    for steps in successes(run_ranks(2, _reduce_groups, space, bucket_floats)):
        for step in steps:
            assert step["equal"]
            assert step["untouched"]
            assert step["tail"] == [3.0, 20.0]
            assert sum(step["floats"]) == step["active"] + 2
            assert step["in_backward"] == len(step["floats"]), "none waits for the end of the backward pass"
            # What the last pass does not touch is sent before it, as far as it fills buckets.
            assert step["left"] > 2000
            assert step["left"] - bucket_floats < step["at_once"] <= step["left"]
            assert (step["at_once"] == step["left"]) or bucket_floats > 1


@pytest.mark.parametrize("bucket_floats", [1, 2000, 1 << 20])
def test_the_bank_holds_the_sum_of_all_ranks(space: SearchSpace, bucket_floats: int) -> None:
    for steps in successes(run_ranks(2, _reduce, space, bucket_floats, False)):
        for path, step in zip(PATHS, steps, strict=True):
            assert step["equal"]
            assert step["moved"]
            assert step["untouched"]
            assert step["tail"] == [3.0, 20.0]
            # Active gradients and the tail are all that is sent, whole blocks each time.
            assert sum(step["floats"]) == step["active"] + 2
            blocks = 5 - (path[1] == 2)  # an identity has none
            assert len(step["floats"]) in {1: [blocks], 1 << 20: [1]}.get(bucket_floats, range(2, blocks))
            assert all(floats >= bucket_floats for floats in step["floats"][:-1])
        assert steps[-1]["closed"] == len(steps[-1]["floats"])  # it listens no longer


def test_buckets_are_sent_while_the_backward_pass_goes_on(space: SearchSpace) -> None:
    for steps in successes(run_ranks(2, _reduce, space, 1, False)):
        for step in steps:
            assert step["in_backward"] == len(step["floats"]), "none waits for the end of the backward pass"
            assert step["arrived"] == sorted(set(step["arrived"])), "each is sent when its own last gradient has come"
            assert step["arrived"][-1] == step["total"]


def test_a_parameter_without_gradient_holds_nothing_up(space: SearchSpace) -> None:
    for steps in successes(run_ranks(2, _reduce, space, 1, True)):
        assert all(step["equal"] and step["untouched"] and step["tail"] == [3.0, 20.0] for step in steps)
        assert steps[0]["in_backward"] < len(steps[0]["floats"]), "its path is the first: its bucket goes at the end"
        assert steps[1]["in_backward"] == len(steps[1]["floats"])
