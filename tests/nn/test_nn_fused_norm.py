"""Batch norm and activation that are laid out once: they equal the operator, and notice changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nn_results import Operators, results
from torch import nn

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


@pytest.mark.parametrize("make", [stem, lambda: stem("hard_swish"), lambda: ConvIdentity(4, 6, 2)])
def test_equals_the_operator(make: Any, ran: list[direct.Laid]) -> None:
    module = make()
    for x in (X, X, X[:2]):
        watched = copy.deepcopy(module)
        with Operators() as watcher:
            expected = results(watched, x)
        assert {"greedynas.bn_act_training.default", "greedynas.bn_act_backward.default"} <= watcher.seen
        assert not ran
        found = results(module, x)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert [laid.name for laid in ran] == ["bn_act"]
        del ran[:]


def test_backward_pass_alone_is_watched() -> None:
    module, x = stem(), X.clone(memory_format=torch.preserve_format).requires_grad_()
    expected = results(copy.deepcopy(module), X)
    y = module(x)
    with Operators() as watcher:
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert "greedynas.bn_act_backward.default" in watcher.seen
    assert x.grad is not None
    assert torch.equal(x.grad, expected[1])


def test_changes_are_noticed(ran: list[direct.Laid]) -> None:
    module = stem()
    results(module, X)
    module.act = nn.Hardswish()
    module.bn.weight = nn.Parameter(torch.linspace(1, 2, 17))
    module.bn.momentum = 0.5
    fresh = stem("hard_swish")
    fresh.bn.momentum = 0.5
    fresh.load_state_dict(module.state_dict())
    assert all(torch.equal(*pair) for pair in zip(results(module, X), results(fresh, X), strict=True))
    module.act.register_forward_hook(lambda *_: torch.zeros(()))
    assert float(module(X)) == 0
    assert [laid.name for laid in ran] == ["bn_act"] * 3


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
