"""A whole inverted residual in training, float32, without torch's operators around it.

Small images spend as long in checks, operators and the making of tensors as in the block itself. A `Block` has been
checked and laid out for one shape of inputs and certain parameters; then a pass is one call of the core.
Nothing that follows torch's operators sees it: callers ask `library.unwatched` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from greedynas_fast import _core

from . import inverted_residual_core as core
from .inverted_residual_core import NUM_PARAMETERS, Options
from .library import unwatched
from .rows import rows_of

_LINE = 16  # floats of a cache line
_BYTES = 4


class Running(NamedTuple):
    """Running statistics of a norm.

    Attributes:
        which: of the three norms.
        share: that a batch has.
        mean: address of float32 [C].
        variance: of the same.
        counter: of the number of batches, int64; 0: there is none.
    """

    which: int
    share: float
    mean: int
    variance: int
    counter: int


class Block:
    """A block for inputs of one shape.

    Args:
        shape: [N, C_in, H, W] of x.
        parameters: the twelve of `inverted_residual_core`, float32 and contiguous; used by address.
        weights: of the depthwise convolution, the same.
        o: with statistics of the batch.
        running: what is to be updated.
        threads: to run on.
    """

    def __init__(
        self,
        shape: Sequence[int],
        parameters: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        o: Options,
        running: Sequence[Running],
        threads: int,
    ) -> None:
        n, _, height, width = shape
        self._core = core.make_block(shape, parameters, weights, o, threads)
        self._options = o
        self._present = [i for i, value in enumerate(parameters) if value is not None]
        self._shapes = [value.shape for value in (*parameters, *weights) if value is not None]
        expand, project, reduce = parameters[0], parameters[5], parameters[8]
        assert project is not None
        middle, out = sum(weight.shape[0] for weight in weights), project.shape[0]
        out_height, out_width = (height - 1) // o.stride + 1, (width - 1) // o.stride + 1
        self._y_shape = (n, out, out_height, out_width)
        self._y_strides = (out_height * out_width * out, 1, out_width * out, out)
        pixels, out_pixels = n * height * width, n * out_height * out_width
        hidden = 0 if reduce is None else reduce.shape[0]
        gated = middle if hidden else 0
        # Of what is kept: the moments, then what the core calls kept; shapes as the operator has them.
        expanded = middle if expand is not None else 0
        images = [(n, expanded, height, width), (n, middle, out_height, out_width), self._y_shape]
        self._kept_shapes = [
            *((2, c) for c in (expanded, middle, out)),
            *images,
            *((n, c) for c in (gated, hidden, gated)),
        ]
        sizes = [2 * expanded, 2 * middle, 2 * out, pixels * expanded, out_pixels * middle, out_pixels * out]
        sizes += [n * gated, n * hidden, n * gated]
        self._offsets: list[int | None] = []
        self._moments_floats = self._kept_floats = 0
        for i, size in enumerate(sizes):
            self._offsets.append(self._kept_floats * _BYTES if size else None)
            self._kept_floats += -(-size // _LINE) * _LINE
            if i == 2:
                self._moments_floats = self._kept_floats
        self._workspace_floats = {keep: self._core.workspace_floats(keep) for keep in (False, True)}
        self._backward_floats = self._core.backward_workspace_floats()
        self._running = [(r, pixels if r.which == 0 else out_pixels, (middle, middle, out)[r.which]) for r in running]

    def forward(self, x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """The result, and what the backward pass needs. Updates the running statistics.

        Args:
            x: float32, channels-last, without gaps.
            keep: whether there will be a backward pass.
        """
        y = torch.empty_strided(self._y_shape, self._y_strides, dtype=torch.float32)
        kept = torch.empty(self._kept_floats if keep else self._moments_floats, dtype=torch.float32)
        workspace = torch.empty(self._workspace_floats[keep], dtype=torch.float32)
        places = self._places(kept)
        rows = (x.data_ptr(), x.shape[1])
        of_core = places[3:] if keep else (0,) * 6
        self._core.forward(rows, places[:3], of_core, workspace.data_ptr(), y.data_ptr())
        for r, values, channels in self._running:
            _core.bn_update(values, channels, places[r.which], r.share, r.mean, r.variance, r.counter)
        return y, kept

    def backward(self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of x and of the parameters that there are.

        Args:
            grad: of y, channels-last.
            x: as the forward pass took it.
            kept: as it gave it.
            parameters: those that there are, and the depthwise weights.
        """
        if not unwatched(grad, x):
            return self._by_operator(grad, x, kept, parameters)
        grad, _, grad_stride = rows_of(grad)
        gradients = [torch.empty(shape, dtype=torch.float32) for shape in self._shapes]
        grad_x = torch.empty_like(x)
        workspace = torch.empty(self._backward_floats, dtype=torch.float32)
        places = self._places(kept)
        addresses = [0] * NUM_PARAMETERS
        found = [value.data_ptr() for value in gradients]
        for i, address in zip(self._present, found, strict=False):
            addresses[i] = address
        self._core.backward(
            (x.data_ptr(), x.shape[1]),
            places[:3],
            places[3:],
            (grad.data_ptr(), grad_stride),
            workspace.data_ptr(),
            grad_x.data_ptr(),
            addresses,
            found[len(self._present) :],
        )
        return [grad_x, *gradients]

    def _places(self, kept: Tensor) -> list[int]:
        base = kept.data_ptr()
        return [0 if offset is None else base + offset for offset in self._offsets]

    def _by_operator(self, grad: Tensor, x: Tensor, kept: Tensor, given: Sequence[Tensor]) -> list[Tensor | None]:
        """The same for something that wants to see operators."""
        pieces = []
        for offset, shape in zip(self._offsets, self._kept_shapes, strict=True):
            flat = kept.narrow(0, (offset or 0) // _BYTES, torch.Size(shape).numel() if offset is not None else 0)
            if len(shape) == 4:
                n, channels, height, width = shape
                pieces.append(flat.view(n, height, width, channels).permute(0, 3, 1, 2) if channels else flat)
            else:
                pieces.append(flat.view(shape) if offset is not None else flat)
        moments, tensors = [m for m in pieces[:3] if m.numel()], pieces[3:]
        values = iter(given)
        parameters = [next(values) if i in self._present else None for i in range(NUM_PARAMETERS)]
        found = core.backward(grad, tensors, x, self._options, moments, (*parameters, *values))
        return [value for value in found if value is not None]


def run(x: Tensor, block: Block, parameters: Sequence[Tensor]) -> Tensor:
    """Run a block, differentiably where that is wanted.

    Args:
        x: float32, channels-last, without gaps, of the block's shape.
        block: laid out for these parameters.
        parameters: those that there are, and the depthwise weights.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(value.requires_grad for value in parameters)):
        y: Tensor = _Run.apply(x, block, *parameters)
        return y
    return block.forward(x, False)[0]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, *parameters: Tensor) -> Tensor:
        y, kept = block.forward(x, True)
        ctx.save_for_backward(x, kept, *parameters)
        ctx.block = block
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, kept, *parameters = ctx.saved_tensors
        if grad is None:
            return (None,) * (2 + len(parameters))
        grad_x, *others = ctx.block.backward(grad, x, kept, parameters)
        return grad_x, None, *others
