"""The optimizer as operators of torch, on the CPU: opcheck, torch's steps, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sgd_cases import BLOCKS, SIZE, active, buffers, torch_steps
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.ops.bank_sgd import control_op, update_op

TILES = torch.empty(0, 2, dtype=torch.int32)  # for GPUs


def table(*blocks: tuple[int, int, int]) -> Tensor:
    return torch.tensor(blocks or BLOCKS, dtype=torch.int64)


def arguments(momentum: bool, ema: bool, scale: Tensor | None = None, skip: Tensor | None = None) -> tuple[Any, ...]:
    data, grad, buffer, average = buffers()
    flat = (data, grad, buffer if momentum else None, average if ema else None)
    return (*flat, table(), TILES, 0.2, 0.9 if momentum else 0.0, 0.1, momentum, 0.75 if ema else 0.0, scale, skip)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("inverse", [None, torch.tensor([0.125])])
def test_opcheck_of_control(clip: float | None, inverse: Tensor | None) -> None:
    torch.library.opcheck(control_op, (buffers()[1], table(), TILES, inverse, clip))


@pytest.mark.parametrize(("momentum", "ema"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("skip", [None, torch.ones(1)])
def test_opcheck_of_the_update(momentum: bool, ema: bool, skip: Tensor | None) -> None:
    torch.library.opcheck(update_op, arguments(momentum, ema, torch.tensor([0.5]), skip))


def test_two_steps_of_torch_in_a_compiled_function() -> None:
    """Traced, not run as Python: what it changes in place must come out of the graph."""

    def step(data: Tensor, grad: Tensor, buffer: Tensor) -> Tensor:
        scale, skip, norm = control_op(grad, table(), TILES, torch.tensor([0.125]), 1.5)
        update_op(data, grad, buffer, None, table(), TILES, 0.2, 0.9, 0.1, True, 0.0, scale, skip)
        return norm

    data, grad, buffer, _ = buffers()
    before, grads = [tensor.clone() for tensor in (data, grad, buffer)], [grad.clone(), grad.flip(0)]
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    want, want_buffer = torch_steps(data, grads, 0.2, 1.5, **options)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for new in grads:
        grad.copy_(torch.where(active(), new * 8, grad))
        norm = compiled(data, grad, buffer)
        torch.testing.assert_close(norm[0], new[active()].norm())
    on = active()
    torch.testing.assert_close(data[on].double(), want[on], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(buffer[on].double(), want_buffer[on], rtol=1e-5, atol=1e-6)
    assert not grad[on].any()
    for now, old in zip((data, grad, buffer), before, strict=True):
        assert torch.equal(now[~on], old[~on])


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite(bad: float) -> None:
    data, grad, *others = buffers()
    grad[10] = bad
    before = [tensor.clone() for tensor in (data, *others)]
    scale, skip, _ = control_op(grad, table(), TILES, None, 1.0)
    assert skip.item() == 1
    update_op(data, grad, *others, table(), TILES, 0.2, 0.9, 0.1, False, 0.75, scale, skip)
    assert all(map(torch.equal, (data, *others), before))
    assert not grad[active()].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(SIZE, dtype=torch.float64)}, "expected contiguous float32 tensors of one size"),
        ({1: torch.zeros(2 * SIZE)[::2]}, "expected contiguous float32 tensors of one size"),
        ({2: torch.zeros(SIZE + 1)}, "expected contiguous float32 tensors of one size"),
        ({4: table().int()}, r"table: expected contiguous int64 \[B, 3\]"),
        ({4: table((0, 32, SIZE + 16))}, f"<= end <= {SIZE}"),
        ({4: table((-16, 0, 16))}, "table: expected 0 <= start"),
        ({4: table((32, 16, 64))}, "start <= decay_end"),
    ],
)
def test_bad_input(change: dict[int, Tensor], message: str) -> None:
    given = list(arguments(momentum=True, ema=True))
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=message):
        update_op(*given)
