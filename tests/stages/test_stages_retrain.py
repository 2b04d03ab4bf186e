"""Retraining: models of timm, micro-batches, precision, resolutions, measurements on the way, and going on."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stages_runs import QUIET, RUN, asked, differences, failure, files, newest, opened, plain, rows, succeed
from torch import nn

from greedynas_fast import spaces
from greedynas_fast.config import ConfigSource, RetrainConfig
from greedynas_fast.data import DataConfig, Split, open_data
from greedynas_fast.errors import InputError, Terminated
from greedynas_fast.runtime import CheckpointStore
from greedynas_fast.stages import selection as selection_module
from greedynas_fast.stages.architecture import TimmModel
from greedynas_fast.stages.choice import chosen_network
from greedynas_fast.stages.evaluate import measure
from greedynas_fast.stages.model_files import load_model
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.retrain import retrain
from greedynas_fast.stages.selection import Selection

Capture = pytest.CaptureFixture[str]
MODEL = "test_efficientnet"  # timm's own toy: the blocks of EfficientNet, 0.4 M parameters
STEPS_PER_EPOCH, STEPS = 6, 12


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def killed(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """`function`, whose `call`-th call is the process's last."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **kwargs)
        if calls == call:
            raise Killed
        return result

    return wrapped


def outcome(run: Path) -> dict[str, Any]:
    """What equal retrainings have in common, bit by bit."""
    parts: dict[str, Any] = {name: digest for name, digest in files(run).items() if name.startswith("retrain/")}
    state = newest(run, "retrain")
    parts |= {key: plain(state[key]) for key in ("step", "last", "recipe", "selection")}
    return {**parts, "metrics": rows(run / "metrics.jsonl")}


def model_config(run: Path, part: str = "retrain") -> dict[str, Any]:
    config = json.loads((run / part / "config.json").read_text())
    assert isinstance(config, dict)
    return config


@pytest.fixture(scope="module")
def reference(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of timm that was retrained without a break, measured after each epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("reference") / RUN
    retrain(folder, timm_source(config), QUIET)
    return folder


def timm_source(config: Path, **overrides: object) -> ConfigSource:
    values = {"retrain__model": MODEL, "retrain__resolution": 28, "retrain__eval_every_epochs": 1}
    values |= {"evaluate__batch_size": 9}  # seven batches
    return asked(config, **{**values, **overrides})


@pytest.mark.parametrize("call", [5, STEPS_PER_EPOCH, STEPS])
def test_a_model_of_timm_goes_on_with_the_same_bytes(
    config: Path, here: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "step", killed(Recipe.step, call))
        with pytest.raises(Killed):
            retrain(RUN, timm_source(config), QUIET)
    assert not (RUN / "retrain" / "config.json").exists()
    result = retrain(RUN, ConfigSource(), QUIET)
    assert differences(outcome(RUN), outcome(reference)) == []
    assert result["text"] == f"{MODEL} (timm)"


def test_killed_while_the_best_is_written(
    config: Path, here: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(selection_module, "save_network", killed(selection_module.save_network, 1))
        with pytest.raises(Killed):
            retrain(RUN, timm_source(config), QUIET)
    (RUN / "retrain" / "best" / ".model.safetensors.1.tmp").write_bytes(b"half")
    retrain(RUN, ConfigSource(), QUIET)
    assert differences(outcome(RUN), outcome(reference)) == []


# Averaged and raw weights are measured after each epoch: calls 1 and 2, 3 and 4.
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_signal_while_it_is_measured(
    config: Path, here: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = []

    def batches(split: Split, *args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        for index, batch in enumerate(sequential(split, *args, **kwargs)):
            calls[-1] = index
            if (len(calls), index) == (call, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    sequential = Split.sequential
    with monkeypatch.context() as patch:
        patch.setattr(Split, "sequential", batches)
        with pytest.raises(Terminated):
            retrain(RUN, timm_source(config), QUIET)
    assert calls == [6] * (call - 1) + [1]
    assert newest(RUN, "retrain")["step"] == (STEPS_PER_EPOCH if call < 3 else STEPS)
    retrain(RUN, ConfigSource(), QUIET)
    assert differences(outcome(RUN), outcome(reference)) == []


def test_what_a_reference_leaves(config: Path, here: Path, reference: Path, capsys: Capture) -> None:
    network, stored = load_model(reference / "retrain")
    import timm

    built = timm.create_model(MODEL, num_classes=10, in_chans=1)
    built.load_state_dict(load_file(reference / "retrain" / "model.safetensors"))
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(images), built.eval()(images))
    assert (stored["architecture"], stored["library"], stored["source"]) == (MODEL, "timm", "timm")
    assert (stored["num_classes"], stored["input_size"]) == (10, [1, 28, 28])
    assert stored["params"] == sum(parameter.numel() for parameter in built.parameters())
    shutil.copytree(reference, RUN)
    measured = succeed(capsys, "evaluate", RUN)
    assert (measured["path"], measured["resolution"]) == (f"timm:{MODEL}", 28)
    assert (measured["top1"], measured["macs"]) == (stored["accuracy"], stored["macs"])
    exported = succeed(capsys, "export", RUN)
    assert [Path(file).name for file in exported["files"]] == ["model.safetensors", "config.json"]
    succeed(capsys, "report", RUN)
    assert f"timm:{MODEL}" in (RUN / "report.html").read_text()
    kept = load_model(RUN / "export")[0].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_a_model_of_timm_has_the_sizes_asked_for() -> None:
    network = TimmModel(MODEL, 7, 1, 28).build(seed=3, dropout=0.25)
    state = torch.get_rng_state()
    again = TimmModel(MODEL, 7, 1, 28).build(seed=3, dropout=0.25)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert network.drop_rate == 0.25
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("resnet50", 25_557_032, 4_089_184_256), ("resnext50_32x4d", 25_028_904, 4_230_479_872)],
)
def test_costs_of_timm_are_counted_as_those_of_paths(name: str, params: int, macs: int) -> None:
    assert TimmModel(name, 1000, 3, 224).cost() == (params, macs)


def test_a_path_and_a_hand_count_agree() -> None:
    """MobileNetV2's linear layer: 1280 x classes multiplications, and as many weights with its biases."""
    few, many = TimmModel("mobilenetv2_100", 10, 3, 64).cost(), TimmModel("mobilenetv2_100", 110, 3, 64).cost()
    assert many.macs - few.macs == 1280 * 100
    assert many.params - few.params == 1281 * 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "skresnet51"), "retrain.model: unknown model 'skresnet51': the nearest that timm "),
        (("--model", "skresnet51"), " has is 'skresnet50'."),
        (("--model", "resnet18", "--retrain.path", "000"), "retrain.path '000' and retrain.model 'resnet18' name two"),
        (("--model", "vit_tiny_patch16_224"), "timm's vit_tiny_patch16_224 does not classify images of 1 x 14 x 14"),
        (("--retrain.path", "000", "--retrain.resolution", "3"), "retrain.resolution: tiny reduces images 4 times"),
        (("--retrain.path", "000", "--retrain.micro_batch", "0"), "retrain.micro_batch must be at least 1, got 0"),
        (("--retrain.path", "000", "--retrain.precision", "fp8"), "must be one of float32, bf16, fp16, got 'fp8'"),
        (("--recipe", "large"), "must be one of mobile, resnet, small, got 'large'"),
    ],
)
def test_bad_networks(config: Path, here: Path, capsys: Capture, words: tuple[str, ...], message: str) -> None:
    assert message in failure(capsys, "retrain", RUN, "--config", config, *words)


def test_an_unknown_model_leaves_no_folder(config: Path, here: Path, capsys: Capture) -> None:
    failure(capsys, "retrain", RUN, "--config", config, "--model", "skresnet51")
    assert not RUN.exists()


def test_a_reference_has_a_run_folder_of_its_own(config: Path, trained: Path, capsys: Capture) -> None:
    before = files(trained)
    message = failure(capsys, "retrain", trained, "--model", MODEL)
    assert message.startswith("retrain.model: run holds a supernet; a reference is trained in a run folder of its own")
    assert files(trained) == before
    assert "`run` retrains what its search finds" in failure(capsys, "run", "--run", trained, "--retrain.model", MODEL)


def test_another_model_in_the_same_folder(reference: Path, here: Path, capsys: Capture) -> None:
    shutil.copytree(reference, RUN)
    assert "its stage has started" in failure(capsys, "retrain", RUN, "--model", "test_resnet")


def toy(**values: Any) -> Recipe:
    """A recipe over a network in which images do not mix, so that a batch may be cut anywhere."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    return Recipe(network, RetrainConfig(recipe="small", optimizer="sgd", lr=0.1, **values), 5)


def batch(size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)


def gradients(recipe: Recipe) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in recipe.network.parameters()]
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("micro_batch", [1, 7, 10, 20, 64])
def test_micro_batches_add_up_to_the_whole(micro_batch: int) -> None:
    whole, parts = toy(), toy(micro_batch=micro_batch)
    loss, correct, *_ = whole.gradient(*batch(), seed=0)
    part_loss, part_correct, *_ = parts.gradient(*batch(), seed=0)
    expected = nn.functional.cross_entropy(whole.network(batch()[0]), batch()[1], label_smoothing=0.1)
    assert torch.equal(loss, expected)
    assert part_correct == correct
    torch.testing.assert_close(part_loss, loss)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-4, atol=1e-6)
    assert len(gradients(parts)) == 4


def test_a_gradient_holds_nothing_of_the_one_before() -> None:
    recipe = toy(micro_batch=6)
    recipe.gradient(*batch(), seed=0)
    first = [gradient.clone() for gradient in gradients(recipe)]
    recipe.gradient(*batch(), seed=0)
    assert all(map(torch.equal, gradients(recipe), first))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_precision(precision: str, tolerance: float) -> None:
    exact, rough = toy(), toy(precision=precision)
    exact_loss = exact.gradient(*batch(), seed=0).loss
    loss = rough.gradient(*batch(), seed=0).loss
    assert loss.dtype == torch.float32
    assert loss != exact_loss
    torch.testing.assert_close(loss, exact_loss, rtol=tolerance, atol=0)
    scale = rough.state_dict()["scaler"].get("scale", 1.0)
    assert scale == (65536.0 if precision == "fp16" else 1.0)
    largest = max(float(gradient.abs().max()) for gradient in gradients(exact))
    for gradient, target in zip(gradients(rough), gradients(exact), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient / scale, target, rtol=0, atol=tolerance * largest)
    before = [parameter.detach().clone() for parameter in rough.network.parameters()]
    rough.step(0)
    assert not any(map(torch.equal, rough.network.parameters(), before))


def test_the_loss_scale_is_kept() -> None:
    """After an overflow, which changes no weight, the scale is halved; a recipe that goes on knows that."""
    recipe = toy(precision="fp16")
    recipe.gradient(*batch(), seed=0)
    gradients(recipe)[0][0] = float("inf")
    before = copy.deepcopy(recipe.network.state_dict())
    recipe.step(0)
    assert all(torch.equal(value, before[name]) for name, value in recipe.network.state_dict().items())
    assert recipe.state_dict()["scaler"]["scale"] == 32768.0
    other = toy(precision="fp16")
    other.load_state_dict(recipe.state_dict())
    for each in (recipe, other):
        each.gradient(*batch(), seed=0)
        each.step(1)
    assert plain(other.state_dict()) == plain(recipe.state_dict())


def test_resolutions(config: Path, here: Path, finished: Path, capsys: Capture) -> None:
    space = spaces.SearchSpace.from_dict(json.loads((finished / "space.json").read_text()))
    path = space.parse("012")
    words = ("--config", config, "--retrain.path", "012", "--retrain.epochs", "1", "--retrain.resolution", "28")
    result = succeed(capsys, "retrain", RUN, *words)
    assert result["macs"] == space.cost(path, 28).macs > space.cost(path).macs
    assert model_config(RUN)["input_size"] == [1, 28, 28]
    measured = {None: succeed(capsys, "evaluate", RUN)}
    for resolution in (28, 14):
        measured[resolution] = succeed(capsys, "evaluate", RUN, "--evaluate.resolution", str(resolution))
    assert measured[28] == measured[None]
    assert [measured[size]["resolution"] for size in (28, 14)] == [28, 14]
    assert measured[14]["macs"] == space.cost(path).macs
    assert measured[14]["loss"] != measured[28]["loss"]
    # A question of the moment does not replace the run's own figure, what the configuration says does.
    assert json.loads((RUN / "result.json").read_text())["resolution"] == 28
    stored = yaml.safe_load((RUN / "config.yaml").read_text())
    stored["evaluate"]["resolution"] = 14
    (RUN / "config.yaml").write_text(yaml.safe_dump(stored))
    assert succeed(capsys, "evaluate", RUN) == measured[14]
    assert json.loads((RUN / "result.json").read_text())["top1"] == measured[14]["top1"]
    assert "evaluate.resolution: tiny reduces" in failure(capsys, "evaluate", RUN, "--evaluate.resolution", "2")


def test_statistics_of_another_resolution(here: Path, config: Path, capsys: Capture) -> None:
    """Noise has less contrast when it is shrunk; computed statistics are those of training wherever it is measured."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for index in range(2 * count):
            file = here / "images" / part / f"class{index % 2}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (64, 64), dtype=np.uint8)).save(file)
    words = ("--config", config, "--data", "images", "--data.normalisation", "computed", "--data.train_limit", "null")
    words += ("--retrain.path", "012", "--retrain.batch_size", "12", "--space.num_classes", "2")
    words += ("--data.workers", "0", "--retrain.epochs", "1", "--retrain.resolution", "32", "--data.test_limit", "null")
    succeed(capsys, "retrain", RUN, *words)
    network, stored = load_model(RUN / "retrain")
    data = DataConfig(root="images", normalisation="computed", workers=0)
    at = {size: open_data(data, resolution=size, in_channels=1, seed=0) for size in (14, 32)}
    assert stored["std"] == list(at[32].std) != list(at[14].std)
    images, labels = at[14].test.tensors()
    pixels = images * at[14].std[0] + at[14].mean[0]
    with torch.inference_mode():
        logits = network((pixels - stored["mean"][0]) / stored["std"][0])
    measured = succeed(capsys, "evaluate", RUN, "--evaluate.resolution", "14")
    assert measured["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-4)


def test_checkpoints_from_before_there_were_measurements(
    config: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = asked(config, retrain__path="012")
    retrain(Path("whole"), source, QUIET)
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "step", killed(Recipe.step, 10))
        with pytest.raises(Killed):
            retrain(RUN, source, QUIET)
    store = CheckpointStore(RUN / "checkpoints" / "retrain")
    state = newest(RUN, "retrain")
    del state["selection"], state["recipe"]["scaler"]
    store.save(state["step"], state)
    retrain(RUN, ConfigSource(), QUIET)
    assert differences(outcome(RUN), outcome(Path("whole"))) == []


def test_the_best_and_the_last(config: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements by a script: averaged 0.5, 0.9, 0.7, raw a little less; the best is that of the second epoch."""
    script = iter([0.5, 0.4, 0.9, 0.8, 0.7, 0.6])
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(network: nn.Module, *args: Any) -> dict[str, Any]:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return {**measure(network, *args), "top1": next(script)}

    monkeypatch.setattr(selection_module, "measure", scripted)
    source = asked(config, retrain__path="012", retrain__epochs=3, retrain__eval_every_epochs=1, retrain__ema_decay=0.5)
    result = retrain(RUN, source, QUIET)
    assert (result["best_top1"], result["best_epoch"]) == (0.9, 2.0)
    found = [row for row in rows(RUN / "metrics.jsonl") if row["kind"] == "eval"]
    assert [(row["step"], row["epoch"], row["top1"], row["raw_top1"]) for row in found] == [
        (6, 1.0, 0.5, 0.4),
        (12, 2.0, 0.9, 0.8),
        (18, 3.0, 0.7, 0.6),
    ]
    assert all(row["images"] == 60 and 0 <= row["raw_top5"] <= 1 and row["loss"] != row["raw_loss"] for row in found)
    last, best = (load_file(RUN / folder / "model.safetensors") for folder in ("retrain", "retrain/best"))
    assert all(torch.equal(value, last[name]) for name, value in seen[4].items())
    assert all(torch.equal(value, best[name]) for name, value in seen[2].items())
    kept = model_config(RUN, "retrain/best")
    assert (kept["accuracy"], kept["step"], kept["chosen_on"]) == (0.9, 12, "test")
    assert "optimistic" in kept["chosen_by"]
    assert model_config(RUN)["accuracy"] == 0.7
    assert "chosen_on" not in model_config(RUN)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [12, 18])])
def test_when_it_is_measured(config: Path, here: Path, every: int, steps: list[int]) -> None:
    """The end is always measured, unless nothing is."""
    retrain(RUN, asked(config, retrain__path="012", retrain__epochs=3, retrain__eval_every_epochs=every), QUIET)
    found = [row for row in rows(RUN / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in found] == steps
    assert (RUN / "retrain" / "best").exists() == bool(steps)
    assert (model_config(RUN)["accuracy"] is None) == (not steps)


def test_measuring_changes_nothing(config: Path, here: Path, finished: Path) -> None:
    """The weights are those of a run that measures nothing, with an average and without."""
    for name, every in (("a", 0), ("b", 1)):
        retrain(Path(name), asked(config, retrain__path="012", retrain__eval_every_epochs=every), QUIET)
    first, second = (plain(newest(Path(name), "retrain")["recipe"]) for name in ("a", "b"))
    assert differences(first, second) == []


def test_no_test_part_to_measure_on(config: Path, here: Path) -> None:
    with opened(config, retrain__path="012", retrain__eval_every_epochs=1) as context:
        architecture, _ = chosen_network(context)
        recipe = Recipe(architecture.build(), context.config.retrain, STEPS_PER_EPOCH)
        data = dataclasses.replace(context.data, test=None)
        with pytest.raises(InputError, match=r"retrain.eval_every_epochs is 1, but the data has no test part"):
            Selection(context, architecture, recipe, data, {})
