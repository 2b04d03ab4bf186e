"""Operation names and their meaning: the one place where a name becomes a specification."""

from __future__ import annotations

import re
from typing import Literal, TypedDict

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import positive_int, suggestion
from greedynas_fast.spaces.specs import (
    Activation,
    BottleneckSpec,
    IdentitySpec,
    InvertedResidualSpec,
    OperationSpec,
    ShuffleUnitSpec,
    SqueezeExciteSpec,
)

MIX_KERNEL_SIZES = (3, 5, 7)
RESNEXT_GROUPS = 32
MAX_KERNEL_SIZE = 31

# The order within a space is the order of the digits of a path, so it never changes.
MB_SE_OPERATIONS = (
    *(f"MB{e}_K{k}{se}" for se in ("", "_SE") for e in (3, 6) for k in (3, 5, 7)),
    "ID",
)
MIX_OPERATIONS = tuple(f"MB{e}_MIX{se}" for se in ("", "_SE") for e in (3, 6))
SHUFFLE_OPERATIONS = ("Shuffle_3", "Shuffle_5", "Shuffle_7", "Shuffle_x")
RES_OPERATIONS = (
    *(f"{kind}_K{k}_{factor}x" for kind in ("Res", "ResNeXt") for k in (3, 5, 7) for factor in ("0.5", "1", "1.5")),
    "ID",
)
KNOWN_OPERATIONS = (*MB_SE_OPERATIONS, *MIX_OPERATIONS, *SHUFFLE_OPERATIONS, *RES_OPERATIONS[:-1])

_INVERTED_RESIDUAL = re.compile(r"MB(\d{1,3})_(?:K(\d{1,3})|MIX)(_SE)?", re.IGNORECASE)
_SHUFFLE = re.compile(r"Shuffle_([357x])", re.IGNORECASE)
_BOTTLENECK = re.compile(r"Res(NeXt)?_K(\d{1,3})_(\d{1,3}(?:\.\d{1,3})?)x", re.IGNORECASE)


class OperationOptions(TypedDict, total=False):
    """Keyword arguments of `operation`, for callers that hand them on."""

    activation: Activation
    se_ratio: float
    shuffle_se: bool
    shuffle_activation: Activation
    res_se_reduction: int | None


def operation(
    name: str,
    *,
    activation: Activation = "hard_swish",
    se_ratio: float = 0.25,
    shuffle_se: bool = False,
    shuffle_activation: Activation = "relu",
    res_se_reduction: int | None = 8,
) -> OperationSpec:
    """Turn an operation name into its specification (Table 1).

    Names, in any case: `MB{e}_K{k}[_SE]` and `MB{e}_MIX[_SE]` (inverted residual with expansion e; MIX splits the
    depthwise convolution over kernels 3, 5, 7), `Shuffle_{3,5,7,x}`, `Res_K{k}_{f}x` and `ResNeXt_K{k}_{f}x`
    (bottleneck whose inner width is f times the usual one), `ID`.

    Args:
        name: the operation's name.
        activation: of `MB` blocks and of their squeeze-and-excitation.
        se_ratio: reduced over full width in the squeeze-and-excitation of `MB` and `Shuffle` blocks.
        shuffle_se: whether `Shuffle` units end in a squeeze-and-excitation.
        shuffle_activation: of `Shuffle` units.
        res_se_reduction: full over reduced width on the output of `Res` and `ResNeXt` blocks; None or 0: no
            squeeze-and-excitation.

    Raises:
        InputError: no such operation, or a kernel size or factor that cannot be built.
    """
    if name.upper() == "ID":
        return IdentitySpec()
    if match := _INVERTED_RESIDUAL.fullmatch(name):
        expansion, kernel, se_suffix = match.groups()
        kernels = MIX_KERNEL_SIZES if kernel is None else (_kernel_size(name, kernel),)
        return InvertedResidualSpec(
            name=name.upper(),
            expansion=positive_int(f"operation {name}: expansion", int(expansion)),
            kernel_sizes=kernels,
            activation=activation,
            se=SqueezeExciteSpec(se_ratio, activation) if se_suffix else None,
        )
    if match := _SHUFFLE.fullmatch(name):
        size = match.group(1).lower()
        kernel_size: int | Literal["x"] = "x" if size == "x" else int(size)
        se = SqueezeExciteSpec(se_ratio, shuffle_activation) if shuffle_se else None
        return ShuffleUnitSpec(f"Shuffle_{size}", kernel_size, shuffle_activation, se)
    if match := _BOTTLENECK.fullmatch(name):
        return _bottleneck(name, match, res_se_reduction)
    raise InputError(f"unknown operation {name!r}; {suggestion(name, KNOWN_OPERATIONS)}")


def _bottleneck(name: str, match: re.Match[str], se_reduction: int | None) -> BottleneckSpec:
    """Specification of a `Res` or `ResNeXt` block."""
    next_suffix, kernel, factor_text = match.groups()
    kernel_size, factor = _kernel_size(name, kernel), float(factor_text)
    if factor == 0:
        raise InputError(f"operation {name}: the width factor must be above 0")
    se = None
    if se_reduction:
        # SENet's own gate: ReLU between the convolutions, then a sigmoid.
        se = SqueezeExciteSpec(1 / positive_int("res_se_reduction", se_reduction), "relu", "sigmoid")
    kind, groups = ("ResNeXt", RESNEXT_GROUPS) if next_suffix else ("Res", 1)
    return BottleneckSpec(f"{kind}_K{kernel_size}_{factor:g}x", kernel_size, factor, groups, se)


def _kernel_size(name: str, text: str) -> int:
    """An odd kernel size; even ones have no symmetric padding."""
    size = int(text)
    if size % 2 == 0 or size > MAX_KERNEL_SIZE:
        raise InputError(f"operation {name}: expected an odd kernel size up to {MAX_KERNEL_SIZE}, got {size}")
    return size
