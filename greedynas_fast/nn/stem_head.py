"""The fixed ends of a network: what comes before the first searchable layer and after the last."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import Fusable, name_of, norm_act
from greedynas_fast.nn.build import build_operation
from greedynas_fast.nn.dropout import BatchDropout
from greedynas_fast.nn.fused_norm import run_norm_act
from greedynas_fast.nn.prepared import Prepared, slots_of
from greedynas_fast.nn.primitives import activation, conv2d
from greedynas_fast.ops import direct
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
        raw = self.conv(x)
        activated = run_norm_act(self, self.bn, self.act, raw)
        if activated is None:
            activated = self.act(self.bn(raw))
        y: Tensor = self.blocks(self.pool(activated))
        return y


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

    def _pooled_in_one(self, x: Tensor) -> Tensor | None:
        """[N, C, H, W] -> [N, features]; None where layers are to run one by one."""
        seen = self.seen_fit(x, self.conv, self.bn, self.act)
        if seen is None:
            return None
        if seen.prepared is None:
            seen.prepared = _Prepared(self)
        prepared: _Prepared = seen.prepared
        return prepared.run(x)


class _Prepared(Prepared):
    """The layers of a head up to the average."""

    def __init__(self, head: Head) -> None:
        super().__init__([(head.conv, "weight"), *slots_of(head.bn)], [head.bn])
        self._activation = head.act

    def lay_out(self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running]) -> direct.Laid:
        """See `Prepared`."""
        weight, gamma, beta = cast("list[Tensor]", parameters)
        name = name_of(self._activation)
        (norm,) = self._norms
        return PooledPointwise(x.shape, weight, (gamma, beta, norm.eps), name, running, threads())
