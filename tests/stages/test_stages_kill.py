"""Signals and SIGKILL at any moment of `run`, the same command again, and the same bytes as without."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages_runs import (
    EVALUATIONS,
    QUIET,
    RETRAIN_STEPS,
    RUN,
    STEPS,
    STEPS_PER_EPOCH,
    UPDATES,
    asked,
    differences,
    newest,
    outcome,
    rows,
    start_run,
    succeed,
)

from greedynas_fast.cli import main
from greedynas_fast.stages import search as search_module
from greedynas_fast.stages import train as train_module
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.run import run

TIMEOUT_S = 240.0
POLL_S = 0.002


def num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


class Victim:
    """One `run` process in `folder`, to be killed when something is to be seen there."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.run = folder / RUN
        self.process = start_run(config, folder)

    def working(self) -> bool:
        """Whether the process has got as far as owning the run folder."""
        lock = self.run / ".lock"
        return lock.exists() and lock.read_text().strip() == str(self.process.pid)

    def wait_for(self, moment: Callable[[], bool]) -> bool:
        """Wait until `moment` holds; False if the process has ended before."""
        limit = time.monotonic() + TIMEOUT_S
        while not (self.working() and moment()):
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < limit, "the moment never came"
            time.sleep(POLL_S)
        return True

    def kill_when(self, moment: Callable[[], bool], delay_s: float = 0.0) -> bool:
        """Kill the process `delay_s` after `moment` holds; False if it was done before."""
        if not self.wait_for(moment):
            return self.finished()
        time.sleep(delay_s)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        return self.process.returncode == -signal.SIGKILL

    def finished(self) -> bool:
        """Let the process end by itself; always False, for it was not killed."""
        _, said = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, said.decode()
        return False


def stopping(function: Callable[..., Any], call: int, number: signal.Signals) -> Callable[..., Any]:
    """`function`, which sends this process a signal the `call`-th time."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), number)
        return result

    return wrapped


# The last call of each is the end of its stage, where there is no next step to stop at.
@pytest.mark.parametrize(
    ("owner", "name", "call", "number"),
    [
        (Algorithm1, "train_step", 4, signal.SIGINT),
        (Algorithm1, "train_step", 7, signal.SIGTERM),
        (Algorithm1, "train_step", 12, signal.SIGINT),
        (train_module, "score_paths", 2, signal.SIGTERM),  # an update has begun
        (Algorithm1, "update_filter", 2, signal.SIGTERM),
        (Algorithm1, "update_filter", UPDATES, signal.SIGINT),
        (search_module._Scorer, "_score", 1, signal.SIGINT),
        (search_module._Search, "_row", 5, signal.SIGTERM),
        (search_module._Search, "_row", EVALUATIONS, signal.SIGINT),
        (Recipe, "step", 7, signal.SIGTERM),
        (Recipe, "step", RETRAIN_STEPS, signal.SIGINT),
    ],
)
def test_a_signal_stops_and_loses_nothing(
    config: Path,
    here: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    number: signal.Signals,
) -> None:
    words = ["run", "--run", str(RUN), "--config", str(config), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping(getattr(owner, name), call, number))
        assert main(words) == 128 + number
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "Stopped. Continue with: greedynas-fast run --run run"
    assert not (RUN / "result.json").exists()
    if name == "train_step":
        assert newest(RUN, "train")["step"] == call
    elif name == "score_paths":
        state = newest(RUN, "train")
        assert state["updates"] == call - 1
        assert state["step"] == [row["step"] for row in rows(finished / "metrics.jsonl") if row["kind"] == "update"][1]
    elif owner is Recipe:
        assert newest(RUN, "retrain")["step"] == call
    succeed(capsys, "run", "--run", RUN)
    assert differences(outcome(RUN), outcome(finished)) == []


@pytest.fixture(scope="module")
def slower(config: Path) -> Path:
    """The tiny configuration with updates of the filter that last long enough to be met, and a row for each step."""
    settings = yaml.safe_load(config.read_text())
    settings["filter"]["steps"] = 300
    settings["train"]["log_every_steps"] = settings["retrain"]["log_every_steps"] = 1
    file = config.with_name("slower.yaml")
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def undisturbed(slower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills, in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(RUN, asked(slower), QUIET)
    return folder / RUN


def test_the_exit_code_of_a_stopped_process(slower: Path, tmp_path: Path) -> None:
    """What a scheduler sees after SIGTERM: 143, and a checkpoint of the step that was being done."""
    victim = Victim(slower, tmp_path)
    victim.wait_for(lambda: num_lines(victim.run / "paths.txt") >= 2)
    victim.process.send_signal(signal.SIGTERM)
    out, said = victim.process.communicate(timeout=TIMEOUT_S)
    assert (victim.process.returncode, out) == (143, b"")
    assert said.decode().splitlines()[-1] == "Stopped. Continue with: greedynas-fast run --run run"
    assert newest(victim.run, "train")["step"] == num_lines(victim.run / "paths.txt")


def test_killed_at_chosen_moments(slower: Path, undisturbed: Path, tmp_path: Path) -> None:
    place = tmp_path / RUN

    def updating() -> bool:
        return num_lines(place / "paths.txt") == 2 * STEPS_PER_EPOCH and not (place / "filter/update-001.npz").exists()

    def searching() -> bool:
        return 0 < num_lines(place / "search.jsonl") < EVALUATIONS

    def retraining() -> bool:
        return '"stage": "retrain"' in (place / "metrics.jsonl").read_text()

    for moment in (updating, searching, retraining):
        assert Victim(slower, tmp_path).kill_when(moment, delay_s=0.01)
    assert not (place / "result.json").exists()
    Victim(slower, tmp_path).finished()
    assert differences(outcome(place), outcome(undisturbed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_ten_times(slower: Path, undisturbed: Path, tmp_path: Path, seed: int) -> None:
    place, kills, chance = tmp_path / RUN, 0, random.Random(seed)

    def progress(run: Path) -> int:
        return sum(num_lines(run / name) for name in ("paths.txt", "metrics.jsonl", "search.jsonl"))

    whole = progress(undisturbed)
    for target in sorted(chance.sample(range(whole - 2), 10)):
        victim = Victim(slower, tmp_path)
        kills += victim.kill_when(lambda target=target: progress(place) >= target, chance.random() * 0.2)
    assert kills >= 8
    # A process that was not killed has finished, and the rest of the kills met finished runs.
    Victim(slower, tmp_path).finished()
    assert differences(outcome(place), outcome(undisturbed)) == []


def test_killed_while_it_begins(config: Path, here: Path, finished: Path) -> None:
    """All that a process killed at its first moment may leave: a folder, a lock, half a configuration."""
    RUN.mkdir()
    (RUN / ".lock").write_text("1\n")
    (RUN / ".config.yaml.1.tmp").write_text("preset: sam")
    run(RUN, asked(config), QUIET)
    assert differences(outcome(RUN), outcome(finished)) == []
    assert not list(RUN.rglob("*.tmp"))


def test_killed_inside_a_write(config: Path, copy: Path, finished: Path) -> None:
    """Torn last lines and temporary files, as a kill inside a write leaves them."""
    for name in ("paths.txt", "search.jsonl", "metrics.jsonl"):
        with (copy / name).open("ab") as file:
            file.write(b'{"half')
    for folder in ("filter", "retrain", "checkpoints/train", "checkpoints/retrain"):
        (copy / folder / ".file.1.tmp").write_bytes(b"half")
    (copy / "checkpoints" / "train" / f"step-{STEPS:09d}.pt").unlink()
    (copy / "search.jsonl").write_bytes((copy / "search.jsonl").read_bytes()[:-200])
    shutil.rmtree(copy / "checkpoints" / "retrain")
    for name in ("best.json", "result.json", "retrain/config.json", "report.html"):
        (copy / name).unlink()
    run(RUN, asked(config), QUIET)
    assert differences(outcome(copy), outcome(finished)) == []
    assert not list(copy.rglob("*.tmp"))
