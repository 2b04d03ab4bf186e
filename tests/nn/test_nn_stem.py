"""The stem in one call: values, gradients and statistics of torch's layers, and when it is left to these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nn_results import Operators, assert_close
from torch import nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn import use_backend
from greedynas_fast.nn.stem_head import Stem
from greedynas_fast.ops import direct
from greedynas_fast.spaces.specs import StemSpec

# Channels of images and of the result, kernel size, stride, activation; images, height, width.
CASES = [
    (1, 16, 3, 1, "relu", 3, 9, 7),
    (3, 20, 3, 2, "hard_swish", 2, 8, 11),
    (3, 5, 7, 2, "relu", 2, 5, 3),
    (4, 1, 1, 1, "identity", 2, 4, 4),
    (2, 33, 5, 1, "relu", 5, 1, 1),
    (17, 3, 3, 2, "relu", 1, 3, 9),
]


def make(channels: int = 3, out: int = 8, kernel: int = 3, stride: int = 2, activation: str = "relu") -> Stem:
    torch.manual_seed(0)
    stem = Stem(StemSpec(out, kernel, stride, activation), channels).train()
    nn.init.uniform_(stem.bn.weight, 0.5, 1.5)
    nn.init.uniform_(stem.bn.bias, -0.5, 0.5)
    stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return stem


def images(n: int = 3, channels: int = 3, height: int = 7, width: int = 5) -> torch.Tensor:
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)


def results(stem: Stem, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients of all parameters, running statistics."""
    y = stem(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), list(stem.parameters()))
    return [y.detach(), *gradients, *(value.detach().clone() for value in stem.buffers())]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_layers(case: tuple[int, int, int, int, str, int, int, int], ran: list[direct.Laid]) -> None:
    channels, out, kernel, stride, activation, n, height, width = case
    stem, x = make(channels, out, kernel, stride, activation), images(n, channels, height, width)
    plain = copy.deepcopy(stem).double()
    use_backend(plain, "reference")
    for _ in range(2):
        found = results(stem, x)
        assert_close(found, results(plain, x.double()))
        assert found[1].stride() == stem.conv.weight.stride()
    assert [laid.name for laid in ran] == ["conv_norm_act"] * 2
    with torch.no_grad():
        assert_close([stem(x)], [plain(x.double())])


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    stem, x = make(3, 20), images(6, 3, 33, 30)
    found = [results(copy.deepcopy(stem), x) for _ in thread_counts]
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(other, found[0], strict=True))


def conv_hook(stem: Stem) -> None:
    stem.conv.register_forward_hook(lambda *_: None)


def bias(stem: Stem) -> None:
    stem.conv.bias = nn.Parameter(torch.ones(8))


def padding(stem: Stem) -> None:
    stem.conv.padding = (2, 2)


def dilation(stem: Stem) -> None:
    stem.conv.dilation = (2, 2)


def stride(stem: Stem) -> None:
    stem.conv.stride = (1, 2)


def other_memory(stem: Stem) -> None:
    stem.conv.weight.data = stem.conv.weight.data.contiguous()


@pytest.mark.parametrize(
    "change", [nn.Module.eval, conv_hook, bias, padding, dilation, stride, other_memory, nn.Module.bfloat16]
)
def test_left_to_layers(change: Callable[[Stem], Any], ran: list[direct.Laid]) -> None:
    stem, x = make(), images()
    stem(x)
    change(stem)
    plain = copy.deepcopy(stem)
    use_backend(plain, "reference")
    x = x.to(stem.bn.weight.dtype)
    tolerance = 0.05 if x.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(stem(x), plain(x), rtol=tolerance, atol=tolerance)
    assert [laid.name for laid in ran].count("conv_norm_act") == 1


def test_images_with_a_gradient_are_left_to_layers(ran: list[direct.Laid]) -> None:
    stem, x = make(), images().requires_grad_()
    stem(x).square().sum().backward()
    plain, same = make(), images().requires_grad_()
    use_backend(plain, "reference")
    plain(same).square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-4, atol=1e-5)
    assert "conv_norm_act" not in {laid.name for laid in ran}


def test_other_strides_are_noticed() -> None:
    stem, x = make(), images()
    stem(x)
    stem.conv.stride = (1, 1)
    plain = copy.deepcopy(stem)
    use_backend(plain, "reference")
    assert_close(results(stem, x), results(plain, x))


def test_a_watched_backward_pass_sees_operators() -> None:
    stem, x = make(), images()
    expected = results(copy.deepcopy(stem), x)[1 : 1 + len(list(stem.parameters()))]
    y = stem(x)
    with Operators() as watcher:
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert "aten.convolution.default" in watcher.seen
    assert_close([value.grad for value in stem.parameters() if value.grad is not None], expected)


def test_bad_input() -> None:
    stem = make()
    with pytest.raises(InputError, match="stem: expected images of 3 channels, got"):
        stem(images(channels=2))
    with pytest.raises(InputError, match="stem: x: expected more than one value a channel in training"):
        stem(images(1, 3, 1, 1))
