"""The head in one call: values, gradients and statistics of torch's layers, and when it is left to these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from nn_results import Operators, assert_close, results
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from greedynas_fast.errors import InputError
from greedynas_fast.nn import BatchDropout, Head, use_backend
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


def with_dropout(p: float, activation: str = "relu") -> Head:
    head = make(activation=activation)
    head.dropout.p = p
    return head


def loss_results(
    head: Head, x: torch.Tensor, labels: torch.Tensor, smoothing: float, factor: float = 2.0
) -> list[torch.Tensor]:
    """Loss, correct images, gradients of x and of all parameters of a multiple of the loss, running statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(7)  # of dropout
    loss, correct = head.loss(x, labels, smoothing)
    gradients = torch.autograd.grad(loss * factor, [x, *head.parameters()])
    return [loss.detach(), correct.double(), *gradients, *(value.detach().clone() for value in head.buffers())]


LABELS = torch.tensor([3, 0, 3])


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("activation", ["relu", "hard_swish", "identity"])
@pytest.mark.parametrize(("p", "smoothing"), [(0.0, 0.0), (0.3, 0.1), (1.0, 0.5), (0.2, 1.0)])
def test_loss_equals_torchs(p: float, smoothing: float, activation: str, ran: list[direct.Laid]) -> None:
    head = with_dropout(p, activation)
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    for _ in range(2):
        assert_close(*(loss_results(each, images(), LABELS, smoothing) for each in (head, plain)))
    assert [laid.name for laid in ran] == ["head_loss"] * 2
    with torch.no_grad():
        torch.manual_seed(7)
        found, correct = head.loss(images(), LABELS, smoothing)
        torch.manual_seed(7)
        logits = plain(images())
    torch.testing.assert_close(found, functional.cross_entropy(logits, LABELS, label_smoothing=smoothing))
    assert correct == (logits.argmax(1) == LABELS).sum()


def test_loss_of_parts_of_a_batch() -> None:
    head, x = with_dropout(0.4), images()
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    for each in (head, plain):
        each.dropout.part = (4, 9)
    assert_close(*(loss_results(each, x, LABELS, 0.1) for each in (head, plain)))


def test_threads_do_not_matter_to_the_loss(thread_counts: Iterator[int]) -> None:
    head, x, labels = make(48, 100), images(6, 48, 14, 14), torch.arange(6) % 4
    found = [loss_results(copy.deepcopy(head), x, labels, 0.1) for _ in thread_counts]
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(other, found[0], strict=True))


def head_hook(head: Head) -> None:
    head.register_forward_hook(lambda *_: None)


def classifier_hook(head: Head) -> None:
    head.classifier.register_forward_hook(lambda *_: None)


def no_bias(head: Head) -> None:
    head.classifier.bias = None  # type: ignore[assignment]


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def other_classifier(head: Head) -> None:
    head.classifier = Doubled(20, 4)


@pytest.mark.parametrize(
    "change", [nn.Module.eval, forward_hook, head_hook, classifier_hook, no_bias, other_classifier, cumulative]
)
def test_loss_left_to_layers(change: Callable[[Head], Any], ran: list[direct.Laid]) -> None:
    head = with_dropout(0.3)
    loss_results(head, images(), LABELS, 0.1)
    change(head)
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    assert_close(*(loss_results(each, images(), LABELS, 0.1) for each in (head, plain)))
    assert [laid.name for laid in ran].count("head_loss") == 1


def test_changed_dropout_is_noticed() -> None:
    head = with_dropout(0.0)
    loss_results(head, images(), LABELS, 0.0)
    head.dropout.p = 0.5
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    assert_close(*(loss_results(each, images(), LABELS, 0.0) for each in (head, plain)))


def test_a_watched_backward_pass_of_the_loss_sees_operators() -> None:
    head, x = with_dropout(0.3), images().requires_grad_()
    expected = loss_results(copy.deepcopy(head), x.detach(), LABELS, 0.1, factor=3.0)
    torch.manual_seed(7)
    loss, _ = head.loss(x, LABELS, 0.1)
    with Operators() as watcher:
        (3 * loss).backward()
    assert "aten.convolution.default" in watcher.seen
    assert x.grad is not None
    found = [value.grad for value in (x, *head.parameters()) if value.grad is not None]
    assert_close(found, expected[2 : 3 + len(list(head.parameters()))])


def test_bad_labels_change_nothing() -> None:
    head = make()
    before = [value.clone() for value in head.buffers()]
    for label in (-1, 4):
        with pytest.raises(InputError, match=f"labels: expected 0 to 3, got {label}"):
            head.loss(images(), torch.tensor([0, label, 1]))
    assert all(torch.equal(*pair) for pair in zip(before, head.buffers(), strict=True))
    for labels in (LABELS[:2], LABELS.int()):  # torch's own errors
        with pytest.raises((ValueError, RuntimeError)):
            head.loss(images(), labels)


def test_logits_that_are_not_finite() -> None:
    head = make()
    with torch.no_grad():
        head.classifier.bias[1] = float("nan")
    assert not torch.isfinite(head.loss(images(), LABELS, 0.1)[0])
    with torch.no_grad():
        head.classifier.bias[1] = -float("inf")
    plain = copy.deepcopy(head)
    use_backend(plain, "reference")
    for smoothing in (0.0, 0.1):
        torch.testing.assert_close(head.loss(images(), LABELS, smoothing), plain.loss(images(), LABELS, smoothing))


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_draws_what_it_would_do(p: float) -> None:
    drop, x = BatchDropout(p), torch.randn(6, 5)
    for part in (None, (2, 11)):
        drop.part = part
        torch.manual_seed(3)
        expected = drop(x)
        torch.manual_seed(3)
        mask, scale = drop.draw(*x.shape)
        torch.testing.assert_close(x if mask is None else x * mask * scale, expected)
    assert drop.eval().draw(6, 5) == (None, 1.0)
