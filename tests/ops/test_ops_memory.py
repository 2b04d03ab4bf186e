"""Tensors in the core's own memory."""

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor

from greedynas_fast import _core, ops, spaces
from greedynas_fast.ops import memory
from greedynas_fast.supernet import Supernet

LARGE = 1 << 20  # floats


def test_tensors_have_the_shape_and_layout_that_is_asked_for() -> None:
    x = memory.empty(memory.channels_last(2, 3, 5, 7))
    like = torch.empty(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    assert (x.shape, x.stride(), x.dtype, x.device) == (like.shape, like.stride(), torch.float32, torch.device("cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not x.requires_grad
    flat = memory.empty(memory.flat(5))
    assert flat.shape == (5,)
    for tensor in (x, flat):
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor.fill_(3.0), torch.full_like(tensor, 3.0))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 1, 3, 3), (0, 3, 2, 2), (64, 96, 7, 7)])
def test_tensors_of_all_sizes_hold_what_is_written(shape: tuple[int, int, int, int]) -> None:
    x = memory.empty(memory.channels_last(*shape))
    values = torch.randn(shape)
    assert torch.equal(x.copy_(values), values)


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    memory.release_memory()
    form = memory.flat(LARGE)
    first = memory.empty(form)
    view = first.view(2, -1)[1]
    address = first.data_ptr()
    del first
    other = memory.empty(form).fill_(1.0)
    assert other.data_ptr() != address
    view.fill_(2.0)
    assert torch.equal(other, torch.ones(LARGE))
    del view
    assert memory.empty(form).data_ptr() == address


def test_copies_have_memory_of_their_own() -> None:
    x = memory.empty(memory.flat(LARGE)).fill_(1.0)
    copies = [copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.clone()]
    x.fill_(2.0)
    assert all(torch.equal(value, torch.ones(LARGE)) for value in copies)


def test_capsules_that_nobody_takes_are_freed() -> None:
    memory.release_memory()
    taken, _ = _core.memory_use()
    capsule = memory.flat(LARGE).empty()
    assert _core.memory_use()[0] == taken + 4 * LARGE
    del capsule
    assert _core.memory_use() == (taken, 4 * LARGE)


def test_what_is_kept_can_be_released() -> None:
    memory.release_memory()
    del_me = memory.empty(memory.flat(LARGE))
    assert ops.release_memory() == 0
    del del_me
    assert ops.release_memory() == 4 * LARGE
    assert _core.memory_use()[1] == 0


def test_memory_that_cannot_be_had_is_an_error_and_loses_nothing() -> None:
    held = memory.empty(memory.flat(LARGE)).fill_(1.0)
    taken, _ = _core.memory_use()
    with pytest.raises(MemoryError):
        memory.flat(1 << 56).empty()
    assert _core.memory_use()[0] == taken
    assert torch.equal(held, torch.ones(LARGE))


def test_steps_of_a_training_take_no_new_memory() -> None:
    net = Supernet(spaces.get("sample"), 0).train().to(memory_format=torch.channels_last)
    path = net.space.allowed.shape[0] * [0]
    x = torch.randn(8, net.space.in_channels, 28, 28)

    def step() -> Tensor:
        logits: Tensor = net(x, path)
        logits.sum().backward()
        return logits.detach()

    gc.collect()
    held = []
    for _ in range(4):
        step()
        held.append(sum(_core.memory_use()))
    assert held[0] > 1 << 20
    assert held[1:] == held[1:2] * 3
