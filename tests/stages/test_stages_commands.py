"""The commands on a run folder: what each leaves there and says, alone, together, twice, and with other seeds."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stages_runs import (
    CONFIG,
    EVALUATIONS,
    QUIET,
    RETRAIN_STEPS,
    RUN,
    SPACE,
    STEPS,
    STEPS_PER_EPOCH,
    UPDATES,
    asked,
    differences,
    failure,
    files,
    final_filter,
    newest,
    outcome,
    rows,
    succeed,
)

from greedynas_fast import spaces
from greedynas_fast.cli import main
from greedynas_fast.config import ConfigSource, RunConfig
from greedynas_fast.data import DataConfig, open_data
from greedynas_fast.stages import search as search_module
from greedynas_fast.stages import train as train_module
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.export import load_model
from greedynas_fast.stages.run import run
from greedynas_fast.stages.search import search
from greedynas_fast.stages.train import train

Capture = pytest.CaptureFixture[str]
CONTINUING = ("search", "retrain", "evaluate", "export", "report")


@pytest.fixture
def space(finished: Path) -> spaces.SearchSpace:
    return spaces.SearchSpace.from_dict(json.loads((finished / "space.json").read_text()))


def test_the_run_folder(finished: Path) -> None:
    expected = {"config.yaml", "space.json", "metrics.jsonl", "paths.txt", "held_out.txt", "search.jsonl"}
    expected |= {"best.json", "result.json"}
    expected |= {"report.html", "retrain/model.safetensors", "retrain/config.json"}
    expected |= {"export/model.safetensors", "export/config.json"}
    expected |= {f"filter/update-{index:03d}.{kind}" for index in range(UPDATES) for kind in ("npz", "json")}
    expected |= {f"checkpoints/train/step-{step:09d}.pt" for step in (STEPS - 4, STEPS)}
    expected |= {f"checkpoints/retrain/step-{step:09d}.pt" for step in (RETRAIN_STEPS - 4, RETRAIN_STEPS)}
    assert set(files(finished)) == expected
    for stage in ("train", "search", "retrain", "evaluate"):
        assert list((finished / "events" / stage).glob("events.out.tfevents.*"))
    stored = RunConfig.from_yaml((finished / "config.yaml").read_text())
    assert stored.threads == 1
    assert stored.train.score_paths == CONFIG["train"]["score_paths"]
    assert stored.to_dict() == yaml.safe_load((finished / "config.yaml").read_text())


def test_metrics(finished: Path) -> None:
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in metrics:
        by_kind.setdefault((row["stage"], row["kind"]), []).append(row)
    steps = by_kind["train", "step"]
    assert [row["step"] for row in steps] == list(range(3, STEPS + 1, 3))
    assert all(row["loss"] > 0 and 0 <= row["accuracy"] <= 1 and row["images_per_s"] > 0 for row in steps)
    assert all(0 <= row["data_wait"] < 1 for row in steps)
    assert all((row["q"] is None) == (row["step"] <= STEPS_PER_EPOCH) for row in steps)
    assert [row["step"] for row in by_kind["train", "update"]] == [6, 12, 18, 24]
    assert [row["q"] for row in by_kind["train", "update"]] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert [row["step"] for row in by_kind["retrain", "step"]] == [3, 6, 9, 12]
    for stage in ("train", "search", "retrain", "evaluate"):
        assert len(by_kind[stage, "final"]) == 1
    for index, row in enumerate(by_kind["train", "update"]):
        assert json.loads((finished / "filter" / f"update-{index:03d}.json").read_text()) == row
        arrays = np.load(finished / "filter" / f"update-{index:03d}.npz")
        assert (arrays["similarity"].dtype, arrays["similarity"].shape) == (np.float32, (3, 4, 4))
        assert (arrays["allowed"].dtype, arrays["allowed"].shape) == (np.bool_, (3, 4))


def test_the_path_log_counts_steps(finished: Path, space: spaces.SearchSpace) -> None:
    lines = (finished / "paths.txt").read_text().splitlines()
    assert len(lines) == STEPS
    for line in lines:
        space.check(space.parse(line))


def test_the_time_of_scoring_is_told(
    config: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []

    def slower(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.1)
            slept.append(0.1)
            return original(*args, **kwargs)

        return call

    def told(what: str) -> float:
        (line,) = [line for line in lines if line.startswith(f"{what} took ")]
        found = re.fullmatch(rf"{what} took (\d+\.\d\d) s, \d+\.\d\d% of the time", line)
        assert found, line
        return float(found[1])

    for module, stage in ((train_module, train), (search_module, search)):
        monkeypatch.setattr(module, "score_paths", slower(module.score_paths))
        slept.clear()
        began = time.monotonic()
        stage(RUN, asked(config), QUIET)
        elapsed = time.monotonic() - began
        lines = capsys.readouterr().err.splitlines()
        assert len(slept) >= 2
        assert sum(slept) - 0.01 < told("scoring paths") < elapsed
        rest = told("sampling and filter inference" if stage is train else "making and filtering proposals")
        assert told("scoring paths") + rest < elapsed
    train(Path("uniform"), asked(config, train__sampler="uniform"), QUIET)
    said = capsys.readouterr().err
    assert "sampling and filter inference took" in said
    assert "scoring" not in said


@pytest.mark.parametrize(("walk", "sizes"), [("paths", [2, 2, 2]), ("layers", [6])])
def test_a_generation_is_scored_together_by_layers(
    config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, walk: str, sizes: list[int]
) -> None:
    asked_for: list[tuple[int, str]] = []
    original = search_module.score_paths

    def score(net: Any, paths: Any, *args: Any, **options: Any) -> Any:
        asked_for.append((len(paths), options["walk"]))
        return original(net, paths, *args, **options)

    monkeypatch.setattr(search_module, "score_paths", score)
    monkeypatch.setattr(search_module, "GROUP", 2)
    search(trained, asked(config, search_stage__walk=walk), QUIET)
    assert asked_for[: len(sizes)] == [(size, walk) for size in sizes]


def test_the_search(finished: Path, space: spaces.SearchSpace) -> None:
    found = rows(finished / "search.jsonl")
    assert [row["index"] for row in found] == list(range(EVALUATIONS))
    assert [row["generation"] for row in found] == [0] * 6 + [1] * 6
    assert len({row["path"] for row in found}) == EVALUATIONS
    allowed = newest(finished, "train")["allowed"].numpy()
    for row in found:
        path = space.parse(row["path"])
        space.check(path, allowed)
        assert row["names"] == [SPACE["operations"][op] for op in path]
        assert (row["macs"], row["params"]) == (space.cost(path).macs, space.cost(path).params)
        assert 0 <= row["accuracy"] <= 1
    best = json.loads((finished / "best.json").read_text())
    highest = max((row["accuracy"], -row["macs"]) for row in found)
    equals = [row for row in found if (row["accuracy"], -row["macs"]) == highest]
    keys = ("path", "names", "accuracy", "macs", "params")
    assert {key: best[key] for key in keys} in [{key: row[key] for key in keys} for row in equals]
    assert (best["source"], best["space"]) == ("search", "tiny")
    assert best["next"] == "greedynas-fast retrain run"


def test_the_search_asks_the_filter_first(finished: Path, space: spaces.SearchSpace) -> None:
    """A weak path is evaluated only when no other network is left."""
    trained, allowed = final_filter(finished), newest(finished, "train")["allowed"].numpy()
    everything = np.array([path for path in np.ndindex(4, 4, 4) if all(allowed[range(3), path])], dtype=np.uint8)
    is_weak = trained.is_weak(everything)
    strong = {path.tobytes() for path in space.canonical(everything[~is_weak])}
    weak = {path.tobytes() for path in space.canonical(everything[is_weak])} - strong
    found = {space.canonical(space.parse(row["path"])[None]).tobytes() for row in rows(finished / "search.jsonl")}
    assert strong
    assert weak
    assert found & strong
    assert strong <= found or not found & weak


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_mac_limit(trained: Path, space: spaces.SearchSpace, share: float) -> None:
    costs = sorted(space.cost(path).macs for path in np.array(list(np.ndindex(4, 4, 4)), dtype=np.uint8))
    limit = costs[int(share * len(costs))]
    found = search(trained, ConfigSource(overrides={"search.max_macs": limit}), QUIET)
    macs = [row["macs"] for row in rows(trained / "search.jsonl")]
    assert macs
    assert max(macs) <= limit
    assert found["macs"] <= limit
    assert len({row["path"] for row in rows(trained / "search.jsonl")}) == len(macs) == found["evaluations"]


def test_the_retrained_network(finished: Path, space: spaces.SearchSpace) -> None:
    network, description = load_model(finished / "retrain")
    best = json.loads((finished / "best.json").read_text())
    assert description["path"] == best["path"]
    assert description["class_names"][0] == "T-shirt/top"
    result = json.loads((finished / "result.json").read_text())
    assert (result["weights"], result["split"], result["images"]) == ("retrained", "test", 60)
    data = open_data(DataConfig(train_limit=240, test_limit=60), resolution=14, in_channels=1, seed=0)
    assert data.test is not None
    images, labels = data.test.tensors()
    with torch.no_grad():
        logits = network(images).double()
    top5 = torch.argsort(logits, dim=1, descending=True)[:, :5]
    assert result["top1"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert result["top5"] == pytest.approx(float((top5 == labels[:, None]).any(1).double().mean()))
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert result["macs"] == space.cost(space.parse(best["path"])).macs
    for name in ("model.safetensors", "config.json"):
        assert (finished / "export" / name).read_bytes() == (finished / "retrain" / name).read_bytes()


def test_the_report_is_a_page(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    parser = html.parser.HTMLParser()
    parser.feed(text)
    parser.close()
    assert "tiny" in text


def test_the_commands_one_by_one_are_the_run(config: Path, here: Path, finished: Path, capsys: Capture) -> None:
    """Each through the command line, with one JSON document on standard output and the next command in it."""
    document = succeed(capsys, "train", "--run", RUN, "--config", config)
    assert (document["steps"], document["updates"], document["run"]) == (STEPS, UPDATES, "run")
    for following in CONTINUING:
        assert document["next"].split()[1] == following
        words = document["next"].split()[1:]
        document = succeed(capsys, *words)
    assert differences(outcome(RUN), outcome(finished)) == []
    # `report` reads only, and leaves no trace.
    commands = (RUN / "commands.txt").read_text().splitlines()
    assert [line.split()[1] for line in commands] == ["train", *CONTINUING[:-1]]
    assert commands[0] == f"greedynas-fast train --run run --config {config} --json"


def test_run_through_the_command_line(config: Path, here: Path, finished: Path, capsys: Capture) -> None:
    document = succeed(capsys, "run", "--run", RUN, "--config", config)
    assert differences(outcome(RUN), outcome(finished)) == []
    result = json.loads((RUN / "result.json").read_text())
    assert document["top1"] == result["top1"]
    assert document["report"] == "run/report.html"
    assert document["next"].startswith("greedynas-fast export run")


def test_results_for_people(copy: Path, capsys: Capture) -> None:
    for command in CONTINUING:
        assert main([command, str(copy)]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "Next: greedynas-fast " in captured.out


@pytest.mark.parametrize("command", ["train", "run", *CONTINUING])
def test_a_second_time_changes_nothing(copy: Path, capsys: Capture, command: str) -> None:
    words = [command, "--run", RUN] if command in ("train", "run") else [command, RUN]
    (copy / "commands.txt").touch()
    first = succeed(capsys, *words)
    # The report lists the commands, so it may only now be compared.
    before, commands = files(copy), (copy / "commands.txt").read_text()
    assert succeed(capsys, *words) == first
    assert files(copy) == before
    assert (copy / "commands.txt").read_text() == commands
    assert not list((copy / "events").rglob("*.tmp"))


def test_a_second_time_keeps_the_results(copy: Path, finished: Path, capsys: Capture) -> None:
    before = files(copy)
    for command in CONTINUING:
        succeed(capsys, command, RUN)
    after = files(copy)
    assert {name for name in before if before[name] != after[name]} <= {"report.html"}
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("train", "seed", "1"),
        ("train", "train.epochs", "9"),
        ("train", "data.train_limit", "100"),
        ("train", "filter.loss", "vpu"),
        ("train", "space.num_classes", "12"),
        ("run", "search.evaluations", "20"),
        ("search", "search.max_macs", "1e9"),
        ("search", "search_stage.bn", "recalibrate"),
        ("retrain", "retrain.epochs", "3"),
        ("retrain", "retrain.path", "000"),
    ],
)
def test_what_has_begun_is_frozen(copy: Path, capsys: Capture, command: str, option: str, value: str) -> None:
    before = files(copy)
    words = [command, "--run", RUN] if command in ("train", "run") else [command, RUN]
    message = failure(capsys, *words, f"--{option}", value)
    assert message.startswith(f"{option} is ")
    assert "its stage has started" in message
    assert files(copy) == before


def test_repeating_an_option_is_no_change(copy: Path, config: Path, capsys: Capture) -> None:
    before = files(copy)
    succeed(capsys, "train", "--run", RUN, "--config", config, "--train.epochs", "4")
    assert files(copy) == before


def test_a_path_given_by_hand(trained: Path, capsys: Capture) -> None:
    """`retrain`, `evaluate` and `export` need no search when they are given a path."""
    document = succeed(capsys, "retrain", trained, "--retrain.path", "MB3_K5 ID MB6_K3", "--retrain.epochs", "1")
    assert document["text"] == "MB3_K5 | ID MB6_K3"
    assert json.loads((trained / "retrain" / "config.json").read_text())["source"] == "given"
    assert succeed(capsys, "evaluate", trained)["path"] == "132"
    succeed(capsys, "export", trained)
    assert load_model(trained / "export")[1]["path"] == "132"
    assert not (trained / "search.jsonl").exists()
    assert succeed(capsys, "retrain", trained)["text"] == document["text"]


def test_a_path_from_a_file(trained: Path, capsys: Capture) -> None:
    Path("mine.txt").write_text("132\n")
    document = succeed(capsys, "retrain", trained, "--retrain.path", "@mine.txt", "--retrain.epochs", "1")
    assert document["text"] == "MB3_K5 | ID MB6_K3"


def test_inherited_weights_are_a_question_of_the_moment(copy: Path, space: spaces.SearchSpace, capsys: Capture) -> None:
    before = files(copy)
    best = json.loads((copy / "best.json").read_text())["path"]
    for text in ("best", best):
        measured = succeed(capsys, "evaluate", copy, "--evaluate.path", text, "--evaluate.split", "validation")
        assert (measured["weights"], measured["path"], measured["images"]) == ("inherited", best, 60)
    assert succeed(capsys, "evaluate", copy)["weights"] == "retrained"
    assert files(copy) == before


def test_export_of_inherited_weights(trained: Path, capsys: Capture) -> None:
    allowed = newest(trained, "train")["allowed"].numpy()
    digits = "".join(str(np.flatnonzero(row)[-1]) for row in allowed)
    document = succeed(capsys, "export", trained, "--export.path", digits)
    folder = trained / "export" / digits
    assert {Path(file) for file in document["files"]} == {folder / "model.safetensors", folder / "config.json"}
    network, description = load_model(folder)
    assert description["path"] == digits
    data = open_data(DataConfig(train_limit=240, test_limit=60), resolution=14, in_channels=1, seed=0)
    assert data.test is not None
    images, labels = data.test.tensors()
    with torch.no_grad():
        top1 = float((network(images).argmax(1) == labels).double().mean())
    assert succeed(capsys, "evaluate", trained, "--evaluate.path", digits)["top1"] == pytest.approx(top1)
    # The names of the tensors are the supernet's own, so the weights can be held against it.
    supernet = newest(trained, "train")["supernet"]
    weights = dict(network.named_parameters())
    assert all(torch.equal(weights[name], supernet[name]) for name in weights if name.startswith(("stem.", "head.")))


def test_another_seed_is_another_run(config: Path, here: Path, finished: Path) -> None:
    run(RUN, asked(config, seed=1), QUIET)
    changed = differences(outcome(RUN), outcome(finished))
    assert {"train", "retrain", "paths.txt", "search.jsonl", "retrain/model.safetensors", "metrics"} <= set(changed)
    weights = [newest(folder, "train")["supernet"] for folder in (RUN, finished)]
    # The two have merged different operations.
    both = {name for name in weights[0].keys() & weights[1].keys() if name.endswith("conv_pw.weight")}
    assert both
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in both)


def test_a_longer_log_interval_changes_no_weight(config: Path, here: Path, finished: Path) -> None:
    train(RUN, asked(config, train__log_every_steps=7, train__checkpoint_every_steps=5), QUIET)
    first, second = newest(RUN, "train"), newest(finished, "train")
    assert all(torch.equal(first["supernet"][name], value) for name, value in second["supernet"].items())
    assert (RUN / "paths.txt").read_bytes() == (finished / "paths.txt").read_bytes()


def test_a_given_path_can_be_retrained_in_a_run_of_its_own(config: Path, here: Path, capsys: Capture) -> None:
    result = succeed(capsys, "retrain", "alone", "--config", config, "--retrain.path", "MB3_K3 ID MB6_K3")
    assert result["text"] == "MB3_K3 | ID MB6_K3"
    assert succeed(capsys, "evaluate", "alone")["weights"] == "retrained"
    assert not (here / "alone" / "paths.txt").exists()
    assert "no such folder" in failure(capsys, "retrain", "other", "--config", config)
    assert not (here / "other").exists()


def test_the_same_command_without_a_folder_goes_on(
    config: Path, finished: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--config", str(config)]
    with monkeypatch.context() as stopped:
        stopped.setattr(Algorithm1, "update_filter", _stop)
        assert main(command) == 130
    assert "going on" not in capsys.readouterr().err
    assert main([*command, "--seed", "1"]) == 0  # another configuration is another run
    assert (here / "runs" / "sample-2").is_dir()
    shutil.rmtree(here / "runs" / "sample-2")
    assert main(command) == 0
    assert "going on with runs/sample-1" in capsys.readouterr().err
    assert (here / "runs" / "sample-1" / "paths.txt").read_bytes() == (finished / "paths.txt").read_bytes()
    assert main(command) == 0  # a finished run is left alone
    assert (here / "runs" / "sample-2" / "paths.txt").read_bytes() == (finished / "paths.txt").read_bytes()


def _stop(_: Algorithm1, poll: Any) -> None:
    raise KeyboardInterrupt
