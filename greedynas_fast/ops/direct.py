"""Layers in training, float32 or bf16, on the CPU, without torch's operators around them.

Small images spend as long in checks, operators and the making of tensors as in the layers themselves. What is `Laid`
has been checked and laid out for one shape of inputs and certain parameters; then a pass is one call of the core.
Nothing that follows torch's operators sees it: callers ask `unwatched` first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad, function

from greedynas_fast import _core

from . import memory

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_LINE = 16  # floats of a cache line
_FLOAT = 4  # bytes
_adds: ContextVar[Flat | bool] = ContextVar("adds", default=False)


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


class Flat(NamedTuple):
    """Parameters in a flat tensor, and their gradients in another one.

    Attributes:
        data: float32 [n].
        grad: float32 [n], laid out alike.
    """

    data: Tensor
    grad: Tensor


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


def floats_for(size: int, bf16: bool) -> int:
    """Floats of memory that so many numbers need."""
    return -(-size // 2) if bf16 else size


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

    @property
    def starts(self) -> list[int]:
        """Where each array begins, in floats; -1 where there is none."""
        return [start if size else -1 for start, size in self._sizes]

    def addresses(self, tensor: Tensor) -> list[int]:
        """Of each array; 0 where there is none."""
        base = tensor.data_ptr()
        return [0 if offset is None else base + offset for offset in self._offsets]

    def arrays(self, tensor: Tensor) -> list[Tensor]:
        """Each array, flat."""
        return [tensor.narrow(0, start, size) for start, size in self._sizes]


class Laid(ABC):
    """Layers for inputs of one shape.

    Args:
        shape: [N, C, H, W] of x.
        parameters: those that there are, float32 and without gaps; used by address.
        bf16: what goes from layer to layer is, instead of float32.

    Attributes:
        name: for profilers.
        gives_grad_x: whether there is a gradient of x.
        y_shape: of the result.
        bf16: as given.
        link: for `chain`; None: cannot be part of one.
    """

    name: str
    gives_grad_x = True
    y_shape: torch.Size
    link: _core.Link | None = None

    def __init__(self, shape: Sequence[int], parameters: Sequence[Tensor], bf16: bool) -> None:
        self.bf16 = bf16
        self._x_form = memory.channels_last(*shape, bf16=bf16)
        # torch copies a gradient that has other strides than its parameter. Those of channels-last weights with one
        # channel or one pixel differ from the usual ones, and mean the same.
        self._layouts = [(value.size(), value.stride()) for value in parameters]
        self._counts = [value.numel() for value in parameters]
        self._places = [value.data_ptr() for value in parameters]
        self._gradients = Buffers(self._counts)
        self._gradients_form = memory.flat(self._gradients.floats)

    @abstractmethod
    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """The result, and what the backward pass needs; updates running statistics.

        Args:
            x: [N, C, H, W], channels-last, without gaps.
            keep: whether there will be a backward pass.
            given: what else these layers take, without gradients.
        """

    def backward(self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Gradients of x, None where there is none, and of the parameters.

        Args:
            grad: of the result.
            x: as the forward pass took it.
            kept: as it gave it.
            parameters: as it found them.
        """
        if not unwatched(grad, x):
            return self._backward_watched(grad, x, kept, parameters)
        grad_x, place = self.room_for_grad_x()
        gradients = [torch.empty_strided(*layout, dtype=torch.float32) for layout in self._layouts]
        self._backward(grad, x, kept, place, [value.data_ptr() for value in gradients])
        return [grad_x, *gradients]

    def room_for_grad_x(self) -> tuple[Tensor | None, int]:
        """Room for the gradient of x, and its address."""
        if not self.gives_grad_x:
            return None, 0
        grad_x = memory.empty(self._x_form)
        return grad_x, grad_x.data_ptr()

    def backward_adding(self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
        """The gradient of x; those of the parameters are added to their `.grad`. Arguments as of `backward`."""
        sums = gradient_places(parameters)
        if 0 in sums or not unwatched(grad, x):
            grad_x, *found = self.backward(grad, x, kept, parameters)
            for parameter, more in zip(parameters, found, strict=True):
                assert more is not None
                parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)
            return grad_x
        (grad_x, place), gradients = self.room_for_grad_x(), memory.empty(self._gradients_form)
        addresses = self._gradients.addresses(gradients)
        self._backward(grad, x, kept, place, addresses)
        _core.add_arrays(sums, addresses, self._counts)
        return grad_x

    def _layout(self, kept: Buffers, running: Sequence[tuple[Running, int, int]]) -> _core.LinkLayout:
        """For a link: what it keeps, moments first, and the norms that `update_running` takes."""
        of_norms = [(r.which, values, channels, *r[1:]) for r, values, channels in running]
        return _core.LinkLayout(kept.starts, kept.floats, of_norms, self._counts, self._places)

    @abstractmethod
    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        """Write the gradients of x and of the parameters to these addresses."""

    @abstractmethod
    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """`backward` for something that wants to see operators."""


def gradient_places(parameters: Sequence[Tensor]) -> list[int]:
    """The address of each parameter's `.grad`; 0 where the core cannot add to it."""

    def place(parameter: Tensor) -> int:
        grad = parameter.grad
        if grad is None or type(grad) not in _PLAIN or grad.dtype is not torch.float32:
            return 0
        return grad.data_ptr() if grad.stride() == parameter.stride() else 0

    return [place(parameter) for parameter in parameters]


def run(x: Tensor, laid: Laid, parameters: Sequence[Tensor], given: Any = None) -> Tensor:
    """Run layers, differentiably where that is wanted.

    Args:
        x: channels-last, without gaps, of the shape and type that they are laid out for.
        laid: out for these parameters.
        parameters: those that there are, in the order of the gradients.
        given: see `Laid.forward`.
    """
    if torch._C._autograd._profiler_enabled():
        with torch.autograd.profiler.record_function(f"greedynas::{laid.name}"):
            return _run(x, laid, parameters, given)
    return _run(x, laid, parameters, given)


@contextmanager
def adding_to_grad(flat: Flat | None = None) -> Iterator[None]:
    """Layers that run in it will add to `.grad` of their parameters themselves.

    To hand a gradient to autograd, which adds it up, takes longer than to compute that of a small layer. What comes out
    is for `backward()` alone: `torch.autograd.grad` finds the parameters unused, and so does DistributedDataParallel.
    Nothing changes for parameters that are frozen or have hooks, and where something follows torch's operators.

    Args:
        flat: where parameters are: then no `.grad` need be asked for, and where it is another one, that of `flat` may
            be added to.
    """
    token = _adds.set(flat or True)
    try:
        yield
    finally:
        _adds.reset(token)


def adds(parameters: Sequence[Tensor]) -> bool:
    """Whether `adding_to_grad` holds for layers with these parameters."""
    return bool(_adds.get()) and all(map(_only_adds, parameters))


def flat_parameters() -> Flat | None:
    """What `adding_to_grad` was told."""
    adding = _adds.get()
    return adding if isinstance(adding, Flat) else None


def update_running(norms: Sequence[tuple[Running, int, int]], moments: Sequence[int]) -> None:
    """Update running statistics.

    Args:
        norms: each with the values a channel that its moments are of, and its channels.
        moments: addresses, by `Running.which`.
    """
    for running, values, channels in norms:
        _core.bn_update(values, channels, moments[running.which], running.share, *running[2:])


def _run(x: Tensor, laid: Laid, parameters: Sequence[Tensor], given: Any) -> Tensor:
    if not torch.is_grad_enabled() or not (x.requires_grad or any(value.requires_grad for value in parameters)):
        return laid.forward(x, False, given)[0]
    y: Tensor
    if adds(parameters):
        y = _RunAndAdd.apply(x, None if x.requires_grad else parameters[0], laid, given, parameters)
    else:
        y = _Run.apply(x, laid, given, *parameters)
    return y


def _only_adds(parameter: Tensor) -> bool:
    """Whether all that autograd would do with a gradient of this parameter is to add it to `.grad`."""
    return (
        parameter.requires_grad
        and parameter.is_leaf
        and not parameter._backward_hooks
        and not parameter._post_accumulate_grad_hooks
    )


def _run_and_keep(ctx: Any, x: Tensor, laid: Laid, given: Any, parameters: Sequence[Tensor]) -> Tensor:
    """The forward pass of the functions below."""
    y, kept = laid.forward(x, True, given)
    ctx.save_for_backward(x, kept, *parameters)
    ctx.laid = laid
    ctx.set_materialize_grads(False)
    return y


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's decorator, past which calls go that need none: it takes as long as all else between two layers."""
    guarded = function.once_differentiable(backward)

    def call(ctx: Any, *grads: Tensor | None) -> Any:
        return guarded(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return call


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, laid: Laid, given: Any, *parameters: Tensor) -> Tensor:
        return _run_and_keep(ctx, x, laid, given, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, kept, *parameters = ctx.saved_tensors
        if grad is None:
            return (None,) * (3 + len(parameters))
        grad_x, *others = ctx.laid.backward(grad, x, kept, parameters)
        return grad_x, None, None, *others


class _RunAndAdd(torch.autograd.Function):
    """`_Run` for `adding_to_grad`: autograd knows of x alone, or, where that needs no gradient, of a parameter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor | None, laid: Laid, given: Any, parameters: Sequence[Tensor]
    ) -> Tensor:
        ctx.parameters = parameters
        return _run_and_keep(ctx, x, laid, given, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        # The parameters are saved so that a change of them is noticed here; `.grad` is that of the real ones.
        x, kept, *_ = ctx.saved_tensors
        return ctx.laid.backward_adding(grad, x, kept, ctx.parameters), None, None, None, None
