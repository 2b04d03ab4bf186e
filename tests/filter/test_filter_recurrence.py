"""The recurrence in the compiled core against torch's operators in double precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from greedynas_fast.filter import core_recurrence
from greedynas_fast.filter.network import PathFilter

SHARE = 0.3  # of the first of two mixed paths
CASES = [
    ((4,), 3, 1),
    ((3, 2, 4), 5, 1),
    ((3, 2, 4), 16, 40),  # beginnings are shared up to the last layer, which has fewer than paths
    ((7,) * 6, 64, 90),
    ((2,) * 8, 17, 200),
    ((32, 1, 32), 33, 130),
]


def made(num_ops: Sequence[int], hidden: int, count: int) -> tuple[PathFilter, Tensor, Tensor]:
    """A network with large weights, and two sets of paths."""
    generator = torch.Generator().manual_seed(1)
    first, second = (
        torch.stack([torch.randint(ops, (count,), generator=generator) for ops in num_ops], dim=1) for _ in range(2)
    )
    return PathFilter(num_ops, hidden, seed=2, embedding_std=2.0), first, second


def results(net: PathFilter, first: Tensor, second: Tensor | None) -> list[Tensor]:
    """Outputs, and the gradients of all parameters."""
    output = net(first) if second is None else net.forward_mixed(first, second, SHARE)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), list(net.parameters()))]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many paths the core ran each time."""
    counts: list[int] = []
    run = core_recurrence.last_states

    def spy(*args: Any) -> Tensor:
        states = run(*args)
        counts.append(len(states))
        return states

    monkeypatch.setattr(core_recurrence, "last_states", spy)
    return counts


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: tuple[Sequence[int], int, int], mixed: bool, ran: list[int]) -> None:
    net, first, second = made(*case)
    exact = copy.deepcopy(net).double()
    found = results(net, first, second if mixed else None)
    assert ran == [len(first)]
    expected = results(exact, first, second if mixed else None)
    assert ran == [len(first)]
    for value, target in zip(found, expected, strict=True):
        # Sums of up to a few hundred products, rounded step after step.
        torch.testing.assert_close(value.double(), target, rtol=1e-5, atol=2e-5 * float(target.abs().max()))


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    net, first, second = made((13,) * 5, 40, 300)
    found = [[*results(net, first, None), *results(net, first, second)] for _ in thread_counts]
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_large_states_saturate_and_broken_ones_show(ran: list[int]) -> None:
    net, first, _ = made((3, 2, 4), 8, 20)
    with torch.no_grad():
        net.embedding *= 1e4
    assert all(value.isfinite().all() for value in results(net, first, None))
    with torch.no_grad():
        net.recurrent()[0][3, 4] = float("nan")
    assert net(first).isnan().all()
    assert ran == [20, 20]


def test_what_the_core_does_not_run(ran: list[int]) -> None:
    net, first, _ = made((3, 2, 4), 8, 20)
    assert net(first[:0]).shape == (0, 2)
    net.log_prob_weak(first)
    net.double()(first)
    assert ran == []


def test_once_differentiable_and_watched() -> None:
    net, first, _ = made((3, 2, 4), 8, 20)
    weight = net.recurrent()[0]
    (grad,) = torch.autograd.grad(net(first).sum(), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    output = net(first)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_twice() -> None:
    net, first, _ = made((3, 2, 4), 8, 20)
    loss = net(first).square().sum()
    once, again = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, again))
