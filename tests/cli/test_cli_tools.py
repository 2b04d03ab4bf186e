"""The frame of the command line, `doctor` and `experiment`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greedynas_fast import __version__, doctor
from greedynas_fast.cli import main
from greedynas_fast.commands import REGISTRY, load
from greedynas_fast.commands.printing import lines, table, to_json
from greedynas_fast.experiments import table4

Capture = pytest.CaptureFixture[str]


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in REGISTRY)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"greedynas-fast {__version__}\n"
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: greedynas-fast COMMAND")


def test_unknown_command(capsys: Capture) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'. Did you mean 'train'?\n"
    assert main(["qqqq"]) == 2
    assert "--help` lists the commands" in capsys.readouterr().err


def test_every_command_loads() -> None:
    for name in REGISTRY:
        assert callable(load(name).execute)


# A process that aborts after Python has taken itself down, as running threads of a C++ library make it, and that has an
# exit function of its own.
ABORTS_AT_EXIT = """
import atexit, ctypes, sys
from greedynas_fast import cli
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
def main():
    atexit.register(print, "cleaned up")
    return cli_main() if sys.argv[1] != "fail" else 1 / 0
cli_main, cli.main = cli.main, main
cli.run_process()
"""


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("trian", 2), ("fail", 1)])
def test_rank_that_would_abort_at_exit(argument: str, code: int) -> None:
    """Under torchrun the exit code is the command's; output and exit functions are complete."""
    command = [sys.executable, "-P", "-c", ABORTS_AT_EXIT, argument]
    alone, rank = (
        subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WORLD_SIZE": size})
        for size in ("1", "2")
    )
    assert alone.returncode == -signal.SIGABRT, "the process does abort"
    assert rank.returncode == code
    assert rank.stdout.endswith("cleaned up\n")
    assert (rank.stdout, rank.stderr) == (alone.stdout, alone.stderr)


def test_omp_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in os.environ
    capsys.readouterr()


def test_as_a_module() -> None:
    command = [sys.executable, "-P", "-m", "greedynas_fast", "spaces", "no-such-space", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown space 'no-such-space'")


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -P -m greedynas_fast spaces mb-se --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "0"


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert result["version"] == __version__
    assert result["packages"]["torch"]["version"] == importlib.metadata.version("torch")
    assert result["packages"]["numpy"]["version"] == np.__version__
    assert "portable" in result["core"]["cpu_levels"]
    assert result["core"]["cuda_architectures"] == [] or result["core"]["cuda"]
    assert result["cpu"]["levels_found"][0] == "portable"
    assert result["data_backend"].split(":")[0] == ("torch" if result["dali"] is None else "dali")
    assert result["problems"] == []
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "compiled core" in out
    assert out.endswith("Next: greedynas-fast run --preset sample\n")


def test_doctor_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str, package: str | None = None) -> Any:
        raise ImportError(f"no {name}")

    def no_version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    def no_file(self: Path, *arguments: Any, **options: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(importlib, "import_module", no_module)
    monkeypatch.setattr(importlib.metadata, "version", no_version)
    monkeypatch.setattr(Path, "read_text", no_file)
    result = doctor.examine()
    assert result["core"]["error"].startswith("the compiled core cannot be loaded (no greedynas_fast._core)")
    assert result["gpu"]["available"] is False
    assert result["data_backend"] is None
    assert result["cpu"]["levels_found"] == ["portable"]
    assert {package["version"] for package in result["packages"].values()} == {None}
    assert any("pip install timm" in problem for problem in result["problems"])
    assert result["next"] == "pip install . in the source folder"
    text = doctor.show(result)
    assert "missing; for retraining: pip install timm" in text
    assert "Problem: torch is missing: pip install torch" in text


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("", ["portable"]),
        ("avx2", ["portable"]),
        ("fma avx2 sse", ["portable", "avx2"]),
        ("fma avx2 avx512f avx512bw avx512dq avx512vl", ["portable", "avx2", "avx512"]),
        ("avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16", ["portable", "avx2", "avx512", "avx512_bf16"]),
        (
            "avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_tile amx_bf16",
            ["portable", "avx2", "avx512", "avx512_bf16", "amx"],
        ),
    ],
)
def test_cpu_levels(flags: str, levels: list[str]) -> None:
    assert doctor.levels_found(frozenset(flags.split())) == levels


def test_experiment(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fake_run(config: Any, progress: Any) -> dict[str, Any]:
        progress("one filter is trained")
        return {"bench": config.bench, "losses": config.losses, "budget": config.budget}

    monkeypatch.setattr(table4, "run", fake_run)
    words = ["experiment", "table4", "--bench", "b.json", "--budget", "quick", "--losses", "[vpu,rank]", "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "bench": "b.json",
        "losses": ["vpu", "rank"],
        "budget": "quick",
        "next": "greedynas-fast train --filter.loss rank",
    }
    assert captured.err == "one filter is trained\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: name."),
        (["table4"], "missing: --bench."),
        (["table5", "--bench", "b"], "invalid choice: 'table5'"),
        (["table4", "--bench", "/no/such.json"], "/no/such.json cannot be read"),
        (["table4", "--bench", "b", "--budget", "fast"], "--budget must be one of quick, trial, paper, got 'fast'"),
        (["table4", "--bench", "b", "--losses", "[l1]"], "--losses must be a list, each one of"),
        (["table4", "--bench", "b", "--seed", "1"], "unknown option --seed. The nearest known one is --seeds."),
    ],
)
def test_bad_experiment(capsys: Capture, words: list[str], message: str) -> None:
    assert main(["experiment", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_printing() -> None:
    text = lines({"run": "r", "accuracy": 0.51234, "macs": 1234567, "found": True, "none": None, "next": "do it"})
    assert text.splitlines() == [
        "run       r",
        "accuracy  0.5123",
        "macs      1,234,567",
        "found     yes",
        "none      -",
        "",
        "Next: do it",
    ]
    assert table([("a", 1), ("bb", 22222)], ("name", "n")).splitlines() == [
        "name       n",
        "a          1",
        "bb    22,222",
    ]
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": [float("inf")], "d": (Path("p"),), 3: 2}
    assert json.loads(to_json(value)) == {"a": 0.5, "b": [0, 1], "c": [None], "d": ["p"], "3": 2}
