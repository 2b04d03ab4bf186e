"""Blocks that are laid out once and then run without operators: they notice every change, and equal the operator."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from nn_results import Operators, results
from torch import nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn import InvertedResidual, use_backend
from greedynas_fast.ops import direct, inverted_residual_core
from greedynas_fast.spaces.specs import InvertedResidualSpec, SqueezeExciteSpec

X = torch.randn(4, 8, 6, 5, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)
SE = SqueezeExciteSpec(0.25, "relu", "hard_sigmoid")


def make(expansion: int = 3, *, gated: bool = True, kernels: tuple[int, ...] = (3, 5)) -> InvertedResidual:
    torch.manual_seed(0)
    module = InvertedResidual(InvertedResidualSpec("block", expansion, kernels, se=SE if gated else None), 8, 8, 1)
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module.train()


def by_operator(module: nn.Module, x: torch.Tensor = X) -> list[torch.Tensor]:
    """The same from a copy, with something that watches operators."""
    copied = copy.deepcopy(module)
    with Operators() as watcher:
        found = results(copied, x)
    assert {"greedynas.inverted_residual.default", "greedynas.inverted_residual_backward.default"} <= watcher.seen
    return found


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("expansion", "in_caches"), [(1, False), (3, False), (3, True)])
def test_equals_the_operator(
    expansion: int, in_caches: bool, gated: bool, ran: list[direct.Laid], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inverted_residual_core,
        "expands_in_caches",
        lambda _, expand, keep, bf16=False: in_caches and not (expand is None or bf16),
    )
    module = make(expansion, gated=gated)
    for x in (X, X, X[:, :, :3].contiguous(memory_format=torch.channels_last), X):
        expected = by_operator(module, x)
        del ran[:]
        assert_same(results(module, x), expected)
        assert len(ran) == 1
    with torch.no_grad():
        assert torch.equal(module(X), expected[0])
    assert len(ran) == 2


def test_one_layout_serves_until_something_changes(ran: list[direct.Laid]) -> None:
    module = make()
    for _ in range(3):
        module(X)
    with torch.no_grad():
        module.conv_pwl.weight.mul_(2)  # in place: read anew by every call
    expected = by_operator(module)
    assert_same(results(module, X), expected)
    assert len(set(map(id, ran))) == 1


def replace_parameter(module: InvertedResidual) -> None:
    module.bn2.weight = nn.Parameter(3 * module.bn2.weight.detach())


def replace_data(module: InvertedResidual) -> None:
    module.conv_pw.weight.data = 2 * module.conv_pw.weight.data


def replace_layer(module: InvertedResidual) -> None:
    module.bn1 = nn.BatchNorm2d(24, eps=0.1)


def change_eps(module: InvertedResidual) -> None:
    module.bn3.eps = 0.5


def change_momentum(module: InvertedResidual) -> None:
    module.bn3.momentum = 0.5


def average_all(module: InvertedResidual) -> None:
    module.bn1.momentum = None


def stop_tracking(module: InvertedResidual) -> None:
    module.bn2.track_running_stats = False


def replace_buffer(module: InvertedResidual) -> None:
    module.bn2.running_mean = torch.ones(24)


def use_double_statistics(module: InvertedResidual) -> None:
    module.bn2.running_mean = torch.ones(24, dtype=torch.float64)


def replace_activation(module: InvertedResidual) -> None:
    module.act1 = module.act2 = nn.ReLU()


def freeze_one(module: InvertedResidual) -> None:
    module.bn1.eval()


def parametrise(module: InvertedResidual) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(module.conv_pwl, "weight", Double())


@pytest.mark.parametrize(
    "change",
    [
        replace_parameter,
        replace_data,
        replace_layer,
        change_eps,
        change_momentum,
        average_all,
        stop_tracking,
        replace_buffer,
        replace_activation,
        parametrise,
    ],
)
def test_changes_are_noticed(change: Callable[[InvertedResidual], None]) -> None:
    module = make()
    before = results(module, X)
    change(module)
    plain = copy.deepcopy(module)
    use_backend(plain, "reference")
    found, expected = results(module, X), results(plain, X)
    assert any(not torch.equal(*pair) for pair in zip(found, before, strict=False))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("change", [use_double_statistics, average_all, parametrise, nn.Module.double])
def test_left_to_others(change: Callable[[InvertedResidual], None], ran: list[direct.Laid]) -> None:
    module = make()
    change(module)
    module(X.to(module.conv_pw.weight.dtype))
    assert not ran


def test_evaluation_and_mixed_modes(ran: list[direct.Laid]) -> None:
    module = make()
    results(module, X)
    for mode in (nn.Module.eval, nn.Module.train):
        mode(module)
        expected = by_operator(module)
        assert_same(results(module, X), expected)
    assert len(ran) == 2
    freeze_one(module)
    with pytest.raises(InputError, match="expected all norms to have some or none"):
        module(X)


def test_hooks_added_later() -> None:
    module, seen = make(), []
    module(X)
    handle = module.act2.register_forward_hook(lambda *args: seen.append(args))
    module(X)
    assert len(seen) == 1
    handle.remove()
    module(X)
    assert len(seen) == 1


def test_other_weights_by_functional_call() -> None:
    module = make()
    module(X)
    other = {name: 2 * value.detach() for name, value in module.named_parameters()}
    found = torch.func.functional_call(module, other, (X,))
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(other[name])
    assert torch.equal(found, module(X))


def test_frozen_parameters() -> None:
    module = make()
    expected = results(module, X)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    x = X.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, expected[1])
    assert not module(X).requires_grad


def test_backward_pass_alone_is_watched() -> None:
    for expansion, gated in ((1, False), (1, True), (3, False), (3, True)):
        module = make(expansion, gated=gated)
        expected = results(copy.deepcopy(module), X)
        x = X.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(x)
        with Operators() as watcher:
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        assert "greedynas.inverted_residual_backward.default" in watcher.seen
        assert_same([x.grad, *(p.grad for p in module.parameters())], expected[1 : 2 + len(list(module.parameters()))])


def test_backward_twice_and_never_through_itself() -> None:
    module, x = make(), X.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, retain_graph=True)[0], first)
    (again,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()
    with torch.no_grad():
        module.bn1.weight.add_(1)
    y = module(x).square().sum()
    with torch.no_grad():
        module.bn1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_gradients_of_other_layouts() -> None:
    module = make()
    expected = results(copy.deepcopy(module), X)[1]
    for stride_of in (torch.Tensor.contiguous, lambda g: g.expand(4, 8, 6, 5)):
        x = X.clone(memory_format=torch.preserve_format).requires_grad_()
        y = copy.deepcopy(module)(x)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        if stride_of is torch.Tensor.contiguous:
            y.backward(weights.contiguous())
            assert x.grad is not None
            assert torch.equal(x.grad, expected)
        else:
            y.backward(stride_of(torch.ones(())))
            assert x.grad is not None
            assert torch.isfinite(x.grad).all()


def test_bad_input_after_good(ran: list[direct.Laid]) -> None:
    module = make()
    module(X)
    with pytest.raises(InputError, match=r"expand: expected a weight \[24, 7, 1, 1\]"):
        module(X[:, :7].contiguous(memory_format=torch.channels_last))
    with pytest.raises(InputError, match="expected more than one value a channel"):
        module(X[:1, :, :1, :1].contiguous(memory_format=torch.channels_last))
    module(X)
    assert len(ran) == 2


def test_copies_keep_nothing() -> None:
    module = make()
    results(module, X)
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for other in (copy.deepcopy(module), torch.load(stored, weights_only=False)):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(other(X), X)  # y is x, where the last norm gives zeros
    alive = weakref.ref(module)
    del module, other
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("watched", [False, True])
def test_gradients_have_the_strides_of_parameters(watched: bool) -> None:
    module = make().to(memory_format=torch.channels_last)
    with Operators() if watched else contextlib.nullcontext():
        module(X).sum().backward()
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in module.parameters())
