"""Layers in training, float32, on the CPU, without torch's operators around them.

Small images spend as long in checks, operators and the making of tensors as in the layers themselves. What is `Laid`
has been checked and laid out for one shape of inputs and certain parameters; then a pass is one call of the core.
Nothing that follows torch's operators sees it: callers ask `unwatched` first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from greedynas_fast import _core

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_LINE = 16  # floats of a cache line
_FLOAT = 4  # bytes


def unwatched(*tensors: Tensor) -> bool:
    """Whether nothing but autograd and profilers follows what torch's operators do with these tensors.

    Tracers, function transforms, modes and subclasses of tensors want to see operators.
    """
    return (
        all(type(tensor) in _PLAIN for tensor in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_torch_function_mode_enabled()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


class Running(NamedTuple):
    """Running statistics of a batch norm.

    Attributes:
        which: of the layer's norms.
        share: that a batch has.
        mean: address of float32 [C].
        variance: of the same.
        counter: of the number of batches, int64.
    """

    which: int
    share: float
    mean: int
    variance: int
    counter: int


class Buffers:
    """Several arrays of float32 in one tensor, each from the beginning of a cache line on.

    Args:
        sizes: floats of each; 0: there is no such array.

    Attributes:
        floats: of all.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        *starts, self.floats = accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0)
        self._sizes = list(zip(starts, sizes, strict=True))
        self._offsets = [_FLOAT * start if size else None for start, size in self._sizes]

    def addresses(self, tensor: Tensor) -> list[int]:
        """Of each array; 0 where there is none."""
        base = tensor.data_ptr()
        return [0 if offset is None else base + offset for offset in self._offsets]

    def arrays(self, tensor: Tensor) -> list[Tensor]:
        """Each array, flat."""
        return [tensor.narrow(0, start, size) for start, size in self._sizes]


class Laid(ABC):
    """Layers for inputs of one shape.

    Attributes:
        name: for profilers.
    """

    name: str

    @abstractmethod
    def forward(self, x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """The result, and what the backward pass needs; updates running statistics.

        Args:
            x: float32 [N, C, H, W], channels-last, without gaps.
            keep: whether there will be a backward pass.
        """

    @abstractmethod
    def backward(self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """Gradients of x and of the parameters.

        Args:
            grad: of the result.
            x: as the forward pass took it.
            kept: as it gave it.
            parameters: those that there are.
        """


def layout_of(parameter: Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    """Size and strides of a contiguous parameter, for its gradient: torch copies a gradient of other strides.

    Strides of channels-last weights with one channel or one pixel differ from the usual ones, and mean the same.
    """
    return parameter.size(), parameter.stride()


def run(x: Tensor, laid: Laid, parameters: Sequence[Tensor]) -> Tensor:
    """Run layers, differentiably where that is wanted.

    Args:
        x: float32, channels-last, without gaps, of the shape that they are laid out for.
        laid: out for these parameters.
        parameters: those that there are, in the order of the gradients.
    """
    if torch._C._autograd._profiler_enabled():
        with torch.autograd.profiler.record_function(f"greedynas::{laid.name}"):
            return _run(x, laid, parameters)
    return _run(x, laid, parameters)


def update_running(norms: Sequence[tuple[Running, int, int]], moments: Sequence[int]) -> None:
    """Update running statistics.

    Args:
        norms: each with the values a channel that its moments are of, and its channels.
        moments: addresses, by `Running.which`.
    """
    for running, values, channels in norms:
        _core.bn_update(values, channels, moments[running.which], running.share, *running[2:])


def _run(x: Tensor, laid: Laid, parameters: Sequence[Tensor]) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or any(value.requires_grad for value in parameters)):
        y: Tensor = _Run.apply(x, laid, *parameters)
        return y
    return laid.forward(x, False)[0]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, laid: Laid, *parameters: Tensor) -> Tensor:
        y, kept = laid.forward(x, True)
        ctx.save_for_backward(x, kept, *parameters)
        ctx.laid = laid
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, kept, *parameters = ctx.saved_tensors
        if grad is None:
            return (None,) * (2 + len(parameters))
        grad_x, *others = ctx.laid.backward(grad, x, kept, parameters)
        return grad_x, None, *others
