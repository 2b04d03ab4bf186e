"""Layers one after the other, as one step of autograd where they can be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from greedynas_fast.nn.backend import has_hooks
from greedynas_fast.nn.inverted_residual import InvertedResidual
from greedynas_fast.nn.prepared import Found, found_again, hands_on_bf16
from greedynas_fast.nn.stem_head import Head, Stem
from greedynas_fast.ops import direct
from greedynas_fast.ops.chain import run_chain
from greedynas_fast.ops.head_loss import HeadTargets


def loss_in_turn(
    stem: Stem, layers: Iterable[nn.Module], head: Head, x: Tensor, labels: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """What `head.loss` says of the layers' result.

    Args:
        stem: before the layers.
        layers: one after the other.
        head: after them.
        x: images [N, C, H, W].
        labels: int64 [N].
        label_smoothing: see `Head.loss`.
    """
    rest = deque(layers)
    row = _row_for(x, torch.float32)
    if (
        row is not None
        and not x.requires_grad
        and type(stem.pool) is nn.Identity
        and not has_hooks(stem.blocks)
        and row.take(stem.find_first(x.shape, row.bf16))
    ):
        rest.extendleft(reversed(stem.blocks))
        row.take_from(rest)
        if not rest and row.take(head.find_loss(row.shape, labels, row.bf16)):
            targets = head.targets(labels, label_smoothing)
            return row.run(x, targets), targets.correct
        x = row.run(x)
    else:
        x = stem(x)
    return head.loss(run_in_turn(rest, x), labels, label_smoothing)


def run_in_turn(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What `nn.Sequential` of the layers does.

    Inverted residuals in a row are one step of autograd where they add to gradients themselves
    (`ops.direct.adding_to_grad`), once each has run alone on an input of the same shape.
    """
    rest = deque(layers)
    while rest:
        row = _row_for(x, torch.bfloat16 if hands_on_bf16() else torch.float32)
        if row is not None:
            row.take_from(rest)
        x = row.run(x) if row is not None and row.layers else rest.popleft()(x)
    return x


class _Row:
    """Layers that will run as one.

    Attributes:
        layers: laid out.
        shape: of the result.
        bf16: layers hand it to each other.
    """

    def __init__(self, shape: torch.Size, bf16: bool) -> None:
        self.layers: list[direct.Laid] = []
        self.shape = shape
        self.bf16 = bf16
        self._parameters: list[Tensor] = []

    def take(self, found: Found | None) -> bool:
        """Whether these layers could be taken in."""
        if found is None or found[0].link is None or not direct.adds(found[1]):
            return False
        laid, parameters = found
        self.layers.append(laid)
        self._parameters += parameters
        self.shape = laid.y_shape
        return True

    def take_from(self, rest: deque[nn.Module]) -> None:
        """Take blocks from the beginning as long as that is possible."""
        while rest:
            layer = rest[0]
            passes_on = type(layer) is nn.Identity and self.layers and not has_hooks(layer)
            if not passes_on and not (
                type(layer) is InvertedResidual and self.take(found_again(layer, self.shape, self.bf16))
            ):
                return
            rest.popleft()

    def run(self, x: Tensor, targets: HeadTargets | None = None) -> Tensor:
        """Run them."""
        return run_chain(x, self.layers, self._parameters, targets)


def _row_for(x: Tensor, dtype: torch.dtype) -> _Row | None:
    """One that begins with this input, if it has this type; None where layers run one by one."""
    bf16 = hands_on_bf16()
    may_chain = (
        torch.is_grad_enabled()
        and x.dtype is dtype
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and direct.unwatched(x)
        and not torch._C._autograd._profiler_enabled()  # wants to see each block
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
    )
    return None if bf16 is None or not may_chain else _Row(x.shape, bf16)
