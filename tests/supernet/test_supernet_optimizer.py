"""The optimizer of the bank on given gradients: against `torch.optim.SGD`, and bit for bit against itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.supernet import BankSGD, ParameterBank, Supernet, sgd
from greedynas_fast.supernet.sgd import Buffers, Rule

PATH = (1, 0, 3, 4)


@pytest.fixture
def torchs_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_paths(space, count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, ops, count) for ops in space.num_ops], axis=1)


def active_names(net: Supernet, path) -> list[str]:
    prefixes = ("stem.", "head.", *(f"layers.{layer}.{op}." for layer, op in enumerate(path)))
    return [name for name, _ in net.named_parameters() if name.startswith(prefixes)]


def view_of(flat: Tensor, bank: ParameterBank, parameter: Tensor) -> Tensor:
    """Where a buffer that is laid out as the bank holds the values for a parameter."""
    offset = (parameter.data_ptr() - bank.data.data_ptr()) // 4
    return flat.as_strided(parameter.shape, parameter.stride(), offset)


def randomise(bank: ParameterBank, optimizer: BankSGD, path, seed: int = 0) -> None:
    """Random values wherever an active or inactive block may have some, gradients of the active blocks included."""
    generator = torch.Generator().manual_seed(seed)
    for flat in (optimizer.momentum_buffer, optimizer.ema_buffer):
        if flat is not None:
            flat.normal_(generator=generator)
    for block in bank.active(path):
        bank.grad[block.start : block.end].normal_(generator=generator)


class TorchTwin:
    """A supernet of the same weights whose inactive parameters have no gradient, and averages in double precision."""

    def __init__(self, space, weight_decay: float, clip_norm: float | None, ema_decay: float, **options: Any) -> None:
        self.net = Supernet(space, seed=4)
        self.clip_norm, self.ema_decay = clip_norm, ema_decay
        self.named = dict(self.net.named_parameters())
        weights = {id(m.weight) for m in self.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        groups = [
            {"params": [p for p in self.named.values() if id(p) in weights], "weight_decay": weight_decay},
            {"params": [p for p in self.named.values() if id(p) not in weights], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, foreach=False, **options)
        self.averages = {name: p.detach().double() for name, p in self.named.items()}

    def step(self, gradients: dict[str, Tensor], lr: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for name, gradient in gradients.items():
            self.named[name].grad = gradient.clone()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.named.values(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for name in gradients:
            moved = self.named[name].detach().double()
            self.averages[name] = self.ema_decay * self.averages[name] + (1 - self.ema_decay) * moved


@pytest.mark.parametrize("update", [sgd.update_core, sgd.update_torch], ids=["core", "torch"])
@pytest.mark.parametrize(
    ("options", "loss_scale"),
    [
        ({"momentum": 0.9, "weight_decay": 0.01}, None),
        ({"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}, 1000.0),
        ({"momentum": 0.0, "weight_decay": 0.1}, None),
        ({"momentum": 0.5, "weight_decay": 0.0}, 1000.0),
        ({"momentum": 0.9, "weight_decay": 4e-5, "clip_norm": 50.0}, None),
        ({"momentum": 0.9, "weight_decay": 4e-5, "clip_norm": 50.0}, 1000.0),
    ],
    ids=["default", "nesterov", "plain", "no-decay", "clip", "clip-scaled"],
)
def test_many_steps_equal_torch_sgd(space, monkeypatch, options, loss_scale, update) -> None:
    monkeypatch.setattr("greedynas_fast.supernet.optimizer.update_for", lambda device, triton: update)
    twin = TorchTwin(space, **{"clip_norm": None, "ema_decay": 0.9, **options})
    net = Supernet(space, seed=4)
    bank = ParameterBank(net)
    optimizer = BankSGD(bank, ema_decay=0.9, **options)
    named = dict(net.named_parameters())
    generator = torch.Generator().manual_seed(0)
    norms = []
    for index, path in enumerate(random_paths(space, 20)):
        size = 0.3 if index % 2 else 1.0  # some steps are clipped and some are not
        gradients = {
            name: torch.randn(named[name].shape, generator=generator) * size for name in active_names(net, path)
        }
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values())))
        for name, gradient in gradients.items():
            named[name].grad.copy_(gradient * (loss_scale or 1.0))
        assert optimizer.step(path, 0.1 / (1 + index), loss_scale=loss_scale)
        assert not bank.grad.any(), "a step leaves no gradient"
        twin.step(gradients, 0.1 / (1 + index))
    assert min(norms) < 50 < max(norms)
    for name, parameter in named.items():
        torch.testing.assert_close(parameter, twin.named[name], rtol=2e-6, atol=2e-6)
        average = view_of(optimizer.ema_buffer, bank, parameter)
        torch.testing.assert_close(average.double(), twin.averages[name], rtol=2e-6, atol=2e-6)
        state = twin.optimizer.state[twin.named[name]].get("momentum_buffer")
        if state is not None:
            torch.testing.assert_close(view_of(optimizer.momentum_buffer, bank, parameter), state, rtol=2e-6, atol=2e-6)
    bank.check()


def test_weight_decay_is_for_weights_alone(space) -> None:
    bank = ParameterBank(Supernet(space))
    bank.data.normal_(generator=torch.Generator().manual_seed(0))
    before = bank.data.clone()
    assert BankSGD(bank, momentum=0.0, weight_decay=0.5).step(PATH, 0.5)
    expected = before.clone()
    for block in bank.active(PATH):
        expected[block.start : block.decay_end] *= 0.75  # exact in float32 but for the last bit
    torch.testing.assert_close(bank.data, expected, rtol=2e-7, atol=0)
    for block in bank.active(PATH):
        assert torch.equal(bank.data[block.decay_end : block.end], before[block.decay_end : block.end])


def test_a_loss_scale_that_is_a_power_of_two_changes_no_bit(space) -> None:
    results = []
    for loss_scale in (None, 1.0, 2.0**16):
        bank = ParameterBank(Supernet(space))
        optimizer = BankSGD(bank)
        randomise(bank, optimizer, PATH)
        bank.grad *= loss_scale or 1.0
        assert optimizer.step(PATH, 0.1, loss_scale=loss_scale)
        results.append((bank.data, optimizer.momentum_buffer))
    for data, momentum in results[1:]:
        assert torch.equal(data, results[0][0])
        assert torch.equal(momentum, results[0][1])


@pytest.mark.parametrize(
    ("bad", "update"),
    [
        (math.inf, sgd.update_core),
        (-math.inf, sgd.update_core),
        (math.nan, sgd.update_core),
        (math.inf, sgd.update_torch),
        (math.nan, sgd.update_torch),
    ],
)
def test_a_gradient_that_is_not_finite_skips_the_step(space, monkeypatch, bad, update) -> None:
    monkeypatch.setattr("greedynas_fast.supernet.optimizer.update_for", lambda device, triton: update)
    for options, loss_scale in (({"clip_norm": 1.0}, None), ({}, 8.0), ({}, 1.0)):
        bank = ParameterBank(Supernet(space))
        optimizer = BankSGD(bank, weight_decay=0.1, ema_decay=0.5, **options)
        randomise(bank, optimizer, PATH)
        inactive = bank.block(0, 0)
        bank.grad[inactive.start] = bad
        flats = (bank.data, optimizer.momentum_buffer, optimizer.ema_buffer)
        before = [flat.clone() for flat in flats]
        assert optimizer.step(PATH, 0.1, loss_scale=loss_scale), "gradients of other operations do not count"
        assert not any(torch.equal(flat, old) for flat, old in zip(flats, before, strict=True))

        randomise(bank, optimizer, PATH)
        bank.grad[bank.block(3, 4).end - 17] = bad
        before = [flat.clone() for flat in flats]
        assert not optimizer.step(PATH, 0.1, loss_scale=loss_scale)
        assert all(torch.equal(flat, old) for flat, old in zip(flats, before, strict=True))
        left = torch.nonzero(bank.grad)
        assert left.tolist() == [[inactive.start]], "the gradients of the path are gone, others stay"


def test_without_clipping_and_loss_scale_nothing_looks_at_the_gradients(space) -> None:
    bank = ParameterBank(Supernet(space))
    optimizer = BankSGD(bank)
    block = bank.block(-1, 0)
    bank.grad[block.start] = math.nan
    assert optimizer.step(PATH, 0.1)
    assert torch.nonzero(bank.data.isnan()).tolist() == [[block.start]]
    assert not bank.grad.any()


def digests(flats: tuple[Tensor, ...], blocks) -> list[str]:
    return [
        hashlib.sha256(flat[block.start : block.end].numpy().tobytes()).hexdigest()
        for flat in flats
        for block in blocks
    ]


def test_inactive_blocks_are_the_same_bytes_after_100_steps(space) -> None:
    bank = ParameterBank(Supernet(space))
    optimizer = BankSGD(bank, 0.9, 0.1, nesterov=True, clip_norm=5.0, ema_decay=0.99)
    randomise(bank, optimizer, PATH)
    flats = (bank.data, optimizer.momentum_buffer, optimizer.ema_buffer)
    places = [(layer, op) for layer, count in enumerate(space.num_ops) for op in range(count)]
    used = [(layer, op) for layer, op in places if op % 2 == 0]
    idle = [bank.block(layer, op) for layer, op in places if op % 2]
    busy = [block for block in (bank.block(*place) for place in used) if block.end > block.start]
    idle_before, busy_before = digests(flats, idle), digests(flats, busy)
    for index, path in enumerate(random_paths(space, 100)):
        path = path // 2 * 2
        for block in bank.active(path):
            bank.grad[block.start : block.end].normal_(generator=torch.Generator().manual_seed(index))
        assert optimizer.step(path, 0.05)
    assert digests(flats, idle) == idle_before
    assert not set(digests(flats, busy)) & set(busy_before)


def synthetic() -> tuple[Buffers, np.ndarray]:
    """Blocks of several chunks, of a few values and of none, with ends that fit no vector."""
    generator = torch.Generator().manual_seed(3)
    buffers = Buffers(*(torch.randn(300_017, generator=generator) for _ in range(4)))
    blocks = [[0, 0, 0], [16, 70_001, 100_003], [100_003, 100_003, 100_010], [131_072, 300_017, 300_017]]
    return buffers, np.array(blocks, dtype=np.int64)


RULES = [
    Rule(0.9, 0.01, False, None, None),
    Rule(0.9, 0.01, True, 3.0, 0.99),
    Rule(0.0, 0.01, False, 3.0, None),
    Rule(0.0, 0.0, False, None, 0.9),
]


def results(rule: Rule) -> list[Tensor]:
    buffers, blocks = synthetic()
    if not rule.momentum:
        buffers = buffers._replace(momentum=None)
    if rule.ema_decay is None:
        buffers = buffers._replace(ema=None)
    for index in range(3):
        buffers.grad.normal_(generator=torch.Generator().manual_seed(index))
        assert sgd.update_core(buffers, blocks, rule, 0.1, 3.0)
    return [buffer for buffer in buffers if buffer is not None]


@pytest.mark.parametrize("rule", RULES)
def test_levels_and_threads_give_equal_bits(rule, monkeypatch, torchs_threads) -> None:
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "portable")
    monkeypatch.setenv("GREEDYNAS_NUM_THREADS", "4")
    torch.set_num_threads(1)
    expected = results(rule)
    levels = [level for level in _core.build_info()["cpu_levels"] if _core.cpu_isa_available(level)]
    for level in levels:
        monkeypatch.setenv("GREEDYNAS_CPU_ISA", level)
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for found, wanted in zip(results(rule), expected, strict=True):
                assert torch.equal(found, wanted), f"{level}, {threads} threads"


def test_sum_of_squares(monkeypatch, torchs_threads) -> None:
    buffers, blocks = synthetic()
    values = buffers.grad.numpy().astype(np.float64)
    expected = sum(float(np.square(values[start:end]).sum()) for start, _, end in blocks)
    monkeypatch.setenv("GREEDYNAS_NUM_THREADS", "4")
    found = set()
    for level in _core.build_info()["cpu_levels"]:
        if _core.cpu_isa_available(level):
            monkeypatch.setenv("GREEDYNAS_CPU_ISA", level)
            for threads in (1, 2, 4):
                found.add(_core.sum_of_squares(blocks.ctypes.data, len(blocks), buffers.grad.data_ptr(), threads))
    assert len(found) == 1
    assert found.pop() == pytest.approx(expected, rel=1e-13)


def test_blocks_are_those_of_the_bank(space) -> None:
    bank = ParameterBank(Supernet(space))
    optimizer = BankSGD(bank)
    paths = random_paths(space, 30, seed=1)
    for path in [*paths, *paths.tolist(), paths[:1], paths[:7], torch.from_numpy(paths[7:12])]:
        blocks = optimizer.blocks(path)
        assert blocks.dtype == np.int64
        assert blocks.flags.c_contiguous
        listed = [tuple(row) for row in blocks.tolist() if row[2] > row[0]]
        assert listed == [(block.start, block.decay_end, block.end) for block in bank.active(path)]
    with pytest.raises(InputError, match="expected at least one path"):
        optimizer.blocks(paths[:0])


def test_the_average_is_part_of_the_state(space) -> None:
    def trained(steps: int) -> tuple[ParameterBank, BankSGD]:
        bank = ParameterBank(Supernet(space))
        optimizer = BankSGD(bank, ema_decay=0.5)
        assert torch.equal(optimizer.ema_buffer, bank.data)
        for _ in range(steps):
            train(bank, optimizer)
        return bank, optimizer

    def train(bank: ParameterBank, optimizer: BankSGD) -> None:
        bank.grad[bank.block(-1, 0).start] = 1.0
        optimizer.step(PATH, 0.1)

    bank, optimizer = trained(2)
    other = ParameterBank(Supernet(space, seed=5))
    other.net.load_state_dict(bank.net.state_dict())
    continued = BankSGD(other, ema_decay=0.5)
    continued.load_state_dict({name: flat.clone() for name, flat in optimizer.state_dict().items()})
    train(bank, optimizer)
    train(other, continued)
    assert torch.equal(bank.data, other.data)
    assert optimizer.state_dict().keys() == {"momentum_buffer", "ema_buffer"}
    for name, flat in optimizer.state_dict().items():
        assert torch.equal(continued.state_dict()[name], flat), name
    assert not torch.equal(optimizer.ema_buffer, bank.data)


def test_bad_input(space) -> None:
    bank = ParameterBank(Supernet(space))
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="ema_decay: expected 0 or more and less than 1, or None, got"):
            BankSGD(bank, ema_decay=decay)
    with pytest.raises(InputError, match=r"triton \(train\.triton_sgd\): expected a CUDA device and Triton, got cpu"):
        BankSGD(ParameterBank(Supernet(space)), triton=True)
    with pytest.raises(InputError, match="momentum and weight_decay: expected 0 or more, got nan"):
        BankSGD(bank, momentum=math.nan)
    plain, averaging = BankSGD(bank), BankSGD(bank, ema_decay=0.5)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="loss_scale: expected a finite number above 0, got"):
            plain.step(PATH, 0.1, loss_scale=scale)
    with pytest.raises(InputError, match="ema_buffer: the state has a moving average, this optimizer has no ema_decay"):
        plain.load_state_dict(averaging.state_dict())
    plain.momentum_buffer.fill_(3.0)
    with pytest.raises(InputError, match=r"ema_buffer: expected shape \[\d+\], got none"):
        averaging.load_state_dict(plain.state_dict())
    assert not averaging.momentum_buffer.any(), "a state that does not fit changes nothing"
    with pytest.raises(InputError, match="expected 4 operation indices"):
        plain.step((0, 1), 0.1)
