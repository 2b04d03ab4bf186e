"""Batch norm and activation that are laid out once: they equal the operator, and notice changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from greedynas_fast.errors import InputError
from greedynas_fast.nn import ConvIdentity, Stem
from greedynas_fast.nn.fused_norm import IDENTITY
from greedynas_fast.ops import direct
from greedynas_fast.spaces.specs import StemSpec

X = torch.randn(3, 4, 9, 7, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def stem(activation: str = "relu") -> Stem:
    torch.manual_seed(0)
    module = Stem(StemSpec(17, 3, 2, activation, False, ()), 4).train()
    nn.init.uniform_(module.bn.bias, -0.5, 0.5)
    return module.to(memory_format=torch.channels_last)


def results(module: nn.Module, x: torch.Tensor = X) -> list[torch.Tensor]:
    """Output, gradients of x and of all parameters, running statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
    return [y.detach(), *gradients, *(value.detach().clone() for value in module.buffers())]


class Names(TorchDispatchMode):
    """The names of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "greedynas":
            self.seen.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what has run without operators."""
    seen: list[str] = []
    run = direct.run

    def spy(x: torch.Tensor, laid: direct.Laid, parameters: list[torch.Tensor]) -> torch.Tensor:
        seen.append(laid.name)
        return run(x, laid, parameters)

    monkeypatch.setattr(direct, "run", spy)
    return seen


@pytest.mark.parametrize("make", [stem, lambda: stem("hard_swish"), lambda: ConvIdentity(4, 6, 2)])
def test_equals_the_operator(make: Any, ran: list[str]) -> None:
    module = make()
    for x in (X, X, X[:2]):
        watched = copy.deepcopy(module)
        with Names() as names:
            expected = results(watched, x)
        assert {"bn_act_training.default", "bn_act_backward.default"} <= names.seen
        assert not ran
        found = results(module, x)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert ran == ["bn_act"]
        del ran[:]


def test_backward_pass_alone_is_watched() -> None:
    module, x = stem(), X.clone(memory_format=torch.preserve_format).requires_grad_()
    expected = results(copy.deepcopy(module))
    y = module(x)
    with Names() as names:
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert names.seen == {"bn_act_backward.default"}
    assert x.grad is not None
    assert torch.equal(x.grad, expected[1])


def test_changes_are_noticed(ran: list[str]) -> None:
    module = stem()
    results(module)
    module.act = nn.Hardswish()
    module.bn.weight = nn.Parameter(torch.linspace(1, 2, 17))
    module.bn.momentum = 0.5
    fresh = stem("hard_swish")
    fresh.bn.momentum = 0.5
    fresh.load_state_dict(module.state_dict())
    assert all(torch.equal(*pair) for pair in zip(results(module), results(fresh), strict=True))
    module.act.register_forward_hook(lambda *_: torch.zeros(()))
    assert float(module(X)) == 0
    assert ran == ["bn_act"] * 3


def test_what_was_seen_does_not_pile_up() -> None:
    module, other = ConvIdentity(4, 6, 2), stem()
    for _ in range(9):
        module(X)
        other.act = nn.ReLU()
        other(X)
    assert len(module.__dict__["_layers_seen"]) == 1
    assert set(module.__dict__["_layers_seen"]) == {(module.bn, IDENTITY)}
    assert len(other.__dict__["_layers_seen"]) == 4


def test_bad_input() -> None:
    module = ConvIdentity(4, 6, 2)
    module.bn = nn.BatchNorm2d(5)
    with pytest.raises(InputError, match=r"bn_act: weight: expected floating \[6\], got torch\.float32 \[5\]"):
        module(X)
    with pytest.raises(InputError, match="bn_act: x: expected more than one value a channel"):
        ConvIdentity(4, 6, 2)(X[:1, :, :1, :1])
