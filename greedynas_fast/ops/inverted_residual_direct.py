"""A whole inverted residual for `direct`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedynas_fast import _core

from . import inverted_residual_core as core
from . import memory
from .direct import Buffers, Laid, Running, floats_for, update_running
from .inverted_residual_core import NUM_KEPT, NUM_PARAMETERS, Options, Parts
from .rows import rows_of


class Block(Laid):
    """A block for inputs of one shape.

    Args:
        shape: [N, C_in, H, W] of x.
        parameters: the twelve of `inverted_residual_core`, float32 and contiguous; used by address. None for a weight
            that is in parts.
        weights: of the depthwise convolution, the same.
        parts: the same.
        o: with statistics of the batch.
        running: what is to be updated.
        threads: to run on.
        bf16: see `Laid`.
    """

    name = "inverted_residual"

    def __init__(
        self,
        shape: Sequence[int],
        parameters: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        parts: Parts,
        o: Options,
        running: Sequence[Running],
        threads: int,
        bf16: bool,
    ) -> None:
        present = [value for value in (*parameters, *weights, *parts.expand, *parts.project) if value is not None]
        super().__init__(shape, present, bf16)
        self._present = [i for i, value in enumerate(parameters) if value is not None]
        self._num_weights = len(weights)
        self._num_parts = len(parts.expand), len(parts.project)
        parameters = with_shapes(parameters, parts)
        self._core = core.make_block(shape, parameters, weights, o, threads, parts, bf16=bf16)
        self._options = o
        expand, project, reduce = parameters[0], parameters[5], parameters[8]
        assert project is not None
        n, in_channels, height, width = shape
        out_height, out_width = (height - 1) // o.stride + 1, (width - 1) // o.stride + 1
        middle, out = sum(weight.shape[0] for weight in weights), project.shape[0]
        expanded = 0 if expand is None else middle
        hidden = 0 if reduce is None else reduce.shape[0]
        gated = middle if hidden else 0
        in_caches = core.expands_in_caches(shape, expand, True, bf16=bf16)
        # The moments of the norms, and what the core calls kept.
        self._images = [
            (n, 0 if in_caches else expanded, height, width),
            (n, middle, out_height, out_width),
            (n, out, out_height, out_width),
        ]
        moments = [2 * expanded, 2 * middle, 2 * out]
        images = [floats_for(torch.Size(size).numel(), bf16) for size in self._images]
        self._moments = Buffers(moments)
        covariance = (in_channels + 1) * in_channels if in_caches else 0
        self._kept = Buffers([*moments, *images, n * gated, n * hidden, n * gated, covariance])
        self._y_form = memory.channels_last(n, out, out_height, out_width, bf16=bf16)
        self._forms = {True: memory.flat(self._kept.floats), False: memory.flat(self._moments.floats)}
        values = (n * height * width, *2 * (n * out_height * out_width,))
        self._running = [(r, values[r.which], (middle, middle, out)[r.which]) for r in running]
        self.y_shape = torch.Size((n, out, out_height, out_width))
        self.link = _core.InvertedResidualLink(self._layout(self._kept, self._running), self._core, self._present)

    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """See `Laid`."""
        buffers = self._kept if keep else self._moments
        y, kept = memory.empty(self._y_form), memory.empty(self._forms[keep])
        places = buffers.addresses(kept)
        of_core = places[3:] or (0,) * NUM_KEPT
        self._core.forward((x.data_ptr(), x.shape[1]), places[:3], of_core, y.data_ptr())
        update_running(self._running, places)
        return y, kept

    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        grad, _, grad_stride = rows_of(grad)
        places = self._kept.addresses(kept)
        addresses = [0] * NUM_PARAMETERS
        for i, address in zip(self._present, gradients, strict=False):  # depthwise weights and parts follow
            addresses[i] = address
        parts = len(self._present) + self._num_weights
        self._core.backward(
            (x.data_ptr(), x.shape[1]),
            places[:3],
            places[3:],
            (grad.data_ptr(), grad_stride),
            grad_x,
            addresses,
            gradients[len(self._present) : parts],
            gradients[parts:],
        )

    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        arrays = self._kept.arrays(kept)
        moments = [array.view(2, -1) for array in arrays[:3] if array.numel()]
        for i, (n, channels, height, width) in enumerate(self._images, start=3):
            if channels:
                numbers = arrays[i].view(x.dtype)[: n * height * width * channels]
                arrays[i] = numbers.view(n, height, width, channels).permute(0, 3, 1, 2)
        for i in range(6, 9):
            if arrays[i].numel():
                arrays[i] = arrays[i].view(x.shape[0], -1)
        values = iter(parameters)
        own = [next(values) if i in self._present else None for i in range(NUM_PARAMETERS)]
        weights = [next(values) for _ in range(self._num_weights)]
        joined = [(i, [next(values) for _ in range(count)]) for i, count in zip((0, 5), self._num_parts, strict=True)]
        for i, parts in joined:
            if parts:
                own[i] = torch.cat(parts)
        grad_x, *found = core.backward(grad, arrays[3:], x, self._options, moments, (*own, *weights))
        apart: list[Tensor] = []
        for i, parts in joined:
            whole = found[i]
            if parts and whole is not None:
                apart += whole.chunk(len(parts))
                found[i] = None
        return [value for value in (grad_x, *found, *apart) if value is not None]


def with_shapes(parameters: Sequence[Tensor | None], parts: Parts) -> list[Tensor | None]:
    """With what stands for weights in parts."""
    result = list(parameters)
    for i, of in ((0, parts.expand), (5, parts.project)):
        if of:
            out_channels, *rest = of[0].shape
            result[i] = torch.empty((len(of) * out_channels, *rest), device="meta")
    return result
