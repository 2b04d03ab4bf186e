"""Shuffle, split and concatenation against the index map and the reference: the same bits, and every gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.nn import channel_shuffle
from greedynas_fast.ops import shuffle as ops_shuffle
from greedynas_fast.ops.shuffle import backend, shuffle_concat, shuffle_split
from greedynas_fast.reference import shuffle as reference

LAST = torch.channels_last
SHAPES = ((2, 116, 5, 3), (1, 2, 1, 1), (3, 6, 1, 7), (2, 10, 4, 1), (0, 8, 3, 3), (2, 8, 0, 3), (1, 58, 9, 9))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory that the operation allocates is NaN at first."""

    class PoisonedTorch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.empty(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(ops_shuffle, "torch", PoisonedTorch())


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=LAST).requires_grad_()


def slice_of_channels(x: torch.Tensor) -> torch.Tensor:
    """The same values between other channels, which are NaN."""
    n, c, h, w = x.shape
    wide = torch.full((n, c + 9, h, w), torch.nan, dtype=x.dtype).contiguous(memory_format=LAST)
    wide[:, 4 : 4 + c] = x.detach()
    return wide[:, 4 : 4 + c].requires_grad_()


LAYOUTS = {
    "channels_last": lambda x: x,
    "slice of channels": slice_of_channels,
    "contiguous": lambda x: x.detach().contiguous().requires_grad_(),
    "transposed": lambda x: x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_and_its_gradient(dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        x = random(shape, dtype)
        half = (shape[0], shape[1] // 2, *shape[2:])
        kept_grad, moved_grad = (LAYOUTS[layout](random(half, dtype, seed)).detach() for seed in (1, 2))
        found = shuffle_split(LAYOUTS[layout](x))
        for got, want in zip(found, reference.shuffle_split(x), strict=True):
            assert torch.equal(got, want)
            if backend(x) == "core":
                assert got.is_contiguous(memory_format=LAST)
        variant = LAYOUTS[layout](x)
        (grad,) = torch.autograd.grad(shuffle_split(variant), variant, (kept_grad, moved_grad))
        (wanted,) = torch.autograd.grad(reference.shuffle_split(x), x, (kept_grad, moved_grad))
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_concat_and_its_gradients(dtype: torch.dtype, layout: str) -> None:
    for shape, channels in itertools.product(SHAPES, (1, 8)):
        first, second = random(shape, dtype), random((shape[0], channels, *shape[2:]), dtype, 1)
        kept, y = LAYOUTS[layout](first), LAYOUTS[layout](second)
        result = shuffle_concat(kept, y)
        assert torch.equal(result, torch.cat((first, second), dim=1))
        if backend(kept) == "core":
            assert result.is_contiguous(memory_format=LAST)
        grad = random(tuple(result.shape), dtype, 2).detach()
        found = torch.autograd.grad(result, (kept, y), grad)
        assert torch.equal(found[0], grad[:, : shape[1]])
        assert torch.equal(found[1], grad[:, shape[1] :])


def test_index_map() -> None:
    """Element by element, from the definition."""
    for channels in (2, 4, 6, 10, 12):
        x = random((2, channels, 3, 2))
        kept, moved = shuffle_split(x)
        for n, i, h, row, column in itertools.product(range(2), range(channels // 2), range(2), range(3), range(2)):
            to = 2 * i + h
            half, index = (kept, to) if to < channels // 2 else (moved, to - channels // 2)
            assert half[n, index, row, column] == x[n, h * channels // 2 + i, row, column]


def test_reference_is_the_shuffle_of_the_unit() -> None:
    for layout in LAYOUTS.values():
        x = layout(random((2, 12, 3, 5)))
        kept, moved = channel_shuffle(x).chunk(2, dim=1)
        assert torch.equal(reference.shuffle_split(x)[0], kept)
        assert torch.equal(reference.shuffle_split(x)[1], moved)


def test_gradients_of_one_output_and_one_input() -> None:
    x = random((2, 12, 3, 5))
    for index in range(2):
        (grad,) = torch.autograd.grad(shuffle_split(x)[index].square().sum(), x)
        (wanted,) = torch.autograd.grad(reference.shuffle_split(x)[index].square().sum(), x)
        assert torch.equal(grad, wanted)
    (grad,) = torch.autograd.grad(shuffle_split(x)[0].sum(), x)  # an expanded gradient
    assert float(grad.sum()) == 2 * 6 * 3 * 5
    y = random((2, 4, 3, 5), seed=1)
    for inputs in ((x, y.detach()), (x.detach(), y)):
        (grad,) = torch.autograd.grad(shuffle_concat(*inputs).square().sum(), [v for v in inputs if v.requires_grad])
        assert torch.equal(grad, 2 * next(v for v in inputs if v.requires_grad))
    with torch.no_grad():
        assert not shuffle_split(x)[0].requires_grad
        assert not shuffle_concat(x, y).requires_grad


def test_gradcheck() -> None:
    x, y = (random((2, channels, 2, 3), torch.float64) for channels in (6, 4))
    assert torch.autograd.gradcheck(shuffle_split, x)
    assert torch.autograd.gradcheck(shuffle_concat, (x, y))
    # The core, in float32: linear, so that wide differences are exact but for rounding.
    options: dict[str, Any] = {"eps": 1.0, "atol": 1e-5, "rtol": 1e-5}
    assert torch.autograd.gradcheck(lambda v: tuple(o.double() for o in shuffle_split(v.float())), x, **options)
    assert torch.autograd.gradcheck(lambda *v: shuffle_concat(*(i.float() for i in v)).double(), (x, y), **options)


def test_second_derivatives_are_refused() -> None:
    x = random((1, 4, 3, 3))
    (grad,) = torch.autograd.grad(shuffle_split(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random((9, 74, 20, 19))
    kept, moved = reference.shuffle_split(x)
    asked: list[int] = []
    core: Any = ops_shuffle._core

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        @staticmethod
        def shuffle_split(*arguments: int) -> None:
            asked.append(arguments[-1])
            core.shuffle_split(*arguments)

    monkeypatch.setattr(ops_shuffle, "_core", Recorded())
    before = torch.get_num_threads()
    try:
        for of_core, of_torch in ((1, 4), (3, 4), (8, 4), (8, 1)):
            monkeypatch.setenv("GREEDYNAS_NUM_THREADS", str(of_core))
            torch.set_num_threads(of_torch)
            found = shuffle_split(x)
            assert torch.equal(found[0], kept)
            assert torch.equal(found[1], moved)
            assert torch.equal(torch.autograd.grad(found, x, (kept, moved))[0], x)  # the inverse
            assert torch.equal(shuffle_concat(kept, moved), channel_shuffle(x))
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 3, 4, 1]


def test_opcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_shuffle, "torch", torch)
    x = random((2, 12, 3, 5)).detach()
    torch.library.opcheck(torch.ops.greedynas.shuffle_split, (x,))
    torch.library.opcheck(torch.ops.greedynas.shuffle_split, (x.contiguous(),))
    torch.library.opcheck(torch.ops.greedynas.shuffle_merge, (x, x[:, :].contiguous()))
    torch.library.opcheck(torch.ops.greedynas.shuffle_merge, (x[:, 2:7], x[:, 7:]))


def test_compile_traces_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_shuffle, "torch", torch)
    x, y = random((2, 12, 3, 5)), random((2, 5, 3, 5), seed=1)

    def unit(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        kept, moved = shuffle_split(x)
        return shuffle_concat(kept, shuffle_concat(moved * moved, y))

    expected = unit(x, y)
    wanted = torch.autograd.grad(expected.square().sum(), (x, y))
    result = torch.compile(unit, fullgraph=True, backend="aot_eager")(x, y)
    assert torch.equal(result, expected)
    for got, want in zip(torch.autograd.grad(result.square().sum(), (x, y)), wanted, strict=True):
        assert torch.equal(got, want)


def test_flops() -> None:
    x = random((2, 12, 3, 5))
    with FlopCounterMode(display=False) as counter:
        kept, moved = shuffle_split(x)
        shuffle_concat(kept, moved).sum().backward()
    assert counter.get_total_flops() == 0


def test_bad_input() -> None:
    x = torch.randn(1, 8, 5, 5)

    def message(function: Any, *tensors: torch.Tensor) -> str:
        with pytest.raises(InputError) as raised:
            function(*tensors)
        return str(raised.value)

    assert "an even number of channels, 2 or more, got 7" in message(shuffle_split, x[:, :7])
    assert "an even number of channels, 2 or more, got 0" in message(shuffle_split, x[:, :0])
    assert "shuffle_split: x: expected [N, C, H, W], got [8, 5, 5]" in message(shuffle_split, x[0])
    assert "expected two [N, C, H, W], got [1, 8, 5, 5] and [8, 5, 5]" in message(shuffle_concat, x, x[0])
    for other in (x[:, :, :4], x[..., :4], x[:0]):
        assert f"rows and columns of kept [1, 8, 5, 5], got {list(other.shape)}" in message(shuffle_concat, x, other)
    assert "expected torch.float32 on cpu as kept, got torch.float64 on cpu" in message(shuffle_concat, x, x.double())
    assert "got torch.float32 on meta" in message(shuffle_concat, x, x.to("meta"))
