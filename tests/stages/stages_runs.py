"""A run that takes a second or two: its inputs, the ways to start it, and what two runs are compared by."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import greedynas_fast
from greedynas_fast.cli import main
from greedynas_fast.config import ConfigSource
from greedynas_fast.filter import TrainedFilter
from greedynas_fast.runtime import CheckpointStore, seed_for
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.filter_update import FilterUpdate

SPACE = {
    "name": "tiny",
    "in_channels": 1,
    "resolution": 14,
    "num_classes": 10,
    "stem": {"channels": 4, "kernel": 3, "stride": 2, "activation": "relu"},
    "operations": ["MB3_K3", "MB3_K5", "MB6_K3", "ID"],
    "stages": [{"channels": 6, "layers": 1, "stride": 1}, {"channels": 8, "layers": 2, "stride": 2}],
    "head": {"channels": 16, "activation": "relu", "dropout": 0.1},
}
EPOCHS, STEPS_PER_EPOCH, STEPS, UPDATES, EVALUATIONS, RETRAIN_STEPS = 4, 6, 24, 4, 12, 12
# The rank loss without held-out paths: with 24 scored paths no AUROC could tell a good filter from a collapsed one.
# Large initial embeddings, so that few operations merge and the filter has something left to reject.
CONFIG: dict[str, Any] = {
    "threads": 1,
    "device": "cpu",
    "data": {"train_limit": 240, "test_limit": 60},
    "train": {
        "epochs": EPOCHS,
        "batch_size": 30,
        "lr": 0.1,
        "warmup_epochs": 1,
        "update_every_epochs": 1,
        "q_end": 0.8,
        "q_epochs": 3,
        "score_paths": 24,
        "score_images": 60,
        "agreement_paths": 64,
        "merge_threshold": 0.3,
        "stop_on": "never",
        "checkpoint_every_steps": 4,
        "log_every_steps": 3,
    },
    "filter": {"loss": "rank", "holdout": 0.0, "steps": 12, "batch_size": 32, "hidden": 16, "embedding_std": 1.0},
    "search": {"evaluations": EVALUATIONS, "population": 6, "max_rounds": 10},
    "search_stage": {"calibration_images": 60},
    "retrain": {"epochs": 2, "batch_size": 40, "warmup_epochs": 1, "checkpoint_every_steps": 4, "log_every_steps": 3},
}
# What a run takes its time for, and what is said of the moment; never equal in two runs.
TIMINGS = ("images_per_s", "data_wait", "elapsed_s")
# Relative, so that files which name the run folder are equal wherever the run was made.
RUN = Path("run")
QUIET = Reporter(quiet=True)
GO_ON = ConfigSource()


def write_inputs(folder: Path) -> Path:
    """The space and the configuration as files; returns the configuration's."""
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    config = {**CONFIG, "space": {"name": str(folder / "space.yaml")}}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def asked(config: Path, **overrides: object) -> ConfigSource:
    """The tiny configuration with some values changed; `__` stands for the dot."""
    return ConfigSource(file=config, overrides={key.replace("__", "."): value for key, value in overrides.items()})


@contextmanager
def opened(config: Path, run: Path = RUN, **overrides: object) -> Iterator[StageContext]:
    """A new run, owned."""
    with open_run(run, asked(config, **overrides), QUIET, create=True) as context:
        yield context


def moves(context: StageContext, algorithm: Algorithm1, log: list[str]) -> Iterator[FilterUpdate | None]:
    """Drive Algorithm 1 to its end as the stage does; one item a move, None for a training step."""
    config = context.config.train
    while algorithm.stop_reason is None or algorithm.update_due:
        if algorithm.update_due:
            yield algorithm.update_filter()
            continue
        (batch,) = context.data.train.batches(
            config.batch_size,
            start_step=algorithm.step,
            num_steps=1,
            seed=seed_for(context.config.seed, "batches") >> 1,
            augment=config.augment,
        )
        log.extend(context.space.format(path, "digits") for path in algorithm.next_paths())
        algorithm.train_step(*batch)
        yield None


def plain(state: Any) -> Any:
    """A state with every tensor as its dtype, shape and bytes, so that `==` compares bit by bit."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    return state


def newest(run: Path, stage: str) -> dict[str, Any]:
    """The newest checkpoint of a stage."""
    found = CheckpointStore(run / "checkpoints" / stage).load_latest()
    assert found is not None
    return found[1]


def final_filter(run: Path) -> TrainedFilter:
    """The filter at the end of a training."""
    return TrainedFilter.from_state_dict(newest(run, "train")["filter"])


def files(run: Path) -> dict[str, str]:
    """Hash of each file of a run, without what a second command may change (lock, command log, tensorboard)."""
    found = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if file.is_file() and name not in (".lock", "commands.txt") and not name.startswith("events/"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file without times."""
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read]


def outcome(run: Path) -> dict[str, Any]:
    """Everything that two equal runs have in common, bit by bit; times, locks and damaged files are left out."""
    result: dict[str, Any] = {
        name: digest
        for name, digest in files(run).items()
        if not name.startswith("checkpoints/") and name not in ("metrics.jsonl", "report.html", "config.yaml")
    }
    for stage in ("train", "retrain"):
        result[stage] = plain({key: value for key, value in newest(run, stage).items() if key != "window"})
    metrics = rows(run / "metrics.jsonl")
    result["metrics"] = sorted(metrics, key=lambda row: (row["stage"], row["kind"], row["step"]))
    return result


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the parts of two outcomes that are not equal; a short message where `==` would print megabytes."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def failure(capsys: Any, *words: str | Path, code: int = 2) -> str:
    """The message of a command that must fail: one line of plain sentences after whatever was reported before."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert captured.err.count("error: ") == 1
    assert len(last) < 500
    return last.removeprefix("error: ")


def succeed(capsys: Any, *words: str | Path) -> dict[str, Any]:
    """The one JSON document of a command that must succeed."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def start_run(config: Path, folder: Path) -> subprocess.Popen[bytes]:
    """`greedynas-fast run` as a process of its own in `folder`."""
    root = str(Path(greedynas_fast.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-m", "greedynas_fast", "run", "--run", str(RUN), "--config", str(config), "--json"]
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
