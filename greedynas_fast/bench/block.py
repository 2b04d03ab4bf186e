"""`bench block`: an inverted residual in training, forward and backward, fused and as torch's layers.

Expansion 6 and hard-swish, as in the mobile spaces at 224 and batch 8; one thread, float32.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from greedynas_fast.nn import InvertedResidual, initialise
from greedynas_fast.spaces.specs import InvertedResidualSpec, SqueezeExciteSpec

from .codec import core_threads
from .timing import Budget, make_row, torch_isa, torch_threads
from .training import REFERENCE_LAST, VERSIONS, Results, distance, refuse, time_rows

SHAPES = ((8, 24, 56), (8, 80, 14))  # images, channels, rows and columns
QUICK_SHAPES = ((8, 80, 14),)
KERNELS = ((3,), (5,), (3, 5, 7))
TOLERANCE = 1e-3  # of `training.distance`: float32 against float64, sums of up to 25,088 values
COMPILED = "torch.compile channels_last"
_FEW_REPEATS = 3  # up to this many rounds a run is a quick one


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `block`; the result, all gradients and the running statistics are compared first.

    Raises:
        RuntimeError: a version and the float64 reference disagree.
    """
    rows = []
    with torch_threads(1), core_threads(1):
        for shape in QUICK_SHAPES if budget.repeats <= _FEW_REPEATS else SHAPES:
            for kernels in KERNELS:
                for gate in (None, SqueezeExciteSpec()):
                    rows += _compare(shape, InvertedResidualSpec("block", 6, kernels, "hard_swish", gate), budget)
    return rows


def _compare(shape: Sequence[int], spec: InvertedResidualSpec, budget: Budget) -> list[dict[str, Any]]:
    batch, channels, size = shape
    generator = torch.Generator().manual_seed(channels)
    block = InvertedResidual(spec, channels, channels, 1).train()
    initialise(block, generator)
    x, grad = (torch.randn((batch, channels, size, size), generator=generator) for _ in range(2))
    kernels = ",".join(map(str, spec.kernel_sizes))
    note = f"{'x'.join(map(str, (batch, channels, size, size)))} k{kernels}{'' if spec.se is None else ' SE'}"

    wanted = _results(VERSIONS[REFERENCE_LAST].prepare(copy.deepcopy(block)).double(), x.double(), grad.double())
    modules: dict[str, nn.Module] = {
        provider: version.prepare(copy.deepcopy(block)) for provider, version in VERSIONS.items()
    }
    if budget.compile:
        torch.compiler.reset()  # else torch soon compiles no more for modules of one class
        modules[COMPILED] = VERSIONS[REFERENCE_LAST].prepare(copy.deepcopy(block))
        modules[COMPILED].compile(dynamic=False)
    runs, errors, skipped = {}, {}, []
    for provider, module in modules.items():
        memory_format = VERSIONS.get(provider, VERSIONS[REFERENCE_LAST]).memory_format
        inputs = (x.contiguous(memory_format=memory_format), grad.contiguous(memory_format=memory_format))
        try:
            found = _results(module, *inputs)
        except Exception as error:
            if provider != COMPILED:
                raise
            # No compiler, or one that torch cannot use: any exception of torch's.
            reason = f"torch.compile does not work here ({type(error).__name__})"
            skipped.append(make_row("block", COMPILED, torch_isa(), 1, note=note, skipped=reason))
            continue
        errors[provider] = distance(found, wanted)
        refuse(f"block {note}", provider, errors[provider], TOLERANCE)
        runs[provider] = partial(_step, module, inputs[0].requires_grad_(), inputs[1])
    return time_rows("block", note, batch, runs, errors, budget) + skipped


def _step(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the result and the gradients of x and of all parameters."""
    y = module(x)
    return (y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), grad))


def _results(module: nn.Module, x: Tensor, grad: Tensor) -> Results:
    """What a step computes."""
    y, *grads = _step(module, x.detach().requires_grad_(), grad)
    return {"result": [y], "gradients": grads, "statistics": list(module.buffers())}
