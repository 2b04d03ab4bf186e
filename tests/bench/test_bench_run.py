"""Names, the child process that holds torch to an instruction set, statistics, and the command."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_budget import TINY

from greedynas_fast import _core, bench
from greedynas_fast.bench import codec, environment, timing
from greedynas_fast.cli import main
from greedynas_fast.errors import InputError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a child of `run_held` would be, and the smallest budget."""
    monkeypatch.delenv("GREEDYNAS_CPU_ISA", raising=False)
    for name, value in environment.missing().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(timing, "QUICK", TINY)


def cache_of(level: str) -> str:
    """Where torch.compile is to keep what it makes at a level."""
    return os.path.join(tempfile.gettempdir(), f"greedynas-inductor-{getpass.getuser()}-{level}")


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"unknown measurement 'codek'\. Did you mean 'codec'"):
        bench.measure(["codec", "codek"])
    with pytest.raises(
        InputError,
        match=r"unknown measurement 'x'\. Known: filter, filter_training, sampler, codec, mixconv, depthwise, bn_act, "
        r"squeeze_excite, block, supernet_step, step_overhead, score_paths, data, train\.",
    ):
        bench.measure(["x"])


@pytest.mark.usefixtures("held")
def test_an_unknown_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "sse9")
    with pytest.raises(InputError, match="GREEDYNAS_CPU_ISA is sse9; this build has portable"):
        bench.measure(["codec"], quick=True)


@pytest.mark.usefixtures("held")
def test_missing_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.missing() == {}
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "portable")
    # Kernels of torch.compile are kept apart by level.
    assert environment.missing() == {environment.CACHE: cache_of("portable")}
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "avx512")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    wanted = {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        environment.CACHE: cache_of("avx512"),
    }
    assert environment.missing() == wanted
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert environment.missing() == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert environment.missing() == {"OMP_WAIT_POLICY": "passive"}


def test_a_forced_level_holds_torch_in_a_child_process(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    if not _core.cpu_isa_available("avx2"):
        pytest.skip("this machine has no AVX2")
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "avx2")
    for name in environment.HELD["avx2"]:
        monkeypatch.delenv(name, raising=False)
    result = environment.run_held(describe_process)
    assert result["pid"] != os.getpid()
    assert result["torch_isa"] == "avx2"
    assert {name: result[name] for name in environment.HELD["avx2"]} == environment.HELD["avx2"]
    assert result["OMP_WAIT_POLICY"] == "passive"
    assert environment.HELD["avx2"].keys().isdisjoint(os.environ)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("bench: measuring in a child process with") == 1
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in captured.err
    with pytest.raises(InputError, match="what the child raises"):
        environment.run_held(fail)


def describe_process() -> dict[str, Any]:
    print("goes to standard error")
    return {"pid": os.getpid(), "torch_isa": timing.torch_isa(), **os.environ}


def fail() -> None:
    raise InputError("what the child raises")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, expected in (("1", (1,)), ("3", (1, 3))):
        monkeypatch.setenv("GREEDYNAS_NUM_THREADS", threads)
        assert timing.thread_counts() == expected
    torch.set_num_threads(1)
    with timing.torch_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_versions_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return 10

    rates = timing.alternate({"a": lambda: run("a"), "b": lambda: run("b")}, 3)
    assert "".join(order) == "ababab"
    assert {name: len(values) for name, values in rates.items()} == {"a": 3, "b": 3}
    assert timing.fastest({"a": [1, 2, 9], "b": [3, 3, 3]}, ["a", "b"]) == "b"
    assert timing.quantiles([0, 10, 20, 30, 40, 50]) == {"p20": 10, "p50": 25, "p80": 40}


def test_short_steps_make_a_run_together() -> None:
    calls = {"long": 0, "short": 0}

    def step(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    steps = {"long": lambda: step("long", 0.01), "short": lambda: step("short", 0.001)}
    rates = timing.alternate_steps(steps, 8, replace(timing.QUICK, repeats=2, call_s=0.05))
    # One of each to see how long it takes; then runs of as many as the long ones make of 0.05 s, if they are on time.
    assert calls["long"] == calls["short"]
    assert calls["long"] in {1 + 2 * count for count in range(1, 6)}
    assert [len(values) for values in rates.values()] == [2, 2]
    assert min(rates["short"]) > max(rates["long"])


def test_a_version_far_behind_does_not_take_turns() -> None:
    calls = {"best": 0, "peer": 0, "far behind": 0}

    def step(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    steps = {
        "best": lambda: step("best", 0.002),
        "peer": lambda: step("peer", 0.02),
        "far behind": lambda: step("far behind", 0.8),
    }
    rates = timing.alternate_steps(steps, 8, replace(timing.QUICK, repeats=3, call_s=0.05))
    assert list(rates) == list(steps)
    assert {name: len(values) for name, values in rates.items()} == {"best": 3, "peer": 3, "far behind": 1}
    assert calls["far behind"] == 2  # one may have been late by chance
    assert calls["best"] == calls["peer"] > 1  # the peer's step decides how many make a run
    assert rates["far behind"][0] <= 8 / 0.8
    # Nothing is too slow that takes no longer than a run.
    patient = timing.alternate_steps(steps, 8, replace(timing.QUICK, repeats=2, call_s=1.0))
    assert {len(values) for values in patient.values()} == {2}


def test_a_version_late_by_chance_takes_turns() -> None:
    delays = iter([0.3])

    def late_at_first() -> None:
        time.sleep(next(delays, 0.01))

    steps = {"best": lambda: time.sleep(0.001), "peer": late_at_first, "other": lambda: time.sleep(0.012)}
    rates = timing.alternate_steps(steps, 8, replace(timing.QUICK, repeats=2, call_s=0.05))
    assert {name: len(values) for name, values in rates.items()} == {"best": 2, "peer": 2, "other": 2}


def test_calibration_spread() -> None:
    assert all(value > 0 for value in timing.calibrate())
    assert timing.calibration([10, 10, 10], [10, 10, 10])["spread"] == 0
    assert timing.calibration([10, 10, 10], [20, 20, 20])["spread"] == pytest.approx(10 / 15)


@pytest.mark.usefixtures("held")
def test_command(capsys: Capture) -> None:
    assert main(["bench", "codec", "--quick", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert result.keys() == {"rows", "machine", "calibration", "next"}
    machine = result["machine"]
    assert machine["isa"] == _core.cpu_isa()
    assert machine["threads"] == _core.num_threads()
    assert machine["environment"]["OPENBLAS_NUM_THREADS"] == "1"
    assert all(machine[key] for key in ("platform", "python", "numpy", "torch", "torch_isa"))
    assert set(result["calibration"]) == {"before_ms", "after_ms", "spread"}
    assert {row["name"] for row in result["rows"]} == {"codec.pack", "codec.unpack", "codec.unique", "codec.add"}


@pytest.mark.usefixtures("held")
def test_table(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    skipped = timing.make_row("codec.pack", "another", "-", 2, skipped="it is not there")
    pack = timing.make_row("codec.pack", "core", "avx2", 1, paths=5, paths_per_s={"p20": 1e3, "p50": 2e3, "p80": 4e3})
    monkeypatch.setattr(codec, "measure", lambda budget: [pack, skipped])
    monkeypatch.setattr(timing, "calibration", lambda *times: {**{key: {"p50": 10.0} for key in KEYS}, "spread": 0.3})
    assert main(["bench", "codec", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "measurement  provider  isa   threads  paths  p20 k/s  p50 k/s  p80 k/s"
    assert lines[1].split() == ["codec.pack", "core", "avx2", "1", "5", "1", "2", "4"]
    assert lines[2] == "another (2): skipped, it is not there."
    assert (
        "Calibration loop: 10.0 ms before, 10.0 ms after, spread 30%. The machine was busy: trust the ratios only."
        in lines
    )
    assert lines[-1] == "Next: greedynas-fast doctor"


KEYS = ("before_ms", "after_ms")
