"""Training under torch's bf16 autocast on the CPU: whole networks as one step of autograd, near torch's layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nn_network import ALL, Net, images, made
from nn_results import Operators
from torch import Tensor

from greedynas_fast.nn import use_backend
from greedynas_fast.ops import direct
from greedynas_fast.ops.direct import adding_to_grad


def step(net: Net, x: Tensor, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Loss, gradients so far, running statistics; layers add to gradients."""
    torch.manual_seed(3)  # of dropout
    with adding_to_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        loss, _ = net.loss(x)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    return [loss.detach(), *gradients, *(value.clone() for value in net.buffers())]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """In the mean over each tensor, of its size: single numbers differ by many roundings, and zeros by all of them."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        difference = (mine.double() - theirs.double()).square().mean().sqrt()
        assert difference <= tolerance * max(float(theirs.double().square().mean().sqrt()), 5e-3)


@pytest.mark.usefixtures("level")
def test_a_step_is_near_float32s(chains: list[list[str]], ran: list[direct.Laid]) -> None:
    net, alone, float32 = made(), made(), made()
    for number in range(3):  # layers alone at first, then as one
        for each in (net, alone, float32):
            each.zero_grad(set_to_none=number == 1)
        found = step(net, images())
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = alone.loss(images())
        loss.backward()
        assert torch.equal(found[0], loss.detach())
        gradients = [parameter.grad for parameter in alone.parameters()]
        expected = [loss.detach(), *(grad for grad in gradients if grad is not None), *alone.buffers()]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert_near(found, step(float32, images(), torch.float32), 0.3)
    assert chains == [ALL] * 4
    assert all(laid.bf16 for laid in ran[: len(ALL)])


def test_no_farther_from_float32_than_torchs_layers() -> None:
    net, plain, float32 = made(), made(), made()
    use_backend(plain, "reference")
    found, torchs, wanted = step(net, images()), step(plain, images()), step(float32, images(), torch.float32)

    def distance(values: list[Tensor]) -> float:
        pairs = zip(values, wanted, strict=True)
        return sum(float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-3)) for a, b in pairs)

    assert distance(found) < 1.2 * distance(torchs)


def test_types_may_change_from_step_to_step(chains: list[list[str]]) -> None:
    net, other = made(), made()
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
        step(net, images(), dtype)
    assert chains == [ALL] * 2
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        step(other, images(), dtype)
    assert torch.equal(step(other, images())[0], step(net, images())[0])


def test_results_have_autocasts_type(ran: list[direct.Laid]) -> None:
    net = made()
    with torch.autocast("cpu", torch.bfloat16):
        y = net.stem(images())
        assert y.dtype is torch.bfloat16
        y = net.layers[0](y)
        assert y.dtype is torch.bfloat16
        assert net.head(net.layers[3](net.layers[2](y))).dtype is torch.bfloat16
    assert [laid.name for laid in ran] == [*ALL[:-1], "pooled_pointwise"]


def in_float16(net: Net) -> Tensor:
    with torch.autocast("cpu", torch.float16):
        return net.loss(images())[0]


def of_bf16_images(net: Net) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.loss(images().bfloat16())[0]


def of_bf16_layers(net: Net) -> Tensor:
    return net.bfloat16().loss(images().bfloat16())[0]


@pytest.mark.parametrize("run", [in_float16, of_bf16_images, of_bf16_layers])
def test_other_types_run_layer_by_layer(run: Callable[[Net], Tensor], chains: list[list[str]]) -> None:
    net = made()
    step(net, images())
    plain = copy.deepcopy(net)
    use_backend(plain, "reference")
    del chains[:]
    losses = []
    for each in (net, plain):
        torch.manual_seed(3)
        with adding_to_grad():
            losses.append(run(each))
    torch.testing.assert_close(losses[0].float(), losses[1].float(), rtol=0.03, atol=0.03)
    assert ALL not in chains


def test_what_watches_the_backward_pass_sees_operators() -> None:
    net, same = made(), made()
    results = []
    for each, watches in ((net, True), (same, False)):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = each.loss(images())
        if watches:
            with Operators() as watcher:
                loss.backward()
            assert {"greedynas.inverted_residual_backward.default", "aten.convolution.default"} <= watcher.seen
        else:
            loss.backward()
        results.append([parameter.grad for parameter in each.parameters() if parameter.grad is not None])
    assert_near(*results, 0.3)
