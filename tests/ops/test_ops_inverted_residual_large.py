"""Blocks that are expanded in the caches, which they are where they are large and no gradient is wanted, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from greedynas_fast.ops.inverted_residual import Gate, Norm, inverted_residual
from greedynas_fast.ops.inverted_residual_core import expands_in_caches
from greedynas_fast.reference.inverted_residual import inverted_residual as reference

# Images, rows and columns, channels, channels of each group: expanded at least 8 MiB. Odd widths, several images
# together, one that is larger than what is expanded together, several parts of rows.
SHAPES = (
    ((1, 300, 234), 1, (31,)),
    ((7, 41, 60), 24, (70, 60)),
    ((81, 16, 16), 16, (40, 40, 27)),
    ((300, 9, 9), 8, (96,)),
)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def make(
    shape: tuple[tuple[int, int, int], int, tuple[int, ...]], *, moments: bool = False, gated: bool = False
) -> tuple[Tensor, tuple[Any, ...]]:
    """x, and the other arguments of the block, which has as many channels out as in."""
    (n, height, width), inner, groups = shape
    generator = torch.Generator().manual_seed(inner)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def norm(c: int) -> Norm:
        given = torch.stack((0.1 * randn(c), 1 + randn(c).abs())) if moments else None
        return Norm(1 + 0.2 * randn(c), 0.2 * randn(c), 1e-3, given)

    c = sum(groups)
    gate = Gate(0.5 * randn(4, c), randn(4), 0.5 * randn(c, 4), randn(c), "relu", "hard_sigmoid") if gated else None
    weights = [randn(size, 1, 3 + 2 * i, 3 + 2 * i) / (3 + 2 * i) for i, size in enumerate(groups)]
    expand, project = (randn(c, inner, 1, 1), norm(c)), (0.3 * randn(inner, c, 1, 1), norm(inner))
    return channels_last(randn(n, inner, height, width) + 3), (expand, (weights, norm(c)), project, gate)


def in_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, Norm | Gate):
        return type(value)(*(in_double(part) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(in_double(part) for part in value)
    return value


@torch.no_grad()
def check(x: Tensor, parts: tuple[Any, ...], **options: Any) -> None:
    y, found = inverted_residual(x, *parts, **options)
    want, of_want = reference(x.double(), *in_double(parts), **options)
    for got, wanted in ((y, want), *zip(found, of_want, strict=True)):
        torch.testing.assert_close(
            got.double(), wanted.double(), rtol=0, atol=5e-5 * max(1.0, float(wanted.abs().max()))
        )


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_reference(shape: tuple[tuple[int, int, int], int, tuple[int, ...]]) -> None:
    x, parts = make(shape)
    check(x, parts, stride=1, activation="hard_swish", residual=True)
    check(x, parts, stride=2, activation="silu")


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_with_a_gate_and_given_moments(moments: bool, gated: bool) -> None:
    x, parts = make(SHAPES[1], moments=moments, gated=gated)
    check(x, parts, activation="relu", residual=True)


@torch.no_grad()
def test_directions_without_variance() -> None:
    """The variance is a quadratic form: rounding must not make it negative, nor large where there is none."""
    x, (_, (_, norm), project, _) = make(((10, 265, 265), 3, (3,)))
    x = channels_last(torch.cat((x[:, :2], x[:, :2].sum(1, keepdim=True)), 1))  # the third is the sum of the others
    weight = torch.tensor([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[:, :, None, None]
    _, (found, *_) = inverted_residual(x, (weight, norm), ([torch.ones(3, 1, 1, 1)], norm), project)
    mean, variance = found
    assert (variance >= 0).all()
    assert variance[:2].max() < 1e-6
    assert mean[:2].abs().max() < 1e-5
    assert variance[2] > 0.5


def test_where_blocks_are_expanded_in_the_caches() -> None:
    """By bytes of the expanded tensor, and with a backward pass by the products that each of its numbers takes."""
    for size, channels, expand, wanted in (
        (28, 40, (240, 20), (False, True)),  # 5.7 MiB
        (28, 40, (240, 40), (False, False)),
        (56, 32, (192, 32), (True, False)),  # 18.4 MiB
        (112, 16, (96, 16), (True, True)),
        (14, 16, (96, 16), (False, False)),  # 0.6 MiB
    ):
        weight = torch.empty((*expand, 1, 1), device="meta")
        assert tuple(expands_in_caches((8, channels, size, size), weight, keep) for keep in (False, True)) == wanted
    assert not expands_in_caches((8, 16, 112, 112), None, keep=True)


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    x, parts = make(SHAPES[2], gated=True)
    results = []
    for _ in thread_counts:
        with torch.no_grad():
            y, moments = inverted_residual(x, *parts)
        results.append((y, *moments))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
