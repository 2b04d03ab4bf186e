"""Merged operations leave the supernet in the middle of a training: the same results, also over kills and old files."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_runs import QUIET, RUN, asked, differences, moves, newest, opened, outcome, plain, rows

import greedynas_fast
from greedynas_fast.errors import InputError
from greedynas_fast.stages import algorithm1
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.choice import inherited
from greedynas_fast.stages.run import run
from greedynas_fast.stages.train import build


def keep_all(bank: Any, allowed: Any, buffers: Any) -> tuple[Any, Any]:
    """Stands for `compact` and lets nothing leave."""
    return bank, buffers


def held(algorithm: Algorithm1) -> dict[str, dict[str, bytes]]:
    """What each buffer of the optimizer holds for each parameter."""
    found: dict[str, dict[str, bytes]] = {}
    for name, parameter in algorithm.net.named_parameters():
        start = (parameter.data_ptr() - algorithm.bank.data.data_ptr()) // 4
        for key, buffer in algorithm.optimizer.state_dict().items():
            found.setdefault(key, {})[name] = buffer[start : start + parameter.numel()].numpy().tobytes()
    return found


def keys_of(allowed: np.ndarray[Any, Any], names: Mapping[str, Any]) -> set[str]:
    """The names that do not belong to an operation outside the mask."""
    parts = {name: name.split(".") for name in names}
    return {name for name, p in parts.items() if p[0] != "layers" or allowed[int(p[1])][int(p[2])]}


@pytest.mark.parametrize("ema_decay", [None, 0.75])
def test_results_are_those_without_compaction(
    config: Path, here: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    ends, logs, sizes = [], [], []
    options: dict[str, object] = {"train__grad_clip": 0.1, "train__ema_decay": ema_decay}
    for name, compacts in (("with", True), ("without", False)):
        with monkeypatch.context() as patch, opened(config, Path(name), **options) as context:
            if not compacts:
                patch.setattr(algorithm1, "compact", keep_all)
            algorithm, log = build(context), []
            updates = [update for update in moves(context, algorithm, log) if update is not None]
            algorithm.bank.check()
            state = plain(algorithm.state_dict())
            del state["optimizer"]
            ends.append({**state, **held(algorithm)})
            logs.append(log)
            sizes.append([(len(u.merges), u.row["bank_mb_before"], u.row["bank_mb"]) for u in updates])
            allowed = algorithm.allowed
    compacted, full = ends
    buffers = ["momentum_buffer", *(["ema_buffer"] if ema_decay else [])]
    for part in ("supernet", *buffers):
        kept = keys_of(allowed, full[part])
        assert kept < full[part].keys()
        full[part] = {name: full[part][name] for name in kept}
    assert differences(compacted, full) == []
    assert logs[0] == logs[1]
    assert all((after < before) == (merged > 0) for merged, before, after in sizes[0])
    assert sum(merged for merged, *_ in sizes[0]) >= 2
    assert {before for _, before, _ in sizes[1]} == {sizes[0][0][1]}


def test_checkpoints_and_metrics_shrink(finished: Path) -> None:
    state = newest(finished, "train")
    names = keys_of(state["allowed"].numpy(), state["supernet"])
    assert names == state["supernet"].keys()
    stored = state["optimizer"]["momentum_buffer"].numel()
    assert state["supernet"]["stem.conv.weight"].untyped_storage().nbytes() == 4 * stored
    updates = [row for row in rows(finished / "metrics.jsonl") if row["kind"] == "update"]
    assert updates[-1]["bank_mb"] == pytest.approx(3 * 4 * stored / 1e6)
    assert all(row["bank_mb_before"] == last["bank_mb"] for last, row in itertools.pairwise(updates))


def test_a_merged_operation_is_refused(copy: Path, config: Path) -> None:
    with opened(config) as context:
        algorithm = build(context)
        algorithm.load_state_dict(newest(copy, "train"))
        path = np.argmax(algorithm.allowed, axis=1).astype(np.uint8)
        layer, op = np.argwhere(~algorithm.allowed)[0]
        path[layer] = op
        images = torch.zeros(2, 1, 14, 14)
        with pytest.raises(
            InputError, match=f"operation {op} of layer {layer}, .*, has been removed from the supernet"
        ):
            algorithm.net(images, path)
        with pytest.raises(InputError, match="which was removed"):
            inherited(context, path)
        # Nor does a training that has merged more go back to a state that has merged less.
        first = build(context).state_dict()
        with pytest.raises(InputError, match="operations that this training has merged"):
            algorithm.load_state_dict(first)


def test_a_checkpoint_from_before_compaction_goes_on(
    config: Path, here: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions without compaction wrote the parameters of merged operations as well."""

    def stop(self: Algorithm1, poll: Any) -> Any:
        if self.updates == 3:
            raise KeyboardInterrupt
        return original(self, poll)

    original = Algorithm1.update_filter
    with monkeypatch.context() as patch:
        patch.setattr(algorithm1, "compact", keep_all)
        patch.setattr(Algorithm1, "update_filter", stop)
        with pytest.raises(KeyboardInterrupt):
            run(RUN, asked(config), QUIET)
    state = newest(RUN, "train")
    assert keys_of(state["allowed"].numpy(), state["supernet"]) < state["supernet"].keys()
    run(RUN, asked(config), QUIET)
    different = differences(outcome(RUN), outcome(finished))
    # What the two say of memory before they were stopped.
    assert set(different) <= {"metrics", *(f"filter/update-{index:03d}.json" for index in range(3))}


KILL = """
import os, signal, sys
from greedynas_fast.cli import main
from greedynas_fast.stages import algorithm1, train

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def compact(bank, allowed, buffers):
    result = original(bank, allowed, buffers)
    if result[0] is not bank and sys.argv[1] == "compacted":
        kill()
    compacted.append(result[0] is not bank)
    return result

def save(training, *arguments):
    save_original(training, *arguments)
    if any(compacted) and sys.argv[1] == "saved":
        training.store.flush()
        kill()

compacted = []
original, algorithm1.compact = algorithm1.compact, compact
save_original, train._Training._save = train._Training._save, save
main(sys.argv[2:])
"""


@pytest.mark.parametrize("moment", ["compacted", "saved"])
def test_killed_around_a_compaction(config: Path, here: Path, finished: Path, moment: str) -> None:
    """SIGKILL when the operations have left memory but not the disk, and right after the first smaller checkpoint."""
    roots = [str(Path(greedynas_fast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [sys.executable, "-c", KILL, moment, "run", "--run", str(RUN), "--config", str(config), "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = newest(RUN, "train")
    merged = not state["allowed"].all()
    assert merged == (moment == "saved")
    run(RUN, asked(config), QUIET)
    assert differences(outcome(RUN), outcome(finished)) == []
