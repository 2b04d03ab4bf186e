"""`bench mixconv`: MixConv layers forward and backward, one thread, beside torch in its best layout.

`depthwise` holds the same for plain depthwise convolutions. Shapes are those of the mobile spaces at 224 and batch 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from greedynas_fast.ops.mixconv import mixconv
from greedynas_fast.reference.mixconv import mixconv as reference

from .codec import core_threads
from .timing import Budget, alternate_steps, core_isa, fastest, make_row, rate_values, torch_isa, torch_threads

Grads = tuple[torch.Tensor, ...]

SHAPES = ((8, 96, 56), (8, 240, 28), (8, 480, 14), (8, 1152, 7))  # images, channels, rows and columns
QUICK_SHAPES = ((8, 480, 14),)
MIXES = ((3, 5, 7),)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MAX_ERROR = {"float32": 1e-4, "bf16": 3e-2}  # of the largest value of an output or gradient
_FEW_REPEATS = 3  # below this many rounds a run is a quick one


def measure(budget: Budget, mixes: Sequence[tuple[int, ...]] = MIXES, name: str = "mixconv") -> list[dict[str, Any]]:
    """Rows of `mixconv`: `paths` and `paths_per_s` count images, forward and backward.

    Raises:
        RuntimeError: the core and the float64 reference disagree.
    """
    shapes = QUICK_SHAPES if budget.repeats <= _FEW_REPEATS else SHAPES
    rows = []
    with torch_threads(1), core_threads(1):
        for kernels in mixes:
            for shape in shapes:
                for precision in DTYPES:
                    rows += _compare(name, shape, kernels, precision, budget)
    return rows


def _compare(
    name: str, shape: tuple[int, int, int], kernels: tuple[int, ...], precision: str, budget: Budget
) -> list[dict[str, Any]]:
    batch, channels, size = shape
    dtype = DTYPES[precision]
    generator = torch.Generator().manual_seed(channels)
    part = -(-channels // len(kernels))
    parts = [part] * (len(kernels) - 1) + [channels - part * (len(kernels) - 1)]
    weights = [
        torch.randn((count, 1, kernel, kernel), generator=generator).to(dtype).requires_grad_()
        for count, kernel in zip(parts, kernels, strict=True)
    ]
    x, grad = (torch.randn((batch, channels, size, size), generator=generator).to(dtype) for _ in range(2))
    runs: dict[str, Callable[[], Grads]] = {}
    for provider, layout in (("core", torch.channels_last), ("torch NHWC", torch.channels_last), ("torch NCHW", None)):
        memory_format = layout or torch.contiguous_format
        runs[provider] = partial(
            _step,
            mixconv if provider == "core" else _torch_mixconv,
            x.contiguous(memory_format=memory_format).requires_grad_(),
            weights,
            kernels,
            grad.contiguous(memory_format=memory_format),
        )
    error = _error(runs["core"](), x, weights, kernels, grad)
    if not error <= MAX_ERROR[precision]:
        raise RuntimeError(f"{name}: core {precision} and the float64 reference disagree by {error:.2g}")
    for run in runs.values():
        run()
    rates = alternate_steps(runs, batch, budget)
    best = fastest(rates, [provider for provider in runs if provider != "core"])
    return [
        make_row(
            name,
            f"{provider} {precision}",
            core_isa() if provider == "core" else torch_isa(),
            1,
            paths=batch,
            max_error=error if provider == "core" else None,
            note=f"{'x'.join(map(str, (batch, channels, size, size)))} k{','.join(map(str, kernels))}",
            **rate_values(rates, provider, best),
        )
        for provider in runs
    ]


def _torch_mixconv(x: torch.Tensor, weights: Sequence[torch.Tensor], kernels: Sequence[int]) -> torch.Tensor:
    """The peer: torch's convolutions in the dtype of x."""
    parts = torch.split(x, [weight.shape[0] for weight in weights], dim=1)
    outputs = [
        torch.nn.functional.conv2d(part, weight, padding=kernel // 2, groups=weight.shape[0])
        for part, weight, kernel in zip(parts, weights, kernels, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _step(
    layer: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    kernels: Sequence[int],
    grad: torch.Tensor,
) -> Grads:
    """Forward and backward: y and the gradients of x and the weights."""
    y = layer(x, weights, kernels)
    return (y.detach(), *torch.autograd.grad(y, (x, *weights), grad))


def _error(
    found: Grads, x: torch.Tensor, weights: Sequence[torch.Tensor], kernels: Sequence[int], grad: torch.Tensor
) -> float:
    """Largest difference from the reference in float64, in terms of the largest value of the same tensor."""
    doubles = [weight.detach().double().requires_grad_() for weight in weights]
    expected = _step(_reference, x.double().requires_grad_(), doubles, kernels, grad.double())
    return max(float((got - want).abs().max() / want.abs().max()) for got, want in zip(found, expected, strict=True))


def _reference(x: torch.Tensor, weights: Sequence[torch.Tensor], kernels: Sequence[int]) -> torch.Tensor:
    y = reference(x, weights, kernels)
    assert isinstance(y, torch.Tensor)
    return y
