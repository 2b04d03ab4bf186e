"""Whether the parts of a search space fit together."""

from __future__ import annotations

from typing import get_args

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import positive_int
from greedynas_fast.spaces.cost import check_shape
from greedynas_fast.spaces.specs import Activation, HeadSpec, LayerSpec, StemSpec

MAX_LAYERS = 25  # 5 bits an operation in a 128-bit key
MAX_OPERATIONS = 32


def total_stride(stem: StemSpec, layers: tuple[LayerSpec, ...]) -> int:
    """How many times smaller the last feature map is than the image."""
    factor = stem.stride * (2 if stem.max_pool else 1)
    for layer in (*stem.blocks, *layers):
        factor *= layer.stride
    return factor


def check_structure(name: str, stem: StemSpec, layers: tuple[LayerSpec, ...], head: HeadSpec) -> None:
    """Check the parts of a space and how they join.

    Raises:
        InputError: naming the part, what was expected and what came.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"space: expected a name, got {name!r}")
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise InputError(f"{name}: expected 1 to {MAX_LAYERS} searchable layers, got {len(layers)}")
    channels = _check_stem(stem)
    for position, layer in enumerate(layers):
        where = f"layer {position}"
        if layer.index != position:
            raise InputError(f"{where}: expected index {position}, got {layer.index}")
        channels = _check_layer(where, layer, channels)
        names = [spec.name for spec in layer.ops]
        if len(set(names)) != len(names):
            raise InputError(f"{where}: an operation is listed twice in {', '.join(names)}")
    _check_head(head, channels)


def _check_stem(stem: StemSpec) -> int:
    """Check the stem and return its output channels."""
    channels = positive_int("stem.channels", stem.out_channels)
    if positive_int("stem.kernel", stem.kernel_size) % 2 == 0:
        raise InputError(f"stem.kernel: expected an odd size, got {stem.kernel_size}")
    positive_int("stem.stride", stem.stride)
    _check_activation("stem.activation", stem.activation)
    for position, block in enumerate(stem.blocks):
        if len(block.ops) != 1:
            raise InputError(f"stem.blocks[{position}]: expected one operation, got {len(block.ops)}")
        channels = _check_layer(f"stem.blocks[{position}]", block, channels)
    return channels


def _check_layer(where: str, layer: LayerSpec, in_channels: int) -> int:
    """Check a layer that gets `in_channels` and return its output channels."""
    if layer.in_channels != in_channels:
        raise InputError(f"{where}: gets {in_channels} channels, expects {layer.in_channels}")
    if positive_int(f"{where}: stride", layer.stride) > 2:
        raise InputError(f"{where}: expected stride 1 or 2, got {layer.stride}")
    channels = positive_int(f"{where}: channels", layer.out_channels)
    if not 1 <= len(layer.ops) <= MAX_OPERATIONS:
        raise InputError(f"{where}: expected 1 to {MAX_OPERATIONS} operations, got {len(layer.ops)}")
    for spec in layer.ops:
        try:
            check_shape(spec, in_channels, channels, layer.stride)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return channels


def _check_head(head: HeadSpec, in_channels: int) -> None:
    """Check a head that gets `in_channels`."""
    if head.in_channels != in_channels:
        raise InputError(f"head: gets {in_channels} channels, expects {head.in_channels}")
    if head.channels is not None:
        positive_int("head.channels", head.channels)
    _check_activation("head.activation", head.activation)
    if isinstance(head.dropout, bool) or not isinstance(head.dropout, int | float) or not 0 <= head.dropout < 1:
        raise InputError(f"head.dropout: expected a number from 0 up to but not including 1, got {head.dropout!r}")


def _check_activation(where: str, value: object) -> None:
    """Refuse an activation that nothing here knows."""
    if value not in get_args(Activation):
        raise InputError(f"{where}: expected one of {', '.join(get_args(Activation))}, got {value!r}")
