"""Layers that run as one step of autograd: the bits of running them one by one, and when they do not run as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nn_network import ALL, Net, images, made
from nn_results import assert_close
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from greedynas_fast.errors import InputError
from greedynas_fast.nn import ConvIdentity, loss_in_turn, run_in_turn, use_backend
from greedynas_fast.ops import direct
from greedynas_fast.ops.direct import adding_to_grad


def step(net: Net, x: Tensor, adds: bool = True) -> list[Tensor]:
    """Loss, correct images, gradients so far, running statistics."""
    torch.manual_seed(3)  # of dropout
    if adds:
        with adding_to_grad():
            loss, correct = net.loss(x)
    else:
        loss, correct = net.loss(x)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    return [loss.detach(), correct, *gradients, *(value.clone() for value in net.buffers())]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.usefixtures("level")
def test_the_bits_of_one_layer_after_the_other(chains: list[list[str]]) -> None:
    net, plain, reference = made(), made(), made()
    use_backend(reference, "reference")
    for _ in range(3):  # layers alone at first, then as one, then on top of gradients
        found = step(net, images())
        assert_same(found, step(plain, images(), adds=False))
        assert_close(found, step(reference, images()))
    assert chains == [ALL] * 2


@pytest.mark.parametrize(
    ("sizes", "alone"),
    [
        ((5, 5, 3, 3, 5, 3), [0, 2]),  # parts of a batch that cannot be equal
        ((5, 3, 4, 3, 4, 5, 3), [0, 1, 2, 5, 6]),
    ],
)
def test_two_batch_sizes_run_alone_once(sizes: tuple[int, ...], alone: list[int], chains: list[list[str]]) -> None:
    net, plain = made(), made()
    ran_alone = []
    for number, n in enumerate(sizes):
        before = len(chains)
        assert_same(step(net, images(n)), step(plain, images(n), adds=False))
        if len(chains) == before:
            ran_alone.append(number)
    assert ran_alone == alone
    assert all(names == ALL for names in chains)


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    found = []
    for _ in thread_counts:
        net = made()
        step(net, images())
        found.append(step(net, images()))
    for other in found[1:]:
        assert_same(other, found[0])


def hook(of: Callable[[Net], nn.Module]) -> Callable[[Net], Any]:
    return lambda net: of(net).register_forward_hook(lambda *_: None)


def frozen(net: Net) -> None:
    net.layers[2].bn2.weight.requires_grad_(False)


def hooked_parameter(net: Net) -> None:
    net.layers[2].bn2.weight.register_hook(lambda grad: grad)


def in_a_sequence(net: Net) -> None:
    net.layers[2] = nn.Sequential(net.layers[2])


def other_shape(net: Net) -> None:
    torch.manual_seed(1)
    net.layers[1] = ConvIdentity(8, 8, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (hook(lambda net: net.stem), [ALL[1:4]]),
        (hook(lambda net: net.stem.blocks), [ALL[1:4]]),
        (hook(lambda net: net.stem.blocks[0]), [ALL[:1], ALL[1:4]]),
        (hook(lambda net: net.layers[0]), [ALL[:2], ALL[1:3]]),
        (hook(lambda net: net.layers[1]), [ALL[:3], ALL[1:3]]),
        (hook(lambda net: net.layers[2].bn2), [ALL[:3], ALL[1:2]]),
        (hook(lambda net: net.head), [ALL[:5]]),
        (hook(lambda net: net.head.classifier), [ALL[:5]]),
        (frozen, [ALL[:3], ALL[1:2]]),
        (hooked_parameter, [ALL[:3], ALL[1:2]]),
        (in_a_sequence, [ALL[:3], ALL[1:2]]),
        (other_shape, [ALL[:3], ALL[1:3]]),
        (lambda net: use_backend(net.layers[2], "reference"), [ALL[:3], ALL[1:2]]),
    ],
)
def test_what_cannot_be_part_of_it(
    change: Callable[[Net], Any], expected: list[list[str]], chains: list[list[str]]
) -> None:
    net, plain = made(), made()
    for each in (net, plain):
        change(each)
    for _ in range(2):
        assert_same(step(net, images()), step(plain, images(), adds=False))
    assert chains[-len(expected) :] == expected


def test_only_where_layers_add_to_gradients(chains: list[list[str]]) -> None:
    net, x = made(), images()
    step(net, x)
    step(net, x, adds=False)
    with adding_to_grad(), torch.no_grad():
        net.loss(x)
    with adding_to_grad(), torch.autocast("cpu", torch.bfloat16):
        net.loss(x)
    with adding_to_grad():
        net.loss(images().requires_grad_())
    assert ALL not in chains
    step(net, x)
    assert chains[-1] == ALL


def test_profilers_see_each_layer() -> None:
    net, x = made(), images()
    step(net, x)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:  # torch 2.11 warns without
        step(net, x)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts["greedynas::inverted_residual"] == 4
    assert counts["greedynas::head_loss"] == 1


def test_gradients_of_other_kinds_are_added_to_as_well(chains: list[list[str]]) -> None:
    net, plain = made(), made()
    for each in (net, plain):
        step(each, images(), adds=False)
        for parameter in each.parameters():
            parameter.grad = None
    step(plain, images(), adds=False)
    some = [number % 2 == 1 for number, _ in enumerate(net.parameters())]
    for there, parameter in zip(some, net.parameters(), strict=True):
        if there:
            parameter.grad = torch.ones_like(parameter)
    weight = net.layers[0].conv_pw.weight
    weight.grad = torch.ones(weight.shape[::-1]).permute(3, 2, 1, 0)  # of other strides
    step(net, images())
    assert chains == [ALL]
    for there, mine, theirs in zip(some, net.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad + (1.0 if there or mine is weight else 0.0))


def test_backward_twice_and_never_through_itself() -> None:
    net, plain, x = made(), made(), images()
    for each in (net, plain):
        step(each, x)
        for parameter in each.parameters():
            parameter.grad = None
    torch.manual_seed(3)
    with adding_to_grad():
        loss, _ = net.loss(x)
    for _ in range(2):
        loss.backward(retain_graph=True)
    torch.manual_seed(3)
    loss, _ = plain.loss(x)
    for _ in range(2):
        loss.backward(retain_graph=True)
    assert_same(*([p.grad for p in each.parameters() if p.grad is not None] for each in (net, plain)))
    features = torch.randn(5, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    with adding_to_grad():
        run_in_turn(net.layers, features)
        loss = run_in_turn(net.layers, features).square().sum()
    (again,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_weights_that_changed_are_an_error_and_add_nothing() -> None:
    net, x = made(), images()
    step(net, x)
    for parameter in net.parameters():
        parameter.grad = None
    with adding_to_grad():
        loss, _ = net.loss(x)
    with torch.no_grad():
        net.layers[0].bn1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_bad_labels_change_nothing() -> None:
    net, x = made(), images()
    step(net, x)
    before = [value.clone() for value in net.buffers()]
    with adding_to_grad(), pytest.raises(InputError, match="labels: expected 0 to 3, got 9"):
        loss_in_turn(net.stem, net.layers, net.head, x, torch.tensor([0, 1, 9, 0, 1]), 0.1)
    assert_same(list(net.buffers()), before)


def test_no_layers_and_no_blocks() -> None:
    x = images()
    with adding_to_grad():
        assert run_in_turn([], x) is x
        assert run_in_turn([nn.Identity(), nn.Identity()], x) is x


@pytest.mark.parametrize("inside", [True, False])
def test_gradients_of_flat_parameters(inside: bool, chains: list[list[str]]) -> None:
    """As a parameter bank has them; where a parameter is elsewhere, they are found as always."""
    net, plain = made(), made()
    count = sum(parameter.numel() for parameter in net.parameters())
    data, grads, start = torch.zeros(count), torch.zeros(count), 0
    for parameter in net.parameters():
        value, grad = (
            buffer[start : start + parameter.numel()].as_strided(parameter.shape, parameter.stride(), start)
            for buffer in (data, grads)
        )
        value.copy_(parameter.detach())
        parameter.data, parameter.grad = value, grad
        start += parameter.numel()
    if not inside:
        net.head.bn.weight.data = net.head.bn.weight.data.clone()
    for _ in range(2):
        grads.zero_()
        for parameter in plain.parameters():
            parameter.grad = None
        torch.manual_seed(3)
        with adding_to_grad(direct.Flat(data, grads)):
            loss, _ = net.loss(images())
        loss.backward()
        step(plain, images(), adds=False)
        assert_same(*([p.grad for p in each.parameters() if p.grad is not None] for each in (net, plain)))
    assert chains == [ALL]
