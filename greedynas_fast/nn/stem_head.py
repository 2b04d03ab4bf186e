"""The fixed ends of a network: what comes before the first searchable layer and after the last."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import Fusable, has_hooks, is_plain_convolution, name_of, norm_act
from greedynas_fast.nn.build import build_operation
from greedynas_fast.nn.dropout import BatchDropout
from greedynas_fast.nn.fused_norm import run_norm_act
from greedynas_fast.nn.prepared import Found, Prepared, found_again, slots_of
from greedynas_fast.nn.primitives import activation, conv2d
from greedynas_fast.ops import direct
from greedynas_fast.ops.conv_norm_act import ConvNormAct
from greedynas_fast.ops.head_loss import HeadLoss, HeadTargets
from greedynas_fast.ops.pooled_pointwise import PooledPointwise
from greedynas_fast.ops.rows import threads
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, StemSpec


def _fixed_block(layer: LayerSpec) -> nn.Module:
    if len(layer.ops) != 1:
        raise InputError(f"stem: a fixed block has one operation, got {len(layer.ops)}")
    return build_operation(layer.ops[0], layer.in_channels, layer.out_channels, layer.stride)


class Stem(Fusable):
    """k x k convolution, BN, activation, [3x3 stride-2 max pool], fixed blocks.

    Args:
        spec: of the stem.
        in_channels: channels of an image.
    """

    def __init__(self, spec: StemSpec, in_channels: int) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, spec.out_channels, spec.kernel_size, stride=spec.stride)
        self.bn = nn.BatchNorm2d(spec.out_channels)
        self.act = activation(spec.activation)
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if spec.max_pool else nn.Identity()
        self.blocks = nn.Sequential(*(_fixed_block(layer) for layer in spec.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to the input of the first searchable layer."""
        activated = self._activated_in_one(x)
        if activated is None:
            raw = self.conv(x)
            activated = run_norm_act(self, self.bn, self.act, raw)
            if activated is None:
                activated = self.act(self.bn(raw))
        y: Tensor = self.blocks(self.pool(activated))
        return y

    def find_first(self, shape: torch.Size, bf16: bool) -> Found | None:
        """What the last call ran as one operation before the pool, see `prepared.found_again`."""
        return found_again(self, shape, bf16, self.conv, self.bn, self.act)

    def _activated_in_one(self, x: Tensor) -> Tensor | None:
        """[N, C_in, H, W] -> [N, C, H', W']; None where layers are to run one by one, as for images with a gradient."""
        if x.requires_grad and torch.is_grad_enabled():
            return None
        seen = self.seen_fit(x, self.conv, self.bn, self.act)
        if seen is None:
            return None
        prepared: _PreparedStem = seen.prepare(lambda: _PreparedStem(self))
        return prepared.run(x)

    def _stands_for(self, layer: nn.Module) -> bool:
        if layer is self.conv:
            return not has_hooks(layer) and is_plain_convolution(self.conv)
        return super()._stands_for(layer)


class Head(Fusable):
    """[1x1 convolution, BN, activation], global average pool, dropout, linear.

    Args:
        spec: of the head.
        num_classes: number of logits.
    """

    def __init__(self, spec: HeadSpec, num_classes: int) -> None:
        super().__init__()
        features = spec.in_channels if spec.channels is None else spec.channels
        self.has_conv = spec.channels is not None
        if self.has_conv:
            self.conv = conv2d(spec.in_channels, features)
            self.bn = nn.BatchNorm2d(features)
            self.act = activation(spec.activation)
        self.dropout = BatchDropout(spec.dropout)
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> logits [N, num_classes]."""
        pooled = self._pooled_in_one(x) if self.has_conv else None
        if pooled is None:
            if self.has_conv:
                x = self.conv(x)
                x = norm_act(self.bn, self.act, x) if self.fuses(x, self.bn, self.act) else self.act(self.bn(x))
            # Over rows of channels: the gradient then has the layout of x, which an expanded one has not.
            pooled = x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    def loss(self, x: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the logits, computed in float32, and how many images are classified correctly.

        Args:
            x: [N, C, H, W].
            labels: int64 [N].
            label_smoothing: share of the target that all classes have in equal parts.

        Returns:
            Two scalars, float32 and int64.

        Raises:
            InputError: a label that is no class; where layers run one by one, torch's own error.
        """
        in_one = self._loss_in_one(x, labels, label_smoothing)
        if in_one is not None:
            return in_one
        logits = self(x).float()  # where label smoothing over many classes keeps its small terms
        loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return loss, (logits.detach().argmax(dim=1) == labels).sum()

    def _loss_in_one(self, x: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor] | None:
        """None where layers are to run one by one."""
        if not self.has_conv or has_hooks(self) or not _are_labels(labels, x.shape):
            return None
        seen = self.seen_fit(x, *self._all_layers())
        if seen is None:
            return None
        prepared: _Prepared = seen.prepare(lambda: _Prepared(self, with_loss=True))
        found = prepared.find(x)
        if found is None:
            return None
        targets = self.targets(labels, label_smoothing)
        return direct.run(x, *found, targets), targets.correct

    def find_loss(self, shape: torch.Size, labels: Tensor, bf16: bool) -> Found | None:
        """What the last call of `loss` ran as one operation, see `prepared.found_again`."""
        fit = self.has_conv and _are_labels(labels, shape)
        return found_again(self, shape, bf16, *self._all_layers()) if fit else None

    def targets(self, labels: Tensor, label_smoothing: float) -> HeadTargets:
        """For `ops.head_loss`; draws the mask of dropout."""
        mask, scale = self.dropout.draw(len(labels), self.classifier.in_features)
        return HeadTargets(labels, label_smoothing, mask, scale, torch.empty((), dtype=torch.int64))

    def _all_layers(self) -> tuple[nn.Module, ...]:
        return self.conv, self.bn, self.act, self.dropout, self.classifier

    def _pooled_in_one(self, x: Tensor) -> Tensor | None:
        """[N, C, H, W] -> [N, features]; None where layers are to run one by one."""
        seen = self.seen_fit(x, self.conv, self.bn, self.act)
        if seen is None:
            return None
        prepared: _Prepared = seen.prepare(lambda: _Prepared(self))
        return prepared.run(x)


def _are_labels(labels: Tensor, shape: torch.Size) -> bool:
    """Whether the core can read the labels of images of this shape."""
    plain = labels.dtype is torch.int64 and labels.is_contiguous() and labels.device.type == "cpu"
    return plain and labels.shape == shape[:1] and direct.unwatched(labels)


class _PreparedStem(Prepared):
    """The layers of a stem up to the activation."""

    of_images = True

    def __init__(self, stem: Stem) -> None:
        super().__init__([(stem.conv, "weight"), *slots_of(stem.bn)], [stem.bn])
        self._stride, self._activation = stem.conv.stride[0], stem.act

    def lay_out(
        self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running], bf16: bool
    ) -> direct.Laid | None:
        """See `Prepared`."""
        weight, gamma, beta = cast("list[Tensor]", parameters)
        if not weight.is_contiguous(memory_format=torch.channels_last):
            return None
        norm = gamma, beta, self._norms[0].eps
        return ConvNormAct(x.shape, weight, self._stride, norm, name_of(self._activation), running, threads(), bf16)


class _Prepared(Prepared):
    """The layers of a head up to the average, or with its classifier and the loss."""

    def __init__(self, head: Head, with_loss: bool = False) -> None:
        more = slots_of(head.classifier) if with_loss else ()
        super().__init__([(head.conv, "weight"), *slots_of(head.bn), *more], [head.bn])
        self._activation = head.act

    def lay_out(
        self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running], bf16: bool
    ) -> direct.Laid:
        """See `Prepared`."""
        weight, gamma, beta, *classifier = cast("list[Tensor]", parameters)
        layers = weight, (gamma, beta, self._norms[0].eps), name_of(self._activation)
        if not classifier:
            return PooledPointwise(x.shape, *layers, running, threads(), bf16)
        return HeadLoss(x.shape, layers, (classifier[0], classifier[1]), running, threads(), bf16)
