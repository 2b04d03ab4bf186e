"""What goes wrong around a training that is well: an image file that vanishes, and a second process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages_runs import RUN, differences, failure, newest, outcome, plain, rows, start_run, succeed

from greedynas_fast.cli import main
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.recipe import Recipe

Capture = pytest.CaptureFixture[str]
CLASSES, FILES = 3, 40
OPTIONS = (
    *("--data", "images", "--data.check_files", "none", "--data-backend", "torch"),
    *("--train.batch_size", "15", "--train.epochs", "2", "--train.score_images", "12", "--train.sampler", "uniform"),
    *("--retrain.epochs", "1", "--retrain.batch_size", "12", "--retrain.path", "000"),
)
# Of 120 images 24 are the test part and 24 validation: 4 steps an epoch of training, 8 of retraining.
LAST = {"train": 8, "retrain": 8}


@pytest.fixture
def images(here: Path) -> Path:
    """A folder of small grey images."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(CLASSES * FILES):
        folder = here / "images" / f"class{index % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (14, 14), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return here / "images"


def words(stage: str, config: Path, run: Path) -> list[str | Path]:
    """The command of a stage on a run folder of its own."""
    return [stage, *(["--run"] if stage == "train" else []), run, "--config", config, *OPTIONS]


def vanishing(
    function: Callable[..., Any], call: int, folder: Path, gone: dict[Path, bytes], keep: int
) -> Callable[..., Any]:
    """`function`; the `call`-th time all files of one class but `keep` have gone, and `gone` holds what was in them."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for file in sorted((folder / "class1").iterdir())[:-keep]:
                gone[file] = file.read_bytes()
                file.unlink()
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(("stage", "owner", "name"), [("train", Algorithm1, "train_step"), ("retrain", Recipe, "step")])
def test_a_file_that_vanishes(
    config: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stage: str, owner: type, name: str
) -> None:
    succeed(capsys, *words(stage, config, Path("undisturbed")))
    gone: dict[Path, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, vanishing(getattr(owner, name), 3, images, gone, keep=1))
        message = failure(capsys, *words(stage, config, RUN))
    assert message.startswith("image file ")
    assert any(str(file.relative_to(images)) in message for file in gone)
    assert "it cannot be read (No such file or directory)" in message
    assert newest(RUN, stage)["step"] == 4, "what was read before it vanished is trained on, and not lost"
    for file, content in gone.items():
        file.write_bytes(content)
    succeed(capsys, *words(stage, config, RUN))
    assert newest(RUN, stage)["step"] == LAST[stage]
    assert differences(plain(newest(RUN, stage)), plain(newest(Path("undisturbed"), stage))) == []
    assert rows(RUN / "metrics.jsonl") == rows(Path("undisturbed") / "metrics.jsonl")


@pytest.mark.parametrize(("stage", "owner", "name"), [("train", Algorithm1, "train_step"), ("retrain", Recipe, "step")])
def test_goes_on_from_dalis_checkpoint(
    config: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stage: str, owner: type, name: str
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    calls, once = 0, getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise ZeroDivisionError
        return once(*args, **kwargs)

    every = ("--data-backend", "dali", f"--{stage}.checkpoint_every_steps", "5")
    succeed(capsys, *words(stage, config, Path("undisturbed")), *every)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(ZeroDivisionError):
            main([str(word) for word in (*words(stage, config, RUN), *every)])
    saved = newest(RUN, stage)
    assert saved["step"] == saved["data"]["step"] == 5
    capsys.readouterr()
    assert main([str(word) for word in (*words(stage, config, RUN), *every, "--json")]) == 0
    assert "does not go on" not in capsys.readouterr().err
    resumed, undisturbed = newest(RUN, stage), newest(Path("undisturbed"), stage)
    # DALI counts on from where it was: the batches of the training, and two without images at each start.
    assert resumed.pop("data")["iteration"] == undisturbed.pop("data")["iteration"] + 2
    assert differences(plain(resumed), plain(undisturbed)) == []
    assert rows(RUN / "metrics.jsonl") == rows(Path("undisturbed") / "metrics.jsonl")


def test_files_that_vanish_and_are_skipped(
    config: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: dict[Path, bytes] = {}
    skipping = ("--data.on_bad_file", "skip", "--data.max_bad_files", "100")
    monkeypatch.setattr(Algorithm1, "train_step", vanishing(Algorithm1.train_step, 3, images, gone, keep=20))
    assert main([str(word) for word in (*words("train", config, RUN), *skipping, "--json")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Skipped: ")]
    assert len(said) > 1
    assert len(said) == len(set(said))
    assert all("it cannot be read (No such file or directory)" in line for line in said)
    assert newest(RUN, "train")["step"] == LAST["train"]


def test_what_the_message_advises_can_be_done(
    config: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the training has begun, files may be skipped from now on."""
    gone: dict[Path, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(Algorithm1, "train_step", vanishing(Algorithm1.train_step, 3, images, gone, keep=20))
        assert "or set data.on_bad_file to skip" in failure(capsys, *words("train", config, RUN))
    kept = newest(RUN, "train")["step"]
    assert kept >= 3
    skipping = ("--data.on_bad_file", "skip", "--data.max_bad_files", "100")
    assert "its stage has started" in failure(capsys, "train", "--run", RUN, *skipping, "--data.test_size", "30")
    succeed(capsys, "train", "--run", RUN, *skipping)
    assert newest(RUN, "train")["step"] == LAST["train"]


def test_two_processes_on_one_run_folder(config: Path, here: Path, finished: Path) -> None:
    """Both begin at the same moment: one does the run, the other names it and changes nothing."""
    processes = [start_run(config, here) for _ in range(2)]
    ends = [process.communicate(timeout=240) for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2]
    winner, loser = (processes[codes.index(code)] for code in (0, 2))
    said = ends[processes.index(loser)][1].decode().splitlines()
    assert said[-1] == f"error: run folder run is in use by process {winner.pid}."
    assert isinstance(winner, subprocess.Popen)
    assert differences(outcome(RUN), outcome(finished)) == []
