"""Expansion and depthwise convolution in one, without the tensor between them, against torch's layers in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from greedynas_fast.ops import expand_depthwise
from greedynas_fast.ops.inverted_residual import Gate, Norm, inverted_residual
from greedynas_fast.reference.bn_act import ACTIVATIONS
from greedynas_fast.reference.inverted_residual import inverted_residual as reference

# Images, rows and columns, channels, channels of each group. Single pixels, odd widths, several images together, some
# that are larger than what is expanded together, several parts of rows.
SHAPES = (
    ((1, 1, 2), 1, (1,)),
    ((3, 5, 4), 5, (7,)),
    ((7, 6, 6), 16, (20, 20, 16)),
    ((5, 37, 30), 24, (50, 46)),
    ((20, 9, 9), 8, (24,)),
)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def make(shape: tuple[tuple[int, int, int], int, tuple[int, ...]], kernel: int) -> tuple[Tensor, ...]:
    (n, height, width), inner, groups = shape
    generator = torch.Generator().manual_seed(inner)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    weights = [randn(c, 1, kernel + 2 * i, kernel + 2 * i) / kernel for i, c in enumerate(groups)]
    x, weight = channels_last(randn(n, inner, height, width) + 3), randn(sum(groups), inner, 1, 1)
    return x, weight, randn(2, sum(groups)), *weights


def moments_of(y: Tensor) -> Tensor:
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    return torch.stack((mean, variance))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch(shape: tuple[tuple[int, int, int], int, tuple[int, ...]]) -> None:
    for kernel, stride, activation in itertools.product((1, 3, 5), (1, 2), ("identity", "relu", "hard_swish", "silu")):
        x, weight, scale_shift, *weights = make(shape, kernel)
        kernels = [w.shape[-1] for w in weights]
        z = functional.conv2d(x.double(), weight.double())
        close(expand_depthwise.moments_op(x, weight), moments_of(z))
        scale, shift = scale_shift.double()[:, :, None, None]
        parts = ACTIVATIONS[activation](z * scale + shift).split(list(shape[2]), 1)
        want = torch.cat(
            [
                functional.conv2d(part, w.double(), stride=stride, padding=w.shape[-1] // 2, groups=len(w))
                for part, w in zip(parts, weights, strict=True)
            ],
            1,
        )
        y, moments = expand_depthwise.forward_op(x, weight, scale_shift, weights, kernels, stride, activation, True)
        close(y, want)
        close(moments, moments_of(want))
        again, none = expand_depthwise.forward_op(x, weight, scale_shift, weights, kernels, stride, activation, False)
        assert torch.equal(again, y)
        assert none.numel() == 0


def test_directions_without_variance() -> None:
    """The variance is a quadratic form: rounding must not make it negative, nor large where there is none."""
    x = channels_last(torch.randn(4, 2, 20, 20, generator=torch.Generator().manual_seed(0)))
    x = channels_last(torch.cat((x, x.sum(1, keepdim=True)), 1))  # the third channel is the sum of the others
    weight = torch.tensor([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[:, :, None, None]
    mean, variance = expand_depthwise.moments_op(x, weight)
    assert (variance >= 0).all()
    assert variance[:2].max() < 1e-6
    assert mean[:2].abs().max() < 1e-6
    assert variance[2] > 0.5


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, scale_shift, *weights = make(((9, 40, 20), 16, (48,)), 3)
    results = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for threads in ("1", "2", "4"):
            monkeypatch.setenv("GREEDYNAS_NUM_THREADS", threads)
            moments = expand_depthwise.moments_op(x, weight)
            results.append(
                (moments, *expand_depthwise.forward_op(x, weight, scale_shift, weights, [3], 1, "relu", True))
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_operators() -> None:
    x, weight, scale_shift, *weights = make(((3, 5, 4), 5, (7,)), 3)
    torch.library.opcheck(expand_depthwise.moments_op, (x, weight))
    torch.library.opcheck(expand_depthwise.forward_op, (x, weight, scale_shift.abs(), weights, [3], 2, "relu", True))


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_block_without_gradients(moments: bool, gated: bool) -> None:
    """Large enough for this form, which a block takes only where no gradient is wanted."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def norm(c: int) -> Norm:
        given = torch.stack((0.1 * randn(c), 1 + randn(c).abs())) if moments else None
        return Norm(1 + 0.2 * randn(c), 0.2 * randn(c), 1e-3, given)

    x = channels_last(randn(10, 16, 48, 48))
    weight = 0.3 * randn(96, 16, 1, 1)
    assert expand_depthwise.worthwhile(x, weight)
    gate = Gate(0.5 * randn(4, 96), randn(4), 0.5 * randn(96, 4), randn(96), "relu", "hard_sigmoid") if gated else None
    parts = ((weight, norm(96)), ([randn(96, 1, 5, 5) / 5], norm(96)), (0.3 * randn(16, 96, 1, 1), norm(16)), gate)
    options = {"stride": 1, "activation": "hard_swish", "residual": True}
    with torch.no_grad():
        y, found = inverted_residual(x, *parts, **options)
        want, found_by_torch = reference(x, *parts, **options)
    torch.testing.assert_close(y, want, rtol=0, atol=5e-5 * float(want.abs().max()))
    for got, of_torch in zip(found, found_by_torch, strict=True):
        torch.testing.assert_close(got, of_torch, rtol=1e-4, atol=1e-5)
