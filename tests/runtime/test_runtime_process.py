"""Seeds, deterministic switches, devices and signals."""

from __future__ import annotations

import hashlib
import os
import signal
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast.errors import InputError, Terminated
from greedynas_fast.runtime import (
    Interrupt,
    generator,
    make_deterministic,
    resolve_device,
    seed_for,
    seed_generators,
    set_threads,
)

keys = st.lists(st.integers(-(2**70), 2**70) | st.text(), max_size=4)


def test_seed_is_the_documented_hash() -> None:
    # Written out once more: a run that goes on after an upgrade must find the same seeds.
    text = b""
    for part in (b"i7", b"sfilter", b"i3"):
        text += len(part).to_bytes(8, "little") + part
    assert seed_for(7, "filter", 3) == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@given(st.integers(), keys, st.integers(), keys)
def test_different_keys_give_different_seeds(a: int, a_keys: list[int | str], b: int, b_keys: list[int | str]) -> None:
    assert 0 <= seed_for(a, *a_keys) < 2**64
    assert (seed_for(a, *a_keys) == seed_for(b, *b_keys)) == ((a, a_keys) == (b, b_keys))


def test_confusable_keys() -> None:
    seeds = {
        seed_for(1, 23),
        seed_for(12, 3),
        seed_for(1, "23"),
        seed_for(1, "2", "3"),
        seed_for(1, 2, 3),
        seed_for(123),
    }
    assert len(seeds) == 6
    for bad in (1.5, None, True, b"x"):
        with pytest.raises(TypeError, match="expected int or str"):
            seed_for(1, bad)  # type: ignore[arg-type]


def test_generator_is_fresh_and_leaves_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    a = torch.rand(5, generator=generator(1, "a", 2))
    assert torch.equal(a, torch.rand(5, generator=generator(1, "a", 2)))
    assert not torch.equal(a, torch.rand(5, generator=generator(1, "a", 3)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [0, 5, 2**63, 2**64 - 1])
def test_generators_are_seeded_as_torch_seeds_them(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    wanted = torch.rand(4)
    seed_generators(torch.device("cpu"), seed)
    assert torch.equal(torch.rand(4), wanted)
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_generators(torch.device("cuda"), seed)
    assert torch.equal(torch.rand(4), wanted)
    assert seeds == [seed]


def test_set_threads() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(2)
        assert torch.get_num_threads() == 2
        set_threads(0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        set_threads(-1)


def test_make_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def test_device_on_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"device: cuda was asked for, but .*Use `cpu` or `auto`"):
        resolve_device("cuda")
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "mps", "", "cpu:0"):
        with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
            resolve_device(name)


def test_device_on_a_machine_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="only 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        assert type(interrupt.stopped()) is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        os.kill(os.getpid(), signal.SIGTERM)  # patient with a second one
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_second_ctrl_c_raises() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_do_nothing() -> None:
    seen: list[bool] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
