"""Operations leave a supernet and its bank: what stays is the same bit for bit, and checkpoints fit both ways."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.supernet import BankSGD, Block, ParameterBank, Supernet, compact, extract, load_checkpoint
from greedynas_fast.supernet.scoring import score_paths
from greedynas_fast.supernet.supernet import Removed

# Among them an identity without parameters (layer 1), one with (layer 0), the first and the last operation of the bank.
GONE = [(0, 0), (0, 2), (1, 2), (1, 5), (2, 3), (3, 1), (3, 5)]
STEPS = [(1, 0, 0, 0), (3, 3, 1, 2), (1, 0, 2, 0), (4, 4, 2, 2), (5, 0, 0, 4), (3, 1, 0, 3), (3, 3, 1, 2)]
BEFORE = [(0, 2, 3, 5), (2, 5, 3, 1), *STEPS[:3]]


@pytest.fixture(scope="module")
def mask(space):
    """Allowed after the operations of GONE have left."""
    allowed = space.allowed
    for layer, op in GONE:
        allowed[layer, op] = False
    return allowed


class Training:
    """A supernet, its bank and its optimizer, trained on fixed batches."""

    def __init__(self, space, images, labels, seed: int = 0, **options) -> None:
        self.net = Supernet(space, seed=seed).to(memory_format=torch.channels_last).train()
        self.images, self.labels, self.options = images, labels, options
        self.use(ParameterBank(self.net))

    def use(self, bank, buffers=None) -> None:
        self.bank, self.optimizer = bank, BankSGD(bank, **self.options)
        if buffers is not None:
            self.optimizer.load_state_dict(buffers)

    def compact(self, allowed) -> None:
        self.use(*compact(self.bank, allowed, self.optimizer.state_dict()))

    def train(self, paths, first: int = 0) -> None:
        for step, path in enumerate(paths, first):
            torch.manual_seed(step)  # dropout
            self.bank.zero_grad(path)
            functional.cross_entropy(self.net(self.images(6, seed=step), path), self.labels(6)).backward()
            self.optimizer.step(path, 0.1)

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the optimizer's buffers hold for each parameter."""
        return {name: self.by_name(buffer) for name, buffer in self.optimizer.state_dict().items()}

    def by_name(self, buffer) -> dict[str, torch.Tensor]:
        """What a buffer that is laid out like the bank holds for each parameter."""
        found = {}
        for name, parameter in self.net.named_parameters():
            start = (parameter.data_ptr() - self.bank.data.data_ptr()) // 4
            found[name] = buffer[start : start + parameter.numel()].clone()
        return found


def has_left(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "layers" and (int(parts[1]), int(parts[2])) in GONE


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def remaining(tensors):
    return {name: value for name, value in tensors.items() if not has_left(name)}


def test_what_stays_keeps_index_key_and_value(space, mask) -> None:
    net = Supernet(space, seed=1)
    before = copy.deepcopy(net.state_dict())
    net.keep(mask)
    assert equal(net.state_dict(), remaining(before))
    assert np.array_equal(net.allowed, mask)
    for layer, operations in enumerate(net.layers):
        assert len(operations) == space.num_ops[layer]
        assert [isinstance(part, Removed) for part in operations] == [
            (layer, op) in GONE for op in range(len(operations))
        ]
    net.keep(space.allowed)
    assert np.array_equal(net.allowed, mask), "an operation that has left does not come back"


def test_blocks_follow_each_other_and_those_of_operations_that_left_are_empty(space, mask) -> None:
    bank, _ = compact(ParameterBank(Supernet(space, seed=1)), mask, {})
    bank.check()
    sizes = {}
    full = ParameterBank(Supernet(space))
    position = bank.block(-1, 0).end
    for layer, count in enumerate(space.num_ops):
        for op in range(count):
            block, old = bank.block(layer, op), full.block(layer, op)
            assert block.start == position
            if (layer, op) in GONE:
                assert block == Block(position, position, position)
            else:
                assert block.end - block.start == old.end - old.start
                assert block.decay_end - block.start == old.decay_end - old.start
            position, sizes[layer, op] = block.end, old.end - old.start
    assert bank.data.numel() == bank.grad.numel() == position
    assert full.data.numel() - position == sum(sizes[at] for at in GONE) > 0
    assert bank.data.untyped_storage().nbytes() == 4 * position


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True, "clip_norm": 0.5},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"ema_decay": 0.75},
        {"momentum": 0.0, "ema_decay": 0.5, "clip_norm": 0.5},
    ],
    ids=["default", "nesterov and clip", "plain", "average", "average without momentum"],
)
def test_training_goes_on_bit_for_bit(space, images, labels, mask, options) -> None:
    plain, compacted = (Training(space, images, labels, **options) for _ in range(2))
    for training in (plain, compacted):
        training.train(BEFORE)
    compacted.compact(mask)
    for training in (plain, compacted):
        training.train(STEPS, first=len(BEFORE))
    compacted.bank.check()
    assert equal(compacted.net.state_dict(), remaining(plain.net.state_dict()))
    buffers, found = plain.state(), compacted.state()
    assert found.keys() == buffers.keys() == {"momentum_buffer", *(["ema_buffer"] if "ema_decay" in options else [])}
    assert all(equal(found[name], remaining(buffers[name])) for name in found)
    assert any(value.any() for value in found["momentum_buffer"].values()) == (options.get("momentum") != 0.0)
    x = images(4, seed=99)
    for training in (plain, compacted):
        training.net.eval()
    outputs = [plain.net(x, path) for path in STEPS]
    for path, output in zip(STEPS, outputs, strict=True):
        assert torch.equal(compacted.net(x, path), output)
    with plain.optimizer.averaged(), compacted.optimizer.averaged():
        for path, output in zip(STEPS, outputs, strict=True):
            averaged = plain.net(x, path)
            assert torch.equal(compacted.net(x, path), averaged)
            assert torch.equal(averaged, output) == ("ema_decay" not in options)


def test_twice_is_as_good_as_once(space, images, labels, mask) -> None:
    half = space.allowed
    for layer, op in GONE[::2]:
        half[layer, op] = False
    ends = []
    for masks in ([mask], [half, mask]):
        training = Training(space, images, labels, ema_decay=0.75)
        training.train(BEFORE)
        for allowed in masks:
            training.compact(allowed)
        buffers = training.optimizer.state_dict()
        ends.append(({"data": training.bank.data, **buffers}, list(training.bank.blocks())))
    assert ends[0][0].keys() == {"data", "momentum_buffer", "ema_buffer"}
    assert equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_every_buffer_of_the_bank_s_length_follows(space, mask) -> None:
    full = ParameterBank(Supernet(space, seed=1))
    buffers = {"ema_buffer": full.data * 2, "count": torch.tensor(3.0), "table": torch.ones(5)}
    bank, moved = compact(full, mask, buffers)
    assert torch.equal(moved["ema_buffer"], bank.data * 2)
    assert moved["count"] is buffers["count"]
    assert moved["table"] is buffers["table"]


def test_nothing_leaves_nothing_changes(space) -> None:
    bank = ParameterBank(Supernet(space))
    buffers = {"momentum_buffer": torch.ones_like(bank.data)}
    same, kept = compact(bank, space.allowed, buffers)
    assert same is bank
    assert kept["momentum_buffer"] is buffers["momentum_buffer"]


def test_modules_and_buffers_leave_memory(space, images, labels, mask) -> None:
    training = Training(space, images, labels)
    training.train(BEFORE)
    gone = [weakref.ref(training.net.layers[layer][op]) for layer, op in GONE]
    old = [weakref.ref(tensor) for tensor in (training.bank.data, training.bank.grad)]
    training.compact(mask)
    gc.collect()
    assert [ref() for ref in gone + old] == [None] * len(gone + old)
    storages = {p.untyped_storage().data_ptr() for p in training.net.parameters()}
    assert storages == {training.bank.data.untyped_storage().data_ptr()}


@pytest.mark.parametrize("use", ["forward", "extract", "score", "active", "zero_grad"])
def test_a_path_through_an_operation_that_left_is_refused(space, images, labels, mask, use) -> None:
    bank, _ = compact(ParameterBank(Supernet(space)), mask, {})
    net, path = bank.net, (1, 0, 3, 5)
    call = {
        "forward": lambda: net(images(2), path),
        "extract": lambda: extract(net, path),
        "score": lambda: score_paths(net, [STEPS[0], path], images(4), labels(4), batch_size=4),
        "active": lambda: bank.active(np.array([STEPS[0], path])),
        "zero_grad": lambda: bank.zero_grad(path),
    }[use]
    with pytest.raises(InputError, match="path: operation 3 of layer 2, Shuffle_5, has been removed from the supernet"):
        call()
    with pytest.raises(InputError, match="has been removed"):
        net.layers[2][3](images(2))


def test_bad_masks_are_refused(space) -> None:
    net = Supernet(space)
    none_left = space.allowed
    none_left[2] = False
    for allowed, message in [
        (none_left, "layer 2 would have no operation left"),
        (space.allowed[:2], r"expected a bool array \[4, 6\], got bool \[2, 6\]"),
        (space.allowed.astype(np.uint8), r"expected a bool array \[4, 6\], got uint8"),
    ]:
        with pytest.raises(InputError, match=message):
            net.keep(allowed)
    assert np.array_equal(net.allowed, space.allowed)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.75}], ids=["no average", "average"])
@pytest.mark.parametrize("target", ["full", "compacted"])
@pytest.mark.parametrize("source", ["full", "compacted"])
def test_checkpoints_fit_both_ways(space, images, labels, mask, source, target, options) -> None:
    saved = Training(space, images, labels, **options)
    saved.train(BEFORE)
    if source == "compacted":
        saved.compact(mask)
    weights, buffers = copy.deepcopy((saved.net.state_dict(), saved.optimizer.state_dict()))
    other = Training(space, images, labels, seed=5, **options)
    other.train(STEPS[:1])
    if target == "compacted":
        other.compact(mask)
    other.use(*load_checkpoint(other.bank, weights, buffers, mask))
    assert np.array_equal(other.net.allowed, mask)
    for training in (saved, other):
        training.train(STEPS, first=len(BEFORE))
    other.bank.check()
    assert equal(remaining(saved.net.state_dict()), other.net.state_dict())
    wanted, found = saved.state(), other.state()
    assert found.keys() == wanted.keys() == {"momentum_buffer", *(["ema_buffer"] if options else [])}
    assert all(equal(remaining(wanted[name]), found[name]) for name in found)


@pytest.mark.parametrize("saves", [True, False], ids=["only the checkpoint", "only the training"])
def test_an_average_is_in_both_or_in_neither(space, images, labels, mask, saves) -> None:
    saved = Training(space, images, labels, **({"ema_decay": 0.75} if saves else {}))
    saved.train(BEFORE)
    saved.compact(mask)
    other = Training(space, images, labels, **({} if saves else {"ema_decay": 0.75}))
    bank, buffers = load_checkpoint(other.bank, saved.net.state_dict(), saved.optimizer.state_dict())
    optimizer = BankSGD(bank, **other.options)
    before = copy.deepcopy(optimizer.state_dict())
    message = "has a moving average, this optimizer has no ema_decay" if saves else "ema_buffer: expected shape .* none"
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(buffers)
    assert equal(optimizer.state_dict(), before)


def test_without_a_mask_a_checkpoint_tells_by_itself_what_has_left(space, images, labels, mask) -> None:
    saved = Training(space, images, labels)
    saved.compact(mask)
    other = Training(space, images, labels, seed=5)
    bank, _ = load_checkpoint(other.bank, saved.net.state_dict(), saved.optimizer.state_dict())
    expected = mask.copy()
    expected[1, 2] = True  # an identity, which has no parameters to be missed
    assert np.array_equal(bank.net.allowed, expected)
    assert torch.equal(bank.data, saved.bank.data)


def test_a_state_that_lacks_single_parameters_is_refused(space, mask) -> None:
    state = Supernet(space).state_dict()
    del state["layers.1.0.conv_pw.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.1\.0\.conv_pw\.weight"):
        load_checkpoint(ParameterBank(Supernet(space)), state, {}, mask)
    with pytest.raises(InputError, match="layer 0 would have no operation left"):
        load_checkpoint(ParameterBank(Supernet(space)), {"stem.weight": torch.zeros(1)}, {})
