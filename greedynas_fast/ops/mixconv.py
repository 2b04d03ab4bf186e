"""MixConv: depthwise convolution with a kernel size a group of channels (https://arxiv.org/abs/1907.09595).

On the CPU in float32 and bf16 the compiled core runs it (csrc/blocks/mixconv.h), forward and backward; everything else
runs `greedynas_fast.reference.mixconv`. A plain depthwise convolution is a MixConv of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.reference import mixconv as reference
from greedynas_fast.reference.bn_act import ACTIVATIONS

from . import memory
from .library import define, fake, implement
from .rows import autocast, backend, threads

NormAct = tuple[torch.Tensor, torch.Tensor, str]
_Tensor = torch.Tensor
MAX_KERNEL = _core.MIXCONV_MAX_KERNEL
# As blocks::MixconvActivation counts.
_CODES = {"none": 0, "identity": 1, "relu": 2, "hard_swish": 3, "silu": 4, "relu6": 5}
PADDINGS = ("symmetric", "same_upper")
_NO_TENSOR = (0, 0, 0, 0)


@overload
def mixconv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    kernel_sizes: Sequence[int],
    stride: int = 1,
    norm_act: NormAct | None = None,
    want_stats: Literal[False] = False,
    *,
    padding: str = "symmetric",
) -> torch.Tensor: ...
@overload
def mixconv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    kernel_sizes: Sequence[int],
    stride: int = 1,
    norm_act: NormAct | None = None,
    *,
    want_stats: Literal[True],
    padding: str = "symmetric",
) -> tuple[torch.Tensor, torch.Tensor]: ...
def mixconv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    kernel_sizes: Sequence[int],
    stride: int = 1,
    norm_act: NormAct | None = None,
    want_stats: bool = False,
    *,
    padding: str = "symmetric",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Convolve each channel with its own k x k filter, k being that of the channel's group.

    Differentiable once, in x, the weights, scale and shift, also through the statistics. Sums are float32. The
    gradients of one call come from a single sweep over x and the gradient of y, in which x is activated anew.
    All in bf16, without `norm_act` and at stride 1, the CPU level `avx512_bf16` multiplies pairs of rows: subnormal
    numbers then count as zero, and one that is not finite may reach results a row further than the kernel does.

    Args:
        x: [N, C, H, W]; channels-last memory (slices of channels included) is used as it is, other layouts are copied.
        weights: one [C_g, 1, k, k] a group of consecutive channels, all float32 or all of the dtype of x.
        kernel_sizes: the k of each group: odd, up to 11.
        stride: 1 or 2.
        norm_act: scale [C], shift [C] and `identity`, `relu`, `hard_swish`, `silu` or `relu6`: then
            act(x * scale + shift) is convolved. The padding is zero after the activation.
        want_stats: return statistics of y too, for a batch norm.
        padding: `symmetric`, k // 2 zeros on all sides, or `same_upper` (so called by ONNX; TensorFlow's SAME): no more
            zeros than y needs, the odd one after the end. At stride 2 windows then begin a pixel later along an even
            size, unless k is 1.

    Returns:
        y [N, C, ceil(H / stride), ceil(W / stride)], channels-last, of the dtype of x, or autocast's; with `want_stats`
        also [2, C] float32 (float64 for float64): sum and sum of squares of each channel of y as it is stored.

    Raises:
        InputError: shapes, dtypes, kernel sizes, stride, padding or activation that do not fit together.
    """
    x = autocast(x)
    check(x, weights, kernel_sizes, stride, norm_act, padding)
    if backend(x, on_cuda=True) == "reference":
        return reference.mixconv(x, weights, kernel_sizes, stride, norm_act, want_stats, padding=padding)
    scale, shift, activation = (None, None, "none") if norm_act is None else norm_act
    y, stats = _Mixconv.apply(
        _ready(x),
        None if scale is None else scale.float(),
        None if shift is None else shift.float(),
        (tuple(kernel_sizes), stride, padding, activation, want_stats),
        *weights,
    )
    return (y, stats) if want_stats else y


def check(
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    norm_act: NormAct | None,
    padding: str,
) -> None:
    """Raise what `mixconv` raises for these arguments."""
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"mixconv: x must be floating point [N, C, H, W], got {x.dtype} {list(x.shape)}")
    if min(x.shape[1:]) < 1:
        raise InputError(f"mixconv: x must have channels, rows and columns, got {list(x.shape)}")
    if stride not in (1, 2):
        raise InputError(f"mixconv: stride must be 1 or 2, got {stride}")
    if padding not in PADDINGS:
        raise InputError(f"mixconv: padding must be symmetric or same_upper, got {padding!r}")
    if not weights or len(weights) != len(kernel_sizes):
        raise InputError(f"mixconv: expected a weight a kernel size, got {len(weights)} for {len(kernel_sizes)}")
    for index, (weight, kernel) in enumerate(zip(weights, kernel_sizes, strict=True)):
        if kernel % 2 == 0 or not 1 <= kernel <= MAX_KERNEL:
            raise InputError(f"mixconv: kernel size {index} must be odd and 1 to {MAX_KERNEL}, got {kernel}")
        if weight.ndim != 4 or weight.shape[1:] != (1, kernel, kernel):
            raise InputError(f"mixconv: weight {index} must be [C_g, 1, {kernel}, {kernel}], got {list(weight.shape)}")
        if weight.dtype != weights[0].dtype or weight.dtype not in (torch.float32, x.dtype):
            raise InputError(
                f"mixconv: weights must all be float32 or all {x.dtype} as x, weight {index} is {weight.dtype}"
            )
        if weight.device != x.device:
            raise InputError(f"mixconv: weight {index} is on {weight.device}, x on {x.device}")
    channels = [weight.shape[0] for weight in weights]
    if sum(channels) != x.shape[1]:
        left = x.shape[1] - sum(channels[:-1])
        raise InputError(
            f"mixconv: weight {len(weights) - 1} has {channels[-1]} channels, its group of x has {max(left, 0)}"
        )
    if norm_act is not None:
        check_norm_act("mixconv", x, *norm_act)


def check_norm_act(operation: str, x: _Tensor, scale: _Tensor, shift: _Tensor, activation: str) -> None:
    """Raise, in the name of an operation, what is wrong with a norm and an activation before it.

    Raises:
        InputError: an unknown activation, or scale and shift that do not fit x [N, C, H, W].
    """
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{operation}: activation must be identity, relu, hard_swish, silu or relu6, got {activation!r}"
        )
    for name, value in (("scale", scale), ("shift", shift)):
        if value.ndim != 1 or value.shape[0] != x.shape[1] or not value.is_floating_point():
            raise InputError(
                f"{operation}: {name} must be floating point [{x.shape[1]}], got {value.dtype} {list(value.shape)}"
            )
        if value.device != x.device:
            raise InputError(f"{operation}: {name} is on {value.device}, x on {x.device}")


def _ready(x: _Tensor) -> _Tensor:
    """`x` with neighbouring channels side by side: itself, or a channels-last copy."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


class _Mixconv(torch.autograd.Function):
    """`options` is kernel sizes, stride, padding, activation, want_stats."""

    @staticmethod
    def forward(
        ctx: Any,
        x: _Tensor,
        scale: _Tensor | None,
        shift: _Tensor | None,
        options: tuple[tuple[int, ...], int, str, str, bool],
        *weights: _Tensor,
    ) -> tuple[_Tensor, _Tensor]:
        kernel_sizes, stride, padding, activation, want_stats = options
        y, stats = forward_op(x, weights, kernel_sizes, stride, padding, scale, shift, activation, want_stats)
        ctx.save_for_backward(x, scale, shift, y if want_stats else None, *weights)
        ctx.options = options
        ctx.set_materialize_grads(False)
        if not want_stats:
            ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: _Tensor | None, stats_grad: _Tensor | None) -> tuple[_Tensor | None, ...]:
        x, scale, shift, y, *weights = ctx.saved_tensors
        kernel_sizes, stride, padding, activation, want_stats = ctx.options
        if grad is None and (stats_grad is None or not want_stats):
            return (None,) * (4 + len(weights))
        if grad is None:
            grad = torch.zeros_like(y)
        if not want_stats:
            stats_grad = None
        wants = ctx.needs_input_grad
        want_norm, want_weights = wants[1] or wants[2], any(wants[4:])
        x_grad, weight_grads, norm_grad = backward_op(
            grad,
            stats_grad,
            None if stats_grad is None else y,
            x,
            weights,
            kernel_sizes,
            stride,
            padding,
            scale,
            shift,
            activation,
            [wants[0], want_weights, want_norm],
        )
        return (
            x_grad if wants[0] else None,
            norm_grad[0] if wants[1] else None,
            norm_grad[1] if wants[2] else None,
            None,
            *(
                [g if w else None for g, w in zip(weight_grads, wants[4:], strict=True)]
                if want_weights
                else [None] * len(weights)
            ),
        )


define(
    "mixconv(Tensor x, Tensor[] weights, int[] kernel_sizes, int stride, str padding, Tensor? scale, "
    "Tensor? shift, str activation, bool want_stats) -> (Tensor, Tensor)"
)
# wants: gradients of x, of the weights, of scale and shift; one that is not wanted is an empty tensor or list.
define(
    "mixconv_backward(Tensor grad, Tensor? stats_grad, Tensor? y, Tensor x, Tensor[] weights, int[] kernel_sizes, "
    "int stride, str padding, Tensor? scale, Tensor? shift, str activation, bool[] wants) -> (Tensor, Tensor[], Tensor)"
)
forward_op = torch.ops.greedynas.mixconv.default
backward_op = torch.ops.greedynas.mixconv_backward.default


def new_outputs(shape: Sequence[int], like: _Tensor, stride: int, want_stats: bool) -> tuple[_Tensor, _Tensor]:
    """Memory for y and statistics of an input of this shape, of the type of `like`."""
    batch, channels, height, width = shape
    size = (batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    y = memory.image(like, size)
    return y, torch.empty((2, channels if want_stats else 0), dtype=torch.float32, device=like.device)


def _new_grads(x: _Tensor, weights: Sequence[_Tensor], wants: Sequence[bool]) -> tuple[_Tensor, list[_Tensor], _Tensor]:
    want_x, want_weights, want_norm = wants
    return (
        memory.image(x, x.shape) if want_x else x.new_empty(0),
        [torch.empty(w.shape, dtype=w.dtype, device=w.device) for w in weights] if want_weights else [],
        torch.empty((2, x.shape[1] if want_norm else 0), dtype=torch.float32, device=x.device),
    )


def _place(x: _Tensor) -> tuple[int, int, int, int]:
    """Address and strides of images, rows and pixels, as the core takes them."""
    image, _, row, pixel = x.stride()
    return x.data_ptr(), image, row, pixel


def _address(x: _Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def make_call(
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    activation: str,
    scale: _Tensor | None,
    shift: _Tensor | None,
) -> _core.MixconvCall:
    """What the core needs to know; the tensors must outlive it."""
    return _core.MixconvCall(
        x.dtype == torch.bfloat16,
        weights[0].dtype == torch.bfloat16,
        (x.shape[0], x.shape[2], x.shape[3]),
        stride,
        padding == "same_upper",
        [(weight.shape[0], kernel, weight.data_ptr()) for weight, kernel in zip(weights, kernel_sizes, strict=True)],
        _place(x),
        _CODES[activation],
        _address(scale),
        _address(shift),
    )


def _forward_cpu(
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: _Tensor | None,
    shift: _Tensor | None,
    activation: str,
    want_stats: bool,
) -> tuple[_Tensor, _Tensor]:
    x, weights = _ready(x), [weight.contiguous() for weight in weights]
    scale, shift = (None if value is None else value.contiguous() for value in (scale, shift))
    y, stats = new_outputs(x.shape, x, stride, want_stats)
    call = make_call(x, weights, kernel_sizes, stride, padding, activation, scale, shift)
    call.forward(_place(y), stats.data_ptr() if want_stats else 0, threads())
    return y, stats


def _backward_cpu(
    grad: _Tensor,
    stats_grad: _Tensor | None,
    y: _Tensor | None,
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: _Tensor | None,
    shift: _Tensor | None,
    activation: str,
    wants: Sequence[bool],
) -> tuple[_Tensor, list[_Tensor], _Tensor]:
    x, grad, weights = _ready(x), _ready(grad), [weight.contiguous() for weight in weights]
    scale, shift, stats_grad = (None if value is None else value.contiguous() for value in (scale, shift, stats_grad))
    x_grad, weight_grads, norm_grad = _new_grads(x, weights, wants)
    want_x, _, want_norm = wants
    # The gradients of scale and shift are sums over that of x, which is then computed too.
    scratch = _new_grads(x, (), (True, False, False))[0] if want_norm and not want_x else x_grad
    call = make_call(x, weights, kernel_sizes, stride, padding, activation, scale, shift)
    call.backward(
        _place(grad),
        _address(stats_grad),
        _NO_TENSOR if y is None else _place(y),
        _place(scratch) if want_x or want_norm else _NO_TENSOR,
        [weight_grad.data_ptr() for weight_grad in weight_grads],
        norm_grad.data_ptr() if want_norm else 0,
        threads(),
    )
    return x_grad, weight_grads, norm_grad


implement("mixconv", _forward_cpu)
implement("mixconv_backward", _backward_cpu)


@fake("mixconv")
def _forward_fake(
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: _Tensor | None,
    shift: _Tensor | None,
    activation: str,
    want_stats: bool,
) -> tuple[_Tensor, _Tensor]:
    return new_outputs(x.shape, x, stride, want_stats)


@fake("mixconv_backward")
def _backward_fake(
    grad: _Tensor,
    stats_grad: _Tensor | None,
    y: _Tensor | None,
    x: _Tensor,
    weights: Sequence[_Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: _Tensor | None,
    shift: _Tensor | None,
    activation: str,
    wants: Sequence[bool],
) -> tuple[_Tensor, list[_Tensor], _Tensor]:
    return _new_grads(x, weights, wants)


def _flops(weight_shapes: Sequence[Sequence[int]], image_shape: Sequence[int]) -> int:
    """Two a multiplication, as torch counts convolutions: those with the padding too."""
    batch, _, height, width = image_shape
    return 2 * batch * height * width * sum(shape[0] * shape[2] * shape[3] for shape in weight_shapes)


@register_flop_formula(torch.ops.greedynas.mixconv)
def _forward_flops(
    x_shape: Sequence[int], weight_shapes: Sequence[Sequence[int]], *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return _flops(weight_shapes, out_shape[0])


@register_flop_formula(torch.ops.greedynas.mixconv_backward)
def _backward_flops(grad_shape: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    *_, wants = args
    return (int(wants[0]) + int(wants[1])) * _flops(args[3], grad_shape)
