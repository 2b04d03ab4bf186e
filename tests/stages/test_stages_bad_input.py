"""What can go wrong: exit code 2, one or two plain sentences that name it, and a run folder as good as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stages_runs import (
    CONFIG,
    GO_ON,
    QUIET,
    RUN,
    SPACE,
    STEPS,
    STEPS_PER_EPOCH,
    asked,
    differences,
    failure,
    files,
    newest,
    outcome,
    succeed,
)

from greedynas_fast.config import load_config
from greedynas_fast.nn import Head
from greedynas_fast.runtime import RunFolder
from greedynas_fast.stages import algorithm1 as algorithm1_module
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.run import run
from greedynas_fast.stages.train import train
from greedynas_fast.supernet import Network

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def new_run(config: Path, here: Path) -> Path:
    """A run folder with a configuration and nothing else."""
    with RunFolder.create(RUN) as folder:
        folder.write_config(load_config(config_file=config).to_dict())
    return RUN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown configuration key 'train.epoch'. The nearest known key is 'train.epochs'."),
        ("trian: {}", "unknown configuration key 'trian'. The nearest known key is 'train'."),
        ("train: {epochs: 0}", "train.epochs must be at least 1, got 0."),
        ("train: {lr: fast}", "train.lr must be a number, got 'fast'."),
        ("train: {sampler: fairest}", "train.sampler must be one of filter, uniform, fair, got 'fairest'."),
        ("search: {population: 1}", "search.population must be at least 2, got 1."),
        ("filter: {loss: magic}", "filter.loss must be one of vpu, nnpu, upu, pn, rank, got 'magic'"),
        ("retrain: {recipe: huge}", "retrain.recipe must be one of mobile, resnet, small, got 'huge'."),
        ("space: {name: mb-sx}", "mb-se"),
        ("train: [1, 2]", "train must hold keys and values"),
        ("train: {epochs: 1", "is not YAML"),
    ],
)
def test_configuration(here: Path, capsys: Capture, text: str, message: str) -> None:
    Path("bad.yaml").write_text(text)
    assert message in failure(capsys, "train", "--run", RUN, "--config", "bad.yaml")
    assert not (RUN / "checkpoints").exists()
    assert not (RUN / "space.json").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search", "no supernet is trained here yet. First: greedynas-fast train --run run."),
        ("retrain", "no path was searched here yet. First: greedynas-fast search run, or give a path."),
        ("evaluate", "no network is retrained here yet. First: greedynas-fast retrain run, or measure a path"),
        ("export", "no retrained network yet. To make it: greedynas-fast retrain run"),
        ("report", "has not started yet. Start it: greedynas-fast train --run run"),
    ],
)
def test_a_command_before_its_time(new_run: Path, capsys: Capture, command: str, message: str) -> None:
    before = files(new_run)
    assert message in failure(capsys, command, new_run)
    assert files(new_run).keys() - {"space.json"} == before.keys()
    assert files(new_run)["config.yaml"] == before["config.yaml"]


def test_search_of_a_half_trained_supernet(copy: Path, capsys: Capture) -> None:
    (copy / "checkpoints" / "train" / f"step-{STEPS:09d}.pt").unlink()
    assert f"the supernet is at step {STEPS - 4} of {STEPS}. First: greedynas-fast train --run run." in failure(
        capsys, "search", copy
    )


def test_a_mac_limit_that_no_path_meets(trained: Path, capsys: Capture) -> None:
    before = files(trained)
    message = failure(capsys, "search", trained, "--search.max_macs", "10")
    assert "max_macs" in message
    assert "10" in message
    assert files(trained) == before
    # The refused limit does not stay.
    assert succeed(capsys, "search", trained)["evaluations"] == CONFIG["search"]["evaluations"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("00", "expected 3 digits"),
        ("0000", "expected 3 digits"),
        ("MB3_K3 MB3_K3", "expected 3 operations, got 2"),
        ("MB3_K3 MB9_K9 ID", "MB9_K9"),
        ("009", "layer 2"),
        ("", "empty text"),
        ("@missing.txt", "cannot read the path file missing.txt"),
        ("GreedyNAS-Z", "expected 3 operations"),
        ("GreedyNAS-A", "expected 3 operations, got 21"),
    ],
)
def test_a_bad_path_given_by_hand(trained: Path, capsys: Capture, path: str, message: str) -> None:
    before = files(trained)
    for command in ("retrain", "evaluate", "export"):
        assert message in failure(capsys, command, trained, f"--{command}.path", path)
    # Without the bad path it is again the search's best that is wanted.
    assert "no path was searched here yet" in failure(capsys, "retrain", trained)
    assert files(trained) == before


def test_a_removed_operation_given_by_hand(trained: Path, capsys: Capture) -> None:
    allowed = newest(trained, "train")["allowed"].numpy()
    layer, op = map(int, np.argwhere(~allowed)[0])
    path = [int(np.flatnonzero(row)[0]) for row in allowed]
    path[layer] = op
    before = files(trained)
    for command in ("evaluate", "export"):
        message = failure(capsys, command, trained, f"--{command}.path", "".join(map(str, path)))
        assert SPACE["operations"][op] in message
        assert f"layer {layer}" in message
    assert files(trained) == before


def test_a_learning_rate_that_explodes(config: Path, here: Path, capsys: Capture) -> None:
    words = ("train", "--run", RUN, "--config", config, "--train.lr", "1e30", "--train.checkpoint_every_steps", "1")
    message = failure(capsys, *words)
    assert "train: the loss is nan at step " in message
    assert "a smaller train.lr or train.grad_clip may help" in message
    named = Path(message.rsplit("The last good checkpoint is ", 1)[1].rstrip("."))
    assert named.is_file()
    state = newest(RUN, "train")
    assert named.name == f"step-{state['step']:09d}.pt"
    assert all(torch.isfinite(value).all() for value in state["supernet"].values())
    # The folder can still be read; what it says is the same again.
    assert failure(capsys, "train", "--run", RUN) == message
    succeed(capsys, "report", RUN)


def nan_at(step: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first result, a loss, is NaN the `step`-th time."""
    calls = 0

    def loss(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        value, *others = original(*args, **kwargs)
        return (value * float("nan") if calls == step else value, *others)

    return loss


@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_a_loss_that_is_not_finite(
    config: Path,
    here: Path,
    finished: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    with monkeypatch.context() as patch:
        network: type[Head | Network] = Head if stage == "train" else Network
        patch.setattr(network, "loss", nan_at(7, network.loss))
        message = failure(capsys, "run", "--run", RUN, "--config", config)
    # Training has a checkpoint after the update at step 6, retraining at step 4.
    kept = f"run/checkpoints/{stage}/step-{6 if stage == 'train' else 4:09d}.pt"
    assert f"{stage}: the loss is nan at step 7" in message
    assert f"a smaller {stage}.lr" in message
    assert message.endswith(f"The last good checkpoint is {kept}.")
    assert Path(kept).is_file()
    succeed(capsys, "run", "--run", RUN)
    assert differences(outcome(RUN), outcome(finished)) == []


@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_weights_that_are_not_finite_are_not_kept(
    config: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The loss does not show it: the spoiled operation is not sampled again, or the spoiled step is the last one."""
    if stage == "train":
        original = algorithm1_module.Algorithm1.train_step

        def spoil(self: algorithm1_module.Algorithm1, *batch: torch.Tensor, **named: Any) -> Any:
            result = original(self, *batch, **named)
            if self.step == 8:
                self.bank.data[-1] = float("inf")
            return result

        monkeypatch.setattr(algorithm1_module.Algorithm1, "train_step", spoil)
    else:
        finish = Recipe.step

        def spoil_last(self: Recipe, step: int) -> None:
            finish(self, step)
            if step == 7:
                next(self.network.parameters()).data[0] = float("nan")

        monkeypatch.setattr(Recipe, "step", spoil_last)
    message = failure(capsys, "run", "--run", RUN, "--config", config)
    assert message.startswith(f"{stage}: weights are not finite after step 8; ")
    kept = Path(message.rsplit("The last good checkpoint is ", 1)[1].rstrip("."))
    assert kept == RUN / "checkpoints" / stage / f"step-{6 if stage == 'train' else 4:09d}.pt"
    assert newest(RUN, stage)["step"] == int(kept.stem.split("-")[1])


def test_a_loss_that_is_not_finite_at_once(
    config: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Head, "loss", nan_at(1, Head.loss))
    assert failure(capsys, "train", "--run", RUN, "--config", config).endswith("There is no checkpoint yet.")


def test_a_batch_larger_than_the_data(config: Path, here: Path, finished: Path, capsys: Capture) -> None:
    message = failure(capsys, "train", "--run", RUN, "--config", config, "--train.batch_size", "181")
    assert message == "train.batch_size: 181 is larger than the training part of the data, 180 images."
    # Nothing has begun, so another size may be given.
    succeed(capsys, "train", "--run", RUN, "--train.batch_size", "30")
    assert (RUN / "paths.txt").read_bytes() == (finished / "paths.txt").read_bytes()


def test_a_retraining_batch_larger_than_the_data(trained: Path, capsys: Capture) -> None:
    before = files(trained)
    words = ("retrain", trained, "--retrain.path", "000", "--retrain.batch_size", "241")
    message = failure(capsys, *words)
    assert message == "retrain.batch_size: 241 is larger than the training set of 240 images."
    assert files(trained) == before


def test_fewer_classes_than_the_data_has(config: Path, here: Path, capsys: Capture) -> None:
    message = failure(capsys, "train", "--run", RUN, "--config", config, "--space.num_classes", "5")
    assert message.startswith("space.num_classes: the head has 5 classes, the images have 10")
    assert not (RUN / "space.json").exists()
    document = succeed(capsys, "train", "--run", RUN, "--space.num_classes", "12", "--train.epochs", "1")
    assert document["steps"] == STEPS_PER_EPOCH


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two classes of 12 images each."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("one class", "class"),
        ("truncated", "5.png"),
        ("no image", "5.png"),
        ("no folder", "no"),
        ("empty", "image"),
    ],
)
def test_bad_images(config: Path, here: Path, images: Path, capsys: Capture, spoil: str, message: str) -> None:
    file = images / "dog" / "5.png"
    if spoil == "one class":
        for entry in (images / "dog").iterdir():
            entry.unlink()
        (images / "dog").rmdir()
    elif spoil == "truncated":
        file.write_bytes(file.read_bytes()[:60])
    elif spoil == "no image":
        file.write_text("not an image")
    elif spoil == "empty":
        for entry in images.rglob("*.png"):
            entry.unlink()
    root = images / "elsewhere" if spoil == "no folder" else images
    limits = ("--data.train_limit", "null", "--data.test_limit", "null")
    words = ("run", "--run", RUN, "--config", config, "--data", root, *limits)
    assert message in failure(capsys, *words)
    assert not (RUN / "checkpoints").exists()
    assert not (RUN / "space.json").exists()


def test_no_test_part(config: Path, here: Path, images: Path, capsys: Capture) -> None:
    """Only the last figure needs one; everything before it is kept."""
    (images.parent / "data").mkdir()
    images.rename(images.parent / "data" / "train")
    words = ["run", "--run", RUN, "--config", config, "--data", images.parent / "data"]
    words += ["--data.train_limit", "null", "--data.test_limit", "null", "--train.batch_size", "6"]
    words += ["--retrain.batch_size", "6", "--retrain.epochs", "1", "--search.evaluations", "2"]
    assert "the data has no test part; --evaluate.split validation" in failure(capsys, *words)
    assert (RUN / "retrain" / "model.safetensors").is_file()
    assert succeed(capsys, "evaluate", RUN, "--evaluate.split", "validation")["images"] == 6


def test_no_such_run(here: Path, capsys: Capture) -> None:
    for command in ("search", "retrain", "evaluate", "export", "report"):
        assert failure(capsys, command, "nowhere") == "run folder nowhere: no such folder."
    assert list(here.iterdir()) == []


def test_a_folder_with_other_files(config: Path, here: Path, capsys: Capture) -> None:
    RUN.mkdir()
    (RUN / "thesis.tex").write_text("years of work")
    assert "expected an empty folder" in failure(capsys, "run", "--run", RUN, "--config", config)
    assert [entry.name for entry in RUN.iterdir()] == ["thesis.tex"]


def test_a_bug_is_no_bad_input(config: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the user can mend ends with a sentence."""

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(algorithm1_module.Algorithm1, "train_step", bug)
        with pytest.raises(RuntimeError, match="a bug"):
            train(RUN, asked(config), QUIET)
    assert run(RUN, GO_ON, QUIET)["images"] == 60
