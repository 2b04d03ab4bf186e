"""What the measurements of training layers share: shapes, forward and backward as one step, the check, the rows.

A row's `paths` are images here, `paths_per_s` images a second through forward and backward, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .codec import core_threads
from .timing import Budget, alternate_steps, core_isa, fastest, make_row, rate_values, torch_isa, torch_threads

CORE = "core"
# [N, C, H, W]: the layers of an ImageNet network, then those of the sample's.
SHAPES = (
    *((8, 96, 56, 56), (8, 240, 28, 28), (8, 480, 14, 14), (8, 1152, 7, 7)),
    *((64, 16, 28, 28), (64, 48, 14, 14), (64, 16, 7, 7), (64, 192, 7, 7)),
)
QUICK_SHAPES = (SHAPES[1], SHAPES[-1])
TOLERANCE = 1e-3  # of the largest value: float32 against float64, sums of up to 25,088 values
LAYOUTS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}

Layer = Callable[..., Tensor]


def shapes(budget: Budget) -> tuple[tuple[int, int, int, int], ...]:
    """Few of them for a quick run."""
    return SHAPES if budget.repeats >= 9 else QUICK_SHAPES


def measure_layer(
    name: str, shape: Sequence[int], parameters: Sequence[Tensor], core: Layer, peer: Layer, budget: Budget
) -> list[dict[str, Any]]:
    """Rows of one layer and shape: the core, and torch in both layouts.

    Args:
        name: of the measurement.
        shape: of x.
        parameters: float32; they get gradients too.
        core: (x, *parameters) -> y, ours.
        peer: the same in torch.
        budget: for how long.

    Raises:
        RuntimeError: a result or a gradient is not that of torch in float64.
    """
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(tuple(shape), generator=generator) for _ in range(2))
    versions: dict[str, tuple[Layer, torch.memory_format]] = {CORE: (core, torch.channels_last)}
    versions |= {f"torch {layout}": (peer, memory_format) for layout, memory_format in LAYOUTS.items()}
    with core_threads(1), torch_threads(1):
        expected = _results(peer, [x.double(), *(p.double() for p in parameters)], grad.double())
        steps: dict[str, Callable[[], None]] = {}
        errors: dict[str, float] = {}
        for provider, (layer, memory_format) in versions.items():
            leaves = [x.contiguous(memory_format=memory_format), *(p.clone() for p in parameters)]
            moved = grad.contiguous(memory_format=memory_format)
            errors[provider] = _error(_results(layer, leaves, moved), expected)
            if not errors[provider] <= TOLERANCE:
                raise RuntimeError(f"{name} {list(shape)}: {provider} and the float64 reference disagree")
            steps[provider] = _step(layer, leaves, moved)
        rates = alternate_steps(steps, shape[0], budget)
    best = fastest(rates, [provider for provider in steps if provider != CORE])
    return [_row(name, provider, shape, rates, best, errors[provider]) for provider in steps]


def _row(
    name: str, provider: str, shape: Sequence[int], rates: Mapping[str, Sequence[float]], best: str, error: float
) -> dict[str, Any]:
    isa = core_isa() if provider == CORE else torch_isa()
    values = rate_values(rates, provider, best)
    return make_row(name, provider, isa, 1, paths=shape[0], max_error=error, note=f"images of {list(shape)}", **values)


def _results(layer: Layer, leaves: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    y = layer(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def _error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    pairs = zip(actual, expected, strict=True)
    return max(((a.double() - e).abs().max() / e.abs().max().clamp_min(1)).item() for a, e in pairs)


def _step(layer: Layer, leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], None]:
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]

    def step() -> None:
        torch.autograd.backward(layer(*inputs), grad)
        for leaf in inputs:
            leaf.grad = None

    step()
    return step
