"""Under torchrun: a worker killed at any moment, the others restarted with it, and the same bytes as without."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ranks import free_port
from stages_runs import RUN, STEPS, differences, outcome

import greedynas_fast
from greedynas_fast.runtime.distributed import TIMEOUT_VARIABLE

KILLS = 5
LIMIT_S = 600.0


def start(config: Path, folder: Path, *machines: str) -> subprocess.Popen[str]:
    """`torchrun -m greedynas_fast run` in `folder`: two ranks on one machine, or what torchrun's options say."""
    folder.mkdir(exist_ok=True)
    root = str(Path(greedynas_fast.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", TIMEOUT_VARIABLE: "60"}
    words = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval", "0.1"]
    words += machines or ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(3 * KILLS)]
    words += ["-m", "greedynas_fast", "run"]
    words += ["--run-dir", str(RUN), "--config", str(config), "--json"]
    # What all ranks say goes to a file: a pipe that nobody reads yet would fill, and stop them.
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=said, text=True)


def finish(process: subprocess.Popen[str], folder: Path) -> dict[str, object]:
    """The one JSON document that all ranks together print."""
    printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, (folder / "said.txt").read_text()[-3000:]
    document = json.loads(printed)
    assert isinstance(document, dict)
    return document


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The process numbers of the ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"greedynas_fast" in Path(f"/proc/{child}/cmdline").read_bytes()]


def num_lines(run: Path) -> int:
    """How far a run is, in lines of its logs."""
    logs = [run / name for name in ("paths.txt", "metrics.jsonl", "search.jsonl")]
    return sum(log.read_bytes().count(b"\n") for log in logs if log.exists())


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    document = finish(start(config, folder), folder)
    assert document["run"] == str(RUN)
    return folder / RUN


@pytest.mark.slow
def test_killed_workers_are_restarted(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    whole = num_lines(undisturbed)
    moments = sorted(chance.sample(range(1, whole - 4), KILLS))
    process = start(config, tmp_path / "killed")
    killed = []
    for moment in moments:
        limit = time.monotonic() + LIMIT_S
        # After a restart the logs are cut back to the checkpoint, so a moment may come twice: any is as good.
        while num_lines(tmp_path / "killed" / RUN) < moment and process.poll() is None:
            assert time.monotonic() < limit, "the moment never came"
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        alive = workers(process) if process.poll() is None else []
        if len(alive) == 2:
            victim = chance.choice(alive)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
            while victim in workers(process) and process.poll() is None:
                time.sleep(0.005)
    finish(process, tmp_path / "killed")
    assert len(killed) >= KILLS - 1
    assert differences(outcome(tmp_path / "killed" / RUN), outcome(undisturbed)) == []


@pytest.mark.slow
def test_pre_emption_of_the_whole_job(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(config, folder)
    while num_lines(folder / RUN) < STEPS // 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)  # to torchrun, which hands it on
    process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    steps = len((folder / RUN / "paths.txt").read_text().splitlines())
    assert (folder / RUN / f"checkpoints/train/step-{steps:09d}.pt").exists(), "the last step is saved"
    finish(start(config, folder), folder)
    assert differences(outcome(folder / RUN), outcome(undisturbed)) == []


def restarts_counted(worker: int) -> list[int]:
    """How many of its restarts torchrun has spent, as it told this worker; nothing where it is just being started."""
    told = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    return [int(line.split(b"=")[1]) for line in told if line.startswith(b"TORCHELASTIC_RESTART_COUNT=")]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed_on_one_of_two_machines(config: Path, undisturbed: Path, tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "killed"
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "two", "--local-addr", "127.0.0.1"]
    machines = [start(config, folder, *options) for _ in range(2)]
    while num_lines(folder / RUN) < STEPS // 2:
        assert all(machine.poll() is None for machine in machines)
        time.sleep(0.005)
    first = [one for machine in machines for one in workers(machine)]
    assert len(first) == 2
    # Stopped, as if it worked for long on its own, the other rank does not notice. So it does not fail: its machine
    # restarts it for the victim's sake, which does not count as a restart there.
    os.kill(first[1 - victim], signal.SIGSTOP)
    os.kill(first[victim], signal.SIGKILL)
    time.sleep(2.0)
    os.kill(first[1 - victim], signal.SIGCONT)
    starts: list[dict[int, int]] = [{}, {}]
    limit = time.monotonic() + LIMIT_S
    while any(machine.poll() is None for machine in machines):
        assert time.monotonic() < limit, "it does not end"
        for machine, counts in zip(machines, starts, strict=True):
            with suppress(FileNotFoundError, ProcessLookupError):  # gone while it is looked at
                counts.update((one, count) for one in workers(machine) for count in restarts_counted(one))
        time.sleep(0.02)
    for counts in starts:
        for one in first:
            counts.pop(one, None)
    printed = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], (folder / "said.txt").read_text()[-3000:]
    assert sorted(map(bool, printed)) == [False, True], "rank 0 alone prints"
    # Each was started once more, and only the victim's machine has paid for it.
    assert [list(counts.values()) for counts in starts] == ([[1], [0]] if victim == 0 else [[0], [1]])
    assert differences(outcome(folder / RUN), outcome(undisturbed)) == []
