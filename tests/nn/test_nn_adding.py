"""Layers that add to the gradients of their parameters themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nn_results import Operators
from torch import Tensor, nn

from greedynas_fast.nn import Head, InvertedResidual, use_backend
from greedynas_fast.nn.stem_head import Stem
from greedynas_fast.ops.direct import adding_to_grad
from greedynas_fast.spaces.specs import HeadSpec, InvertedResidualSpec, SqueezeExciteSpec, StemSpec


def block() -> nn.Module:
    gate = SqueezeExciteSpec(0.25, "relu", "hard_sigmoid")
    return InvertedResidual(InvertedResidualSpec("block", 3, (3, 5), se=gate), 8, 8, 1)


def head() -> nn.Module:
    return Head(HeadSpec(8, 20, "relu", dropout=0.0), 4)


def stem() -> nn.Module:
    return Stem(StemSpec(8, 3, 1, "hard_swish"), 8)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().train()


def images() -> Tensor:
    x = torch.randn(4, 8, 6, 5, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def loss_of(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()


def adding_loss(module: nn.Module, x: Tensor) -> Tensor:
    with adding_to_grad():
        return loss_of(module(x))


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    found = [x.grad, *(parameter.grad for parameter in module.parameters())]
    return [value.clone() for value in found if value is not None]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def num_edges(loss: Tensor) -> int:
    """Edges of the graph to leaves."""
    waiting, leaves = [loss.grad_fn], 0
    while waiting:
        node = waiting.pop()
        assert node is not None
        following = [other for other, _ in node.next_functions if other is not None]
        leaves += not following
        waiting += following
    return leaves


@pytest.mark.parametrize("make", [block, head, stem])
def test_adds_what_autograd_would(make: Callable[[], nn.Module]) -> None:
    plain = made(make)
    adding, x, same = copy.deepcopy(plain), images(), images()
    for _ in range(3):  # without gradients at first, then on top of them
        loss_of(plain(x)).backward()
        loss = adding_loss(adding, same)
        assert num_edges(loss) < num_edges(loss_of(plain(x)))
        loss.backward()
        assert_same(gradients(adding, same), gradients(plain, x))
    for mine, theirs in zip(adding.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.stride() == theirs.grad.stride()


def test_nothing_changes_outside() -> None:
    module, x = made(block), images()
    adding_loss(module, x)
    leaves = num_edges(loss_of(module(x)))
    assert leaves == 1 + len(list(module.parameters()))
    assert num_edges(adding_loss(module, x)) == 1


def test_gradients_of_other_kinds_are_added_to_as_well() -> None:
    plain, adding = made(block), made(block)
    loss_of(plain(images())).backward()
    some = [number % 2 == 1 for number, _ in enumerate(adding.parameters())]
    for there, parameter in zip(some, adding.parameters(), strict=True):
        if there:
            parameter.grad = torch.ones_like(parameter)
    weight = next(p for p in adding.parameters() if p.shape[:2] == (8, 24))
    weight.grad = torch.ones(24, 8, 1, 1).transpose(0, 1)  # with gaps
    adding_loss(adding, images()).backward()
    for there, mine, theirs in zip(some, adding.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad + (1.0 if there or mine is weight else 0.0))


def test_hooks_of_parameters_are_called() -> None:
    module, x, seen = made(block), images(), []
    first, second, *_ = module.parameters()
    first.register_hook(lambda grad: 2 * grad)
    handle = second.register_post_accumulate_grad_hook(seen.append)
    plain = made(block)
    adding_loss(module, x).backward()
    loss_of(plain(images())).backward()
    expected = [p.grad for p in plain.parameters()]
    assert torch.equal(first.grad, 2 * expected[0])
    assert len(seen) == 1
    handle.remove()
    adding_loss(module, x).backward()
    assert len(seen) == 1


def test_frozen_parameters_stay_without_gradient() -> None:
    module, x = made(block), images()
    first, *others = module.parameters()
    first.requires_grad_(False)
    adding_loss(module, x).backward()
    assert first.grad is None
    assert all(parameter.grad is not None for parameter in others)


def test_an_input_without_gradient() -> None:
    module, plain = made(block), made(block)
    adding_loss(module, images().detach()).backward()
    loss_of(plain(images().detach())).backward()
    assert_same([p.grad for p in module.parameters()], [p.grad for p in plain.parameters()])
    with torch.no_grad(), adding_to_grad():
        assert not module(images()).requires_grad


def test_a_watched_backward_pass_adds_too() -> None:
    module, plain, x = made(block), made(block), images()
    loss_of(plain(images())).backward()
    for times in (1, 2):
        loss = adding_loss(module, x)
        with Operators() as watcher:
            loss.backward()
        assert "greedynas.inverted_residual_backward.default" in watcher.seen
        for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(mine.grad, times * theirs.grad)


def test_backward_twice_and_never_through_itself() -> None:
    module, plain, x = made(block), made(block), images()
    loss = adding_loss(module, x)
    for _ in range(2):
        loss.backward(retain_graph=True)
    same = images()
    loss = loss_of(plain(same))
    for _ in range(2):
        loss.backward(retain_graph=True)
    assert_same(gradients(module, x), gradients(plain, same))
    with adding_to_grad():
        loss = module(x).square().sum()
    (again,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_weights_that_changed_are_an_error_and_add_nothing() -> None:
    module, x = made(block), images()
    loss = adding_loss(module, x)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_layers_of_torch_are_left_alone() -> None:
    module, x = made(block), images()
    use_backend(module, "reference")
    assert num_edges(adding_loss(module, x)) == num_edges(loss_of(module(x)))
