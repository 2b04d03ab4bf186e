"""The optimizer's kernels, interpreted, against `torch.optim.SGD`: `test_kernels_interpreted.py` runs this file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sgd_cases import BLOCKS, active, buffers, torch_steps

from greedynas_fast.errors import InputError
from greedynas_fast.ops import bank_sgd
from greedynas_fast.ops.triton_kernels import load
from greedynas_fast.supernet import sgd as steps
from greedynas_fast.supernet.sgd import Buffers, Rule, update_core, update_triton

sgd = load("sgd")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgd, "TILE", 32)
    monkeypatch.setattr(sgd, "_CHUNK", 2)


@pytest.fixture(autouse=True)
def operators_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors here lie on the CPU, where the operators would call the core."""
    monkeypatch.setattr(steps, "control_op", bank_sgd._control_cuda)
    monkeypatch.setattr(steps, "update_op", bank_sgd._update_cuda)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_two_steps_of_torch(momentum: float, nesterov: bool, clip: float | None) -> None:
    data, grad, buffer, average = buffers()
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1}
    before = [tensor.clone() for tensor in (data, grad, buffer, average)]
    grads = [grad.clone(), grad.flip(0)]
    want, want_buffer = torch_steps(data, grads, 0.2, clip, **options)
    want_average = average.double()
    blocks = sgd.block_list(BLOCKS, CPU)
    for step, new in enumerate(grads):
        grad.copy_(torch.where(active(), new * 8, grad))  # a loss scale of 8
        found = sgd.control(grad, blocks, inverse_loss_scale=torch.tensor([0.125]), clip_norm=clip)
        torch.testing.assert_close(found.norm[0], new[active()].norm(), rtol=1e-5, atol=0)
        sgd.update(
            data, grad, buffer if momentum else None, average, blocks, lr=0.2, ema_decay=0.75, scale=found.scale,
            skip=found.skip, **options,
        )  # fmt: skip
        middle = torch_steps(before[0], grads[: step + 1], 0.2, clip, **options)[0]
        want_average = 0.75 * want_average + 0.25 * middle
    on = active()
    torch.testing.assert_close(data[on].double(), want[on], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(buffer[on].double(), want_buffer[on], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average[on].double(), want_average[on], rtol=1e-5, atol=1e-6)
    assert not grad[on].any()
    for now, old in zip((data, grad, buffer, average), before, strict=True):
        assert torch.equal(now[~on], old[~on])


@pytest.mark.parametrize(
    ("rule", "loss_scale"),
    [
        (Rule(0.9, 0.1, False, None, None), None),
        (Rule(0.0, 0.0, False, None, 0.75), None),
        (Rule(0.9, 0.1, True, 1.5, 0.75), 8.0),
    ],
)
def test_as_the_core(rule: Rule, loss_scale: float | None) -> None:
    """`BankSGD` hands the same arguments to both."""
    table = np.array(BLOCKS, dtype=np.int64)
    found, want = (
        Buffers(data, grad, momentum if rule.momentum else None, None if rule.ema_decay is None else average)
        for data, grad, momentum, average in (buffers(), buffers())
    )
    for lr in (0.2, 0.1):
        assert update_triton(found, table, rule, lr, loss_scale)
        assert update_core(want, table, rule, lr, loss_scale)
        for ours, theirs in zip(found, want, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        found.grad[active()] = want.grad[active()] = 0.5
    if loss_scale is not None:
        found.grad[5] = torch.inf
        before = found.data.clone()
        assert not update_triton(found, table, rule, 0.1, loss_scale)
        assert torch.equal(found.data, before)
        assert not found.grad[active()].any()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_step_with_a_bad_gradient_is_skipped(bad: float) -> None:
    tensors = buffers()
    before = [tensor.clone() for tensor in tensors]
    tensors[1][150] = bad
    blocks = sgd.block_list(BLOCKS, CPU)
    found = sgd.control(tensors[1], blocks, clip_norm=1.0)
    assert found.skip == 1
    sgd.update(*tensors, blocks, lr=0.1, momentum=0.9, weight_decay=0.1, scale=found.scale, skip=found.skip)
    for index in (0, 2, 3):
        assert torch.equal(tensors[index], before[index])
    assert not tensors[1][active()].any()
    tensors[1][85] = bad  # outside the blocks
    assert sgd.control(tensors[1], blocks).skip == 0


def test_large_gradients_are_finite() -> None:
    """Their squares are not, in float32."""
    _, grad, *_ = buffers()
    grad[0] = 1e25
    found = sgd.control(grad, sgd.block_list(BLOCKS, CPU), clip_norm=1.0)
    torch.testing.assert_close(torch.cat(found), torch.tensor([1e-25, 0.0, 1e25]), rtol=1e-6, atol=0)


def test_gradients_can_stay() -> None:
    data, grad, *_ = buffers()
    before = grad.clone()
    sgd.update(data, grad, None, None, sgd.block_list(BLOCKS, CPU), lr=0.1, zero_grad=False)
    assert torch.equal(grad, before)


def test_no_block() -> None:
    data, grad, *_ = buffers()
    blocks = sgd.block_list([], CPU)
    assert [float(value) for value in sgd.control(grad, blocks, clip_norm=1.0)] == [1.0, 0.0, 0.0]
    sgd.update(data, grad, None, None, blocks, lr=0.1)


def test_arguments() -> None:
    data, grad, buffer, _ = buffers()
    blocks = sgd.block_list(BLOCKS, CPU)
    for wrong in ([(0, 16, 24)], [(8, 16, 32)], [(0, 48, 32)]):
        with pytest.raises(InputError, match="multiples of 16"):
            sgd.block_list(wrong, CPU)
    with pytest.raises(InputError, match=r"momentum_buffer: expected a tensor"):
        sgd.update(data, grad, None, None, blocks, lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match=r"grad: expected contiguous float32 \[208\]"):
        sgd.update(data, grad.double(), buffer, None, blocks, lr=0.1)
    with pytest.raises(InputError, match=r"skip: expected float32 \[1\]"):
        sgd.update(data, grad, None, None, blocks, lr=0.1, skip=torch.tensor([True]))
