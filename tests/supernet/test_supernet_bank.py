"""The parameter bank and its optimizer against `torch.optim.SGD`."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.supernet import BankSGD, Block, ParameterBank, Supernet

STEPS = [(0, 0, 0, 0), (1, 2, 3, 4), (0, 0, 3, 0), (2, 2, 2, 2), (1, 0, 3, 4), (5, 5, 0, 1), (1, 2, 3, 4)]


def decayed(net: Supernet) -> set[int]:
    """Ids of the weights of convolutions and linear layers."""
    return {id(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_layout(space) -> None:
    net = Supernet(space)
    bank = ParameterBank(net)
    position = 0
    weights = decayed(net)
    modules = [([net.stem, net.head], -1, 0)]
    modules += [([net.layers[layer][op]], layer, op) for layer in range(4) for op in range(space.num_ops[layer])]
    for parts, layer, op in modules:
        block = bank.block(layer, op)
        assert block.start == position, "blocks follow each other in the order of (layer, operation)"
        assert block.start <= block.decay_end <= block.end
        for parameter in [p for part in parts for p in part.parameters()]:
            offset = (parameter.data_ptr() - bank.data.data_ptr()) // 4
            low, high = (block.start, block.decay_end) if id(parameter) in weights else (block.decay_end, block.end)
            assert low <= offset
            assert offset + parameter.numel() <= high
            assert parameter.grad.data_ptr() - bank.grad.data_ptr() == 4 * offset
        position = block.end
    assert position == bank.data.numel()
    assert bank.block(1, 2) == Block(*(bank.block(1, 2).start,) * 3), "an identity has no parameters"
    total = sum(p.numel() for p in net.parameters())
    assert total <= position <= total + 15 * len(list(net.parameters()))


def test_the_bank_keeps_values_and_outputs(space, images) -> None:
    net, other = Supernet(space, seed=3), Supernet(space, seed=3)
    ParameterBank(net)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    x = images(2)
    assert torch.equal(net.eval()(x, STEPS[1]), other.eval()(x, STEPS[1]))


def test_channels_last_weights_stay_channels_last(space, images) -> None:
    net = Supernet(space).to(memory_format=torch.channels_last)
    bank = ParameterBank(net)
    conv = net.layers[0][5].conv2.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert conv.grad.stride() == conv.stride()
    functional.cross_entropy(net(images(2), (5, 5, 0, 1)), torch.tensor([0, 1])).backward()
    bank.check()


def test_zero_grad_touches_the_active_blocks_only(space) -> None:
    net = Supernet(space)
    bank = ParameterBank(net)
    bank.grad.fill_(1.0)
    bank.zero_grad((1, 2, 3, 4))
    expected = torch.ones_like(bank.grad)
    for layer, op in [(-1, 0), (0, 1), (2, 3), (3, 4)]:
        block = bank.block(layer, op)
        expected[block.start : block.end] = 0
    assert torch.equal(bank.grad, expected)


def test_active_blocks_of_one_and_of_many_paths(space) -> None:
    bank = ParameterBank(Supernet(space))
    assert bank.active((0, 2, 1, 5)) == [bank.block(*at) for at in [(-1, 0), (0, 0), (2, 1), (3, 5)]]
    both = np.array([[0, 2, 1, 5], [4, 3, 1, 5]], dtype=np.uint8)
    expected = [bank.block(*at) for at in [(-1, 0), (0, 0), (0, 4), (1, 3), (2, 1), (3, 5)]]
    assert bank.active(both) == expected
    assert bank.active(torch.from_numpy(both)) == expected
    with pytest.raises(InputError, match="layer 2 has operations 0 to 3, got 4"):
        bank.active(np.array([[0, 0, 0, 0], [0, 0, 4, 0]]))


def test_an_empty_batch_of_paths_is_refused(space) -> None:
    bank = ParameterBank(Supernet(space))
    with pytest.raises(InputError, match="expected at least one path"):
        bank.active(np.empty((0, 4), dtype=np.uint8))


@pytest.mark.parametrize(
    ("layer", "op", "message"),
    [
        (4, 0, "layer: expected -1"),
        (-1, 1, "layer: expected -1"),
        (-2, 0, "layer: expected"),
        (2, 4, "op: layer 2 has"),
    ],
)
def test_unknown_blocks_are_refused(space, layer, op, message) -> None:
    with pytest.raises(InputError, match=message):
        ParameterBank(Supernet(space)).block(layer, op)


def test_views_survive_load_state_dict_and_training(space, images) -> None:
    net = Supernet(space, seed=0)
    bank = ParameterBank(net)
    source = Supernet(space, seed=1)
    net.load_state_dict(source.state_dict())
    bank.check()
    block = bank.block(0, 0)
    assert torch.equal(
        bank.data[block.start : block.start + 24 * 8].view(24, 8, 1, 1), source.layers[0][0].conv_pw.weight
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict({**source.state_dict(), "head.conv.weight": torch.zeros(1)})
    functional.cross_entropy(net(images(2), STEPS[0]), torch.tensor([0, 1])).backward()
    bank.check()


def test_layers_that_add_to_the_bank_give_the_same_bits(space, images, labels) -> None:
    grads = []
    for adds in (False, True):
        bank = ParameterBank(Supernet(space, seed=0).train().to(memory_format=torch.channels_last))
        for path in STEPS:
            torch.manual_seed(0)
            with bank.adding() if adds else contextlib.nullcontext():
                logits = bank.net(images(4), path)
            functional.cross_entropy(logits, labels(4)).backward()
        bank.check()
        grads.append(bank.grad)
    assert grads[0].any()
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda net: net.zero_grad(), "the gradient of .* no longer lies in the bank"),
        (lambda net: net.double(), "the parameter of .* no longer lies in the bank"),
        (lambda net: net.load_state_dict(Supernet(net.space).state_dict(), assign=True), "parameter of"),
        (lambda net: setattr(net.layers[0][0], "conv_pw", nn.Conv2d(8, 24, 1)), "gained or lost parameters"),
        (
            lambda net: setattr(net.head.classifier, "weight", nn.Parameter(torch.zeros(5, 32))),
            "head.classifier.weight",
        ),
    ],
)
def test_check_tells_broken_views(space, break_it, message) -> None:
    net = Supernet(space)
    bank = ParameterBank(net)
    bank.check()
    break_it(net)
    with pytest.raises(RuntimeError, match=message):
        bank.check()


def test_other_dtypes_are_refused(space) -> None:
    with pytest.raises(InputError, match=r"expected float32 parameters on one device, got torch\.float64 on cpu"):
        ParameterBank(Supernet(space).double())


class TorchTwin:
    """The same training with `torch.optim.SGD`, in which inactive parameters have no gradient."""

    def __init__(self, space, **options) -> None:
        self.net = Supernet(space, seed=4)
        weights = decayed(self.net)
        decay = options.pop("weight_decay")
        self.clip = options.pop("clip_norm", None)
        groups = [
            {"params": [p for p in self.net.parameters() if id(p) in weights], "weight_decay": decay},
            {"params": [p for p in self.net.parameters() if id(p) not in weights], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, foreach=False, **options)

    def step(self, path, lr, gradient_of) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        gradient_of(self.net)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.0},
        {"momentum": 0.9, "weight_decay": 4e-5, "clip_norm": 0.5},
    ],
    ids=["default", "nesterov", "plain", "no-decay", "clip"],
)
def test_steps_equal_torch_sgd(space, images, labels, options) -> None:
    twin = TorchTwin(space, **options)
    net = Supernet(space, seed=4)
    bank = ParameterBank(net)
    optimizer = BankSGD(bank, **options)
    for index, path in enumerate(STEPS):
        x, y, lr = images(4, seed=index), labels(4), 0.1 / (index + 1)

        def backward(model: Supernet, x=x, y=y, path=path, index=index) -> None:
            torch.manual_seed(index)
            functional.cross_entropy(model(x, path), y).backward()

        backward(net)
        optimizer.step(path, lr)
        twin.step(path, lr, backward)
        for (name, ours), theirs in zip(net.named_parameters(), twin.net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=f"{name} after step {index}")
        assert not bank.grad.any()
    bank.check()


def test_clipping_bounds_the_active_gradients_together(space) -> None:
    bank = ParameterBank(Supernet(space))
    optimizer = BankSGD(bank, momentum=0.0, weight_decay=0.0, clip_norm=2.0)
    path = (0, 2, 1, 3)
    bank.grad.fill_(1e6)  # inactive blocks do not count
    for block in bank.active(path):
        bank.grad[block.start : block.end] = 0.01
    moved = sum(block.end - block.start for block in bank.active(path))
    assert 0.01 * moved**0.5 < 2.0
    before = bank.data.clone()
    optimizer.step(path, 1.0)
    block = bank.block(0, 0)
    torch.testing.assert_close(bank.data[block.start : block.end], before[block.start : block.end] - 0.01)
    for block in bank.active(path):
        bank.grad[block.start : block.end] = 1.0
    before = bank.data.clone()
    optimizer.step(path, 1.0)
    assert (bank.data - before).norm().item() == pytest.approx(2.0, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    paths=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=3
    )
)
def test_inactive_blocks_stay_bit_identical(space, images, labels, paths) -> None:
    net = Supernet(space, seed=2)
    bank = ParameterBank(net)
    optimizer = BankSGD(bank, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    bank.grad.normal_(generator=generator)
    optimizer.momentum_buffer.normal_(generator=generator)
    flats = (bank.data, bank.grad, optimizer.momentum_buffer)
    before = [flat.clone() for flat in flats]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    for path in paths:
        bank.zero_grad(path)
        functional.cross_entropy(net(images(4), path), labels(4)).backward()
        optimizer.step(path, 0.1)
    used = {(layer, path[layer]) for path in paths for layer in range(4)}
    moved = torch.zeros_like(bank.data, dtype=torch.bool)
    for layer, op in [(-1, 0), *used]:
        block = bank.block(layer, op)
        moved[block.start : block.end] = True
    for flat, old in zip(flats, before, strict=True):
        assert torch.equal(flat[~moved], old[~moved])
    names = tuple(f"layers.{layer}.{op}." for layer, op in used)
    for name, value in net.named_buffers():
        if not name.startswith(("stem.", "head.", *names)):
            assert torch.equal(value, buffers[name]), name
        elif name.endswith("num_batches_tracked"):
            assert value > buffers[name]


def test_gradients_of_several_paths_accumulate_and_move_together(space, images, labels) -> None:
    net = Supernet(space, seed=2)
    bank = ParameterBank(net)
    optimizer = BankSGD(bank, momentum=0.0, weight_decay=0.0)
    paths = np.array([[0, 0, 0, 0], [1, 0, 1, 1]], dtype=np.uint8)
    before = bank.data.clone()
    for path in paths:
        functional.cross_entropy(net(images(4), path), labels(4)).backward()
    gradient = bank.grad.clone()
    optimizer.step(paths, 0.5)
    torch.testing.assert_close(bank.data, before - 0.5 * gradient)
    assert gradient[bank.block(0, 1).start : bank.block(0, 1).end].any()


def test_training_continues_exactly_from_state_dicts(space, images, labels) -> None:
    def setting(seed: int) -> tuple[Supernet, ParameterBank, BankSGD]:
        net = Supernet(space, seed=seed)
        bank = ParameterBank(net)
        return net, bank, BankSGD(bank)

    def train(parts: tuple[Supernet, ParameterBank, BankSGD], steps: range) -> None:
        net, _, optimizer = parts
        for step in steps:
            path = STEPS[step % len(STEPS)]
            torch.manual_seed(step)
            functional.cross_entropy(net(images(4, seed=step), path), labels(4)).backward()
            optimizer.step(path, 0.05)

    whole, first, second = setting(0), setting(0), setting(8)
    train(whole, range(9))
    train(first, range(5))
    second[0].load_state_dict({key: value.clone() for key, value in first[0].state_dict().items()})
    second[2].load_state_dict({key: value.clone() for key, value in first[2].state_dict().items()})
    train(second, range(5, 9))
    second[1].check()
    assert torch.equal(whole[1].data, second[1].data)
    assert torch.equal(whole[2].momentum_buffer, second[2].momentum_buffer)
    state = second[0].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole[0].state_dict().items())


def test_bad_optimizer_input(space) -> None:
    bank = ParameterBank(Supernet(space))
    with pytest.raises(InputError, match="momentum and weight_decay: expected 0 or more"):
        BankSGD(bank, momentum=-0.1)
    with pytest.raises(InputError, match="nesterov: expected a momentum above 0"):
        BankSGD(bank, momentum=0.0, nesterov=True)
    with pytest.raises(InputError, match="clip_norm: expected a number above 0 or None, got 0"):
        BankSGD(bank, clip_norm=0)
    optimizer = BankSGD(bank)
    with pytest.raises(InputError, match=r"momentum_buffer: expected shape \[\d+\], got \[3\]"):
        optimizer.load_state_dict({"momentum_buffer": torch.zeros(3)})
    with pytest.raises(InputError, match=r"momentum_buffer: expected shape .* got none"):
        optimizer.load_state_dict({})
    with pytest.raises(InputError, match="layer 2 has operations"):
        optimizer.step((0, 0, 9, 0), 0.1)
