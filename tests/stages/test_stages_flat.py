"""Retraining with flat tensors, as one process does on a CPU, beside the same with each tensor by itself."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from stages_runs import plain
from torch import Tensor, nn

from greedynas_fast import spaces
from greedynas_fast.config import RetrainConfig
from greedynas_fast.nn import use_backend
from greedynas_fast.stages import recipe as recipe_module
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.supernet import FlatNetwork, Network

BATCH = 12
OPTIMIZERS: list[dict[str, Any]] = [{"optimizer": "sgd"}, {"optimizer": "rmsproptf", "lr": 0.01}]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    network = Network(spaces.get("sample"), (1, 0, 6, 1, 2, 3))
    use_backend(network, "reference")
    result: Network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return result


def flat_recipe(network: Network, **values: Any) -> Recipe:
    recipe = Recipe(network, config(**values), 5)
    assert recipe.optimizer.param_groups[0]["params"][0].ndim == 1
    assert len(recipe.optimizer.param_groups[1]["params"]) == 1
    return recipe


def plain_recipe(network: Network, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Recipe:
    with monkeypatch.context() as context:
        context.setattr(recipe_module, "Network", FlatNetwork)  # which no network is an instance of
        recipe = Recipe(network, config(**values), 5)
    assert len(recipe.optimizer.param_groups[1]["params"]) > 1
    return recipe


def config(**values: Any) -> RetrainConfig:
    return RetrainConfig(**{"recipe": "small", "grad_clip": None, "ema_decay": 0.9, "warmup_epochs": 0, **values})


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 1, 28, 28, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (BATCH,), generator=generator)


def train(recipe: Recipe, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        losses.append(recipe.gradient(*batch(step), seed=step).loss.item())
        recipe.step(step)
    return losses


@pytest.mark.parametrize("values", [*OPTIMIZERS, {"precision": "bf16"}, {"precision": "fp16"}])
@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_same_bits(
    network: Network,
    values: dict[str, Any],
    micro_batch: int | None,
    ema_decay: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {**values, "micro_batch": micro_batch, "ema_decay": ema_decay}
    other = plain_recipe(copy.deepcopy(network), monkeypatch, **values)
    flat = flat_recipe(network, **values)
    assert plain(flat.state_dict()) == plain(other.state_dict())  # before the first step, too
    assert train(flat, 0, 4) == train(other, 0, 4)
    assert plain(flat.state_dict()) == plain(other.state_dict())
    assert plain(flat.result.state_dict()) == plain(other.result.state_dict())
    assert flat.result.training == (ema_decay is None)


@pytest.mark.parametrize("values", OPTIMIZERS)
@pytest.mark.parametrize("first", ["flat", "plain"])
def test_each_goes_on_where_the_other_stood(
    network: Network, values: dict[str, Any], first: Literal["flat", "plain"], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = flat_recipe(copy.deepcopy(network), **values)
    other = plain_recipe(copy.deepcopy(network), monkeypatch, **values)
    begins, goes_on = (flat, other) if first == "flat" else (other, flat)
    train(begins, 0, 3)
    goes_on.load_state_dict(copy.deepcopy(begins.state_dict()))
    assert plain(goes_on.state_dict()) == plain(begins.state_dict())
    assert train(goes_on, 3, 6) == train(begins, 3, 6)
    assert plain(goes_on.state_dict()) == plain(begins.state_dict())


def test_clipped_together(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    other = plain_recipe(copy.deepcopy(network), monkeypatch, optimizer="sgd", grad_clip=0.1)
    flat = flat_recipe(network, optimizer="sgd", grad_clip=0.1)
    for recipe in (flat, other):
        recipe.gradient(*batch(0), seed=0)
        recipe.step(0)
    norms = [
        torch.cat([p.grad.flatten() for p in r.network.parameters() if p.grad is not None]).norm()
        for r in (flat, other)
    ]
    torch.testing.assert_close(norms[0], torch.tensor(0.1), rtol=1e-5, atol=0)
    for name, value in flat.network.state_dict().items():
        torch.testing.assert_close(value, other.network.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_fused_layers_are_one_step_of_autograd(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """And compute what torch's do."""
    other = flat_recipe(copy.deepcopy(network), optimizer="sgd")
    use_backend(network, "auto")
    fused = flat_recipe(network, optimizer="sgd")
    ran: list[str] = []
    backward = Tensor.backward

    def noted(loss: Tensor) -> None:
        node = loss.grad_fn
        while node is not None and not node.name().startswith("_RunChain"):
            node = node.next_functions[0][0] if node.next_functions else None
        ran.append("in turn" if node is None else "as one")
        backward(loss)

    monkeypatch.setattr(Tensor, "backward", noted)
    torch.testing.assert_close(train(fused, 0, 3), train(other, 0, 3), rtol=1e-4, atol=0)
    assert ran == ["in turn", "as one", "as one"] + 3 * ["in turn"]
    torch.testing.assert_close(gradients(fused.network), gradients(other.network), rtol=1e-2, atol=1e-4)


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("values", OPTIMIZERS)
def test_nothing_between_the_tensors(network: Network, values: dict[str, Any]) -> None:
    recipe = flat_recipe(network, **values, weight_decay=0.1)
    train(recipe, 0, 3)
    for group in recipe.optimizer.param_groups:
        (half,) = group["params"]
        inside = torch.zeros_like(half, dtype=torch.bool)
        for parameter in network.parameters():
            start = (parameter.data_ptr() - half.data_ptr()) // 4
            if 0 <= start < len(half):
                assert start % 16 == 0
                inside[start : start + parameter.numel()] = True
        assert 0 < inside.sum() < len(half)
        assert not half[~inside].any()
