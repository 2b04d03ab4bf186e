"""The head in one call: values, gradients and statistics of torch's layers, and when it is left to these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nn_results import Operators, results
from torch import nn
from torch.profiler import ProfilerActivity, profile

from greedynas_fast.errors import InputError
from greedynas_fast.nn import Head, use_backend
from greedynas_fast.ops import direct
from greedynas_fast.spaces.specs import HeadSpec

CASES = [
    (3, 5, 20, 7, 3, "relu"),
    (2, 17, 33, 1, 1, "hard_swish"),
    (9, 48, 64, 12, 13, "identity"),
    (1, 1, 1, 2, 1, "relu"),
]


def make(channels: int = 5, features: int = 20, activation: str = "relu") -> Head:
    torch.manual_seed(0)
    head = Head(HeadSpec(channels, features, activation, dropout=0.0), 4).train()
    nn.init.uniform_(head.bn.weight, 0.5, 1.5)
    nn.init.uniform_(head.bn.bias, -0.5, 0.5)
    return head


def images(n: int = 3, channels: int = 5, height: int = 7, width: int = 3) -> torch.Tensor:
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        scale = max(float(theirs.abs().max()), 1.0)
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=3e-5 * scale)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_layers(case: tuple[int, int, int, int, int, str], ran: list[direct.Laid]) -> None:
    n, channels, features, height, width, activation = case
    head, x = make(channels, features, activation), images(n, channels, height, width)
    plain = copy.deepcopy(head).double()
    use_backend(plain, "reference")
    for _ in range(2):
        assert_close(results(head, x), results(plain, x.double()))
    assert [laid.name for laid in ran] == ["pooled_pointwise"] * 2
    with torch.no_grad():
        assert_close([head(x)], [plain(x.double())])


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    head, x = make(48, 100), images(6, 48, 14, 14)
    found = [results(copy.deepcopy(head), x) for _ in thread_counts]
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(other, found[0], strict=True))


def forward_hook(head: Head) -> None:
    head.conv.register_forward_hook(lambda *_: None)


def bias(head: Head) -> None:
    head.conv.bias = nn.Parameter(torch.ones(20))


def cumulative(head: Head) -> None:
    head.bn.momentum = None


@pytest.mark.parametrize("change", [nn.Module.eval, forward_hook, bias, cumulative, nn.Module.bfloat16])
def test_left_to_layers(change: Callable[[Head], Any], ran: list[direct.Laid]) -> None:
    head, x = make(), images()
    head(x)
    change(head)
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    x = x.to(head.bn.weight.dtype)
    tolerance = 0.05 if x.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(head(x), plain(x), rtol=tolerance, atol=tolerance)
    assert [laid.name for laid in ran] == ["pooled_pointwise"]


def test_what_watches_sees_operators(ran: list[direct.Laid]) -> None:
    head, x = make(), images().requires_grad_()
    with Operators() as watcher:
        head(x)
    assert "aten.convolution.default" in watcher.seen
    assert not ran
    expected = results(copy.deepcopy(head), x.detach())
    y = head(x)
    with Operators() as watcher:
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert "aten.convolution.default" in watcher.seen
    assert x.grad is not None
    found = [value.grad for value in (x, *head.parameters()) if value.grad is not None]
    assert_close(found, expected[1 : 2 + len(list(head.parameters()))])


def test_profilers_see_a_name() -> None:
    head = make()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:  # torch 2.11 warns without
        head(images())
    assert "greedynas::pooled_pointwise" in {event.key for event in seen.key_averages()}


def test_bad_input() -> None:
    head = make()
    with pytest.raises(InputError, match=r"head: expected a weight \[20, 4, 1, 1\], got \[20, 5, 1, 1\]"):
        head(images(channels=4))
    with pytest.raises(InputError, match="head: x: expected more than one value a channel in training"):
        head(images(1, 5, 1, 1))
