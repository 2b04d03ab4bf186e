"""The operators of the fused layers on CUDA devices: csrc/blocks/cuda behind `torch.ops.greedynas`.

Importing this registers them. Tensors of x's kind are float32, bf16 or fp16; work is queued on torch's current stream.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast._cuda import index_of, memory, require_device, stream_of
from greedynas_fast.errors import InputError, call

from . import bn_core as bn
from .library import implement
from .mixconv import _CODES as mixconv_CODES
from .mixconv import _NO_TENSOR, _new_grads, _place, new_outputs
from .mixconv import _ready as mixconv_ready
from .rows import rows_of
from .squeeze_excite import (
    PROLOGUES,
    _activated,
    _backward_of_products,
    _like,
    _matrix,
    _outputs_of_products,
    _vector,
    gates_of,
)

_STORAGES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as blocks::cuda::Storage counts
_require = functools.cache(require_device)


@contextmanager
def _on_device_of(x: Tensor) -> Iterator[tuple[int, int]]:
    """Makes the device of x current; gives its index and stream, as the core takes them."""
    device = _require(x.device)
    with torch.cuda.device(device):
        yield index_of(device), stream_of(device)


def _storage(x: Tensor) -> int:
    if x.dtype not in _STORAGES:
        raise InputError(f"the CUDA kernels take float32, bfloat16 and float16, got {x.dtype}")
    return _STORAGES[x.dtype]


def _floats(count: int, like: Tensor) -> Tensor:
    return torch.empty(max(count, 1), dtype=torch.float32, device=like.device)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _mixconv_call(
    x: Tensor,
    weights: Sequence[Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
) -> _core.CudaMixconv:
    """What the core needs to know; the tensors must outlive it."""
    return _core.CudaMixconv(
        _storage(x),
        _storage(weights[0]),
        (x.shape[0], x.shape[2], x.shape[3]),
        stride,
        padding == "same_upper",
        [(weight.shape[0], kernel, weight.data_ptr()) for weight, kernel in zip(weights, kernel_sizes, strict=True)],
        _place(x),
        mixconv_CODES[activation],
        _address(scale),
        _address(shift),
    )


def _mixconv(
    x: Tensor,
    weights: Sequence[Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    want_stats: bool,
) -> tuple[Tensor, Tensor]:
    x, weights = mixconv_ready(x), [weight.contiguous() for weight in weights]
    scale, shift = (None if value is None else value.contiguous() for value in (scale, shift))
    y, stats = new_outputs(x.shape, x, stride, want_stats)
    kernel = _mixconv_call(x, weights, kernel_sizes, stride, padding, activation, scale, shift)
    with _on_device_of(x) as where:
        workspace = memory(call(kernel.workspace_bytes) if want_stats else 0, x.device)
        kernel.forward(*where, _place(y), stats.data_ptr() if want_stats else 0, workspace.data_ptr())
    return y, stats


def _mixconv_backward(
    grad: Tensor,
    stats_grad: Tensor | None,
    y: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    padding: str,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    wants: Sequence[bool],
) -> tuple[Tensor, list[Tensor], Tensor]:
    x, grad, weights = mixconv_ready(x), mixconv_ready(grad), [weight.contiguous() for weight in weights]
    y = None if y is None else mixconv_ready(y)
    scale, shift, stats_grad = (None if value is None else value.contiguous() for value in (scale, shift, stats_grad))
    x_grad, weight_grads, norm_grad = _new_grads(x, weights, wants)
    want_x, _, want_norm = wants
    # The gradients of scale and shift are sums over that of x, which is then computed too.
    scratch = _new_grads(x, (), (True, False, False))[0] if want_norm and not want_x else x_grad
    kernel = _mixconv_call(x, weights, kernel_sizes, stride, padding, activation, scale, shift)
    with _on_device_of(x) as where:
        workspace = memory(call(kernel.workspace_bytes), x.device)
        kernel.backward(
            *where,
            _place(grad),
            _address(stats_grad),
            _NO_TENSOR if y is None else _place(y),
            _place(scratch) if want_x or want_norm else _NO_TENSOR,
            [weight_grad.data_ptr() for weight_grad in weight_grads],
            norm_grad.data_ptr() if want_norm else 0,
            workspace.data_ptr(),
        )
    return x_grad, weight_grads, norm_grad


def _moments(x: Tensor) -> Tensor:
    channels = x.shape[1]
    moments = torch.zeros((2, channels), dtype=torch.float32, device=x.device)
    if x.numel():
        x, rows, stride = rows_of(x)
        workspace = _floats(_core.cuda_bn_workspace_floats(rows, channels), x)
        addresses = (x.data_ptr(), stride, workspace.data_ptr(), moments.data_ptr())
        with _on_device_of(x) as where:
            _core.cuda_bn_moments(*where, rows, channels, _storage(x), *addresses)
    return moments


def _update(running_mean: Tensor, running_var: Tensor, moments: Tensor, rows: int, share: float) -> None:
    running = (running_mean, running_var)
    if all(value.dtype is torch.float32 and value.is_contiguous() for value in running):
        with _on_device_of(moments) as where:
            addresses = (value.data_ptr() for value in running)
            _core.cuda_bn_update(*where, rows, moments.shape[1], moments.data_ptr(), share, *addresses)
        return
    mean, variance = moments.double().unbind()
    for value, new in zip(running, (mean, variance * (rows / (rows - 1))), strict=True):
        value.copy_((1 - share) * value.double() + share * new)


def _bn_layer(
    x: Tensor,
    rows: int,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> _core.CudaBnAct:
    """What the core needs to know; the tensors must outlive it."""
    return _core.CudaBnAct(
        rows,
        x.shape[1],
        _storage(x),
        bn.ACTIVATIONS[activation],
        residual is not None,
        moments.data_ptr(),
        _address(weight),
        _address(bias),
        eps,
    )


def _bn_training(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    moments = _moments(x)
    return _bn_forward(x, moments, *layer), moments


def _bn_forward(
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel() == 0:
        return y
    x, rows, stride = rows_of(x)
    residual_stride = 0
    if residual is not None:
        residual, _, residual_stride = rows_of(residual)
    moments, weight, bias = bn.ready(moments), bn._as_float32(weight), bn._as_float32(bias)
    layer = _bn_layer(x, rows, moments, weight, bias, residual, eps, activation)
    with _on_device_of(x) as where:
        layer.forward(*where, x.data_ptr(), stride, _address(residual), residual_stride, y.data_ptr())
    return y


def _bn_backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    batch_statistics: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = bn._outputs(x, needed)
    if x.numel() == 0:
        for output in outputs:
            output.zero_()
        return bn._as_parameters(outputs, weight, bias)
    x, rows, stride = rows_of(x)
    grad, _, grad_stride = rows_of(grad)
    residual_stride = 0
    if residual is not None:
        residual, _, residual_stride = rows_of(residual)
    moments, weight32, bias32 = bn.ready(moments), bn._as_float32(weight), bn._as_float32(bias)
    layer = _bn_layer(x, rows, moments, weight32, bias32, residual, eps, activation)
    workspace = _floats(_core.cuda_bn_workspace_floats(rows, x.shape[1]), x)
    grad_x, grad_weight, grad_bias, grad_residual = outputs
    with _on_device_of(x) as where:
        layer.backward(
            *where,
            batch_statistics,
            grad.data_ptr(),
            grad_stride,
            x.data_ptr(),
            stride,
            _address(residual),
            residual_stride,
            workspace.data_ptr(),
            grad_x.data_ptr(),  # 0 where empty, here and below
            grad_residual.data_ptr(),
            grad_weight.data_ptr(),
            grad_bias.data_ptr(),
        )
    return bn._as_parameters(outputs, weight, bias)


def _bn_affine(moments: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    moments, weight, bias = bn.ready(moments), bn.ready(weight), bn.ready(bias)
    scale_shift = torch.empty_like(moments)
    layer = _bn_layer(moments, 1, moments, weight, bias, None, eps, "identity")
    with _on_device_of(moments) as where:
        layer.affine(*where, scale_shift.data_ptr())
    return scale_shift


def _bn_through_moments(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_scale_shift: Tensor,
    eps: float,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor]:
    grad_weight, grad_bias = torch.zeros_like(moments[0]), torch.zeros_like(moments[1])
    if x.numel():
        x, rows, stride = rows_of(x)
        weight32, bias32 = bn.ready(weight), bn.ready(bias)
        layer = _bn_layer(x, rows, moments, weight32, bias32, None, eps, "identity")
        workspace = _floats(_core.cuda_bn_workspace_floats(rows, x.shape[1]), x)
        addresses = (bn.ready(grad_scale_shift), workspace, grad, grad_weight, grad_bias)
        with _on_device_of(x) as where:
            layer.through_moments(
                *where, batch_statistics, x.data_ptr(), stride, *(value.data_ptr() for value in addresses)
            )
    return grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _squeeze_layer(x: Tensor, scale: Tensor | None, shift: Tensor | None, prologue: str) -> _core.CudaSqueezeExcite:
    """What the core needs to know; the tensors must outlive it."""
    n, channels, height, width = x.shape
    numbers = (n, height * width, channels, _storage(x), PROLOGUES[prologue])
    return _core.CudaSqueezeExcite(*numbers, _address(scale), _address(shift))


def _squeeze_excite(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reduce_weight, reduce_bias, expand_weight, expand_bias, scale, shift, activation, gate, prologue = layer
    y = torch.empty_like(x, memory_format=torch.channels_last)
    means = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return y, means, *_outputs_of_products(x, reduce_weight)
    x, _, stride = rows_of(x)
    scale, shift = _vector(scale), _vector(shift)
    core = _squeeze_layer(x, scale, shift, prologue)
    workspace = _floats(core.workspace_floats(), x)
    with _on_device_of(x) as where:
        core.squeeze(*where, x.data_ptr(), stride, workspace.data_ptr(), means.data_ptr())
        with torch.autocast("cuda", enabled=False):
            hidden = torch.addmm(reduce_bias.float(), means, _matrix(reduce_weight).t())
            logits = torch.addmm(expand_bias.float(), _activated(hidden, activation), _matrix(expand_weight).t())
        gates = gates_of(logits, gate)
        core.excite(*where, x.data_ptr(), stride, gates.data_ptr(), y.data_ptr())
    return y, means, hidden, logits


def _squeeze_excite_backward(
    grad: Tensor, x: Tensor, means: Tensor, hidden: Tensor, logits: Tensor, *layer: Any
) -> tuple[Tensor, ...]:
    parameters, scale, shift, (activation, gate, prologue) = layer[:4], layer[4], layer[5], layer[6:]
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    channels = 0 if scale is None else x.shape[1]
    grad_scale, grad_shift = (x.new_zeros(channels, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        zeros = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters]
        return grad_x, *zeros, _like(grad_scale, scale), _like(grad_shift, shift)
    x, _, stride = rows_of(x)
    grad, _, grad_stride = rows_of(grad)
    scale32, shift32 = _vector(scale), _vector(shift)
    core = _squeeze_layer(x, scale32, shift32, prologue)
    workspace = _floats(core.workspace_floats(), x)
    grad_gates = torch.empty_like(means)
    inputs = (grad.data_ptr(), grad_stride, x.data_ptr(), stride)
    with _on_device_of(x) as where:
        core.excite_backward(*where, *inputs, workspace.data_ptr(), grad_gates.data_ptr())
        gates = gates_of(logits, gate)
        with torch.autocast("cuda", enabled=False):
            grad_means, gradients = _backward_of_products(
                grad_gates, gates, means, hidden, logits, parameters, activation, gate
            )
        addresses = (gates, grad_means, workspace, grad_x, grad_scale, grad_shift)
        core.squeeze_backward(*where, *inputs, *(value.data_ptr() for value in addresses))
    return grad_x, *gradients, _like(grad_scale, scale), _like(grad_shift, shift)


def _excite(x: Tensor, logits: Tensor, scale: Tensor | None, shift: Tensor | None, gate: str, prologue: str) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel():
        x, _, stride = rows_of(x)
        scale, shift, gates = _vector(scale), _vector(shift), gates_of(logits, gate)
        core = _squeeze_layer(x, scale, shift, prologue)
        with _on_device_of(x) as where:
            core.excite(*where, x.data_ptr(), stride, gates.data_ptr(), y.data_ptr())
    return y


def _where_possible(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, after a clear error where its first tensor's device, or this build, cannot run the kernels."""

    @functools.wraps(function)
    def checked(x: Tensor, *rest: Any) -> Any:
        _require(x.device)
        return function(x, *rest)

    return checked


for _name, _function in (
    ("mixconv", _mixconv),
    ("mixconv_backward", _mixconv_backward),
    ("bn_moments", _moments),
    ("bn_update_", _update),
    ("bn_act_training", _bn_training),
    ("bn_act_forward", _bn_forward),
    ("bn_act_backward", _bn_backward),
    ("bn_affine", _bn_affine),
    ("bn_through_moments_", _bn_through_moments),
    ("squeeze_excite", _squeeze_excite),
    ("squeeze_excite_backward", _squeeze_excite_backward),
    ("excite", _excite),
):
    implement(_name, _where_possible(_function), "CUDA")
