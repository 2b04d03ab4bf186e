"""The commands on a run folder: what they hand to the stages, what they print, how they fail."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greedynas_fast.cli import main
from greedynas_fast.config import ConfigSource, RunConfig, load_config
from greedynas_fast.runtime import RunFolder

Capture = pytest.CaptureFixture[str]
STAGES = ("train", "run", "search", "retrain", "evaluate", "export", "report")
CONTINUING = STAGES[2:]


class FakeStage:
    """Stands for every stage function; remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, ConfigSource, Any]] = []
        self.act: Callable[[], Any] = lambda: {"run": "r", "accuracy": 0.5, "next": "greedynas-fast search r"}

    def __call__(self, run: Path, source: ConfigSource, reporter: Any) -> Any:
        self.calls.append((run, source, reporter))
        return self.act()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeStage:
    """All stage functions replaced by one fake, in an empty working directory."""
    fake = FakeStage()
    load_config()  # resolves the types of its fields, which it looks up in the modules that are to be replaced
    for name in STAGES:
        module = types.ModuleType(f"greedynas_fast.stages.{name}")
        setattr(module, "export_run" if name == "export" else name, fake)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    with RunFolder.create(tmp_path / "made") as folder:
        folder.write_config(load_config("sample", overrides={"train.epochs": 5}).to_dict())
        return folder.path


def failure(capsys: Capture, *words: str) -> str:
    """Standard error of a command that must fail with exit code 2."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("command", ["train", "run"])
def test_a_new_run_gets_the_next_free_folder(stage: FakeStage, command: str, capsys: Capture) -> None:
    assert main([command]) == 0
    assert main([command, "--preset", "imagenet-mobile", "--data", "/images"]) == 0
    assert main([command]) == 0
    assert [str(call[0]) for call in stage.calls] == ["runs/sample-1", "runs/imagenet-mobile-1", "runs/sample-2"]
    assert stage.calls[1][1] == ConfigSource("imagenet-mobile", None, {"data.root": "/images"})
    capsys.readouterr()


def test_what_a_stage_is_given(stage: FakeStage, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 4}")
    words = ["train", "--run", "here", "--config", str(file), "--train.lr", "1e-2", "--data=d", "--seed=3"]
    words += ["--train.augment.flip", "false", "--search.max_macs", "null", "--export.formats", "[safetensors,onnx]"]
    assert main(words) == 0
    run, source, reporter = stage.calls[0]
    assert run == Path("here")
    assert (source.preset, source.file) == (None, file)
    assert source.overrides == {
        "train.lr": 0.01,
        "data.root": "d",
        "seed": 3,
        "train.augment.flip": False,
        "search.max_macs": None,
        "export.formats": ["safetensors", "onnx"],
    }
    assert load_config(source.preset, source.file, source.overrides).export.formats == ("safetensors", "onnx")
    assert not reporter.quiet
    assert reporter.command.startswith("greedynas-fast train --run here")
    capsys.readouterr()


@pytest.mark.parametrize("command", CONTINUING)
def test_commands_on_a_run_folder(stage: FakeStage, run_folder: Path, command: str, capsys: Capture) -> None:
    assert main([command, str(run_folder)]) == 0
    run, source, _ = stage.calls[0]
    assert run == run_folder
    assert source == ConfigSource()
    assert capsys.readouterr().out.endswith("Next: greedynas-fast search r\n")


@pytest.mark.parametrize("command", STAGES)
def test_json_is_one_document(stage: FakeStage, run_folder: Path, command: str, capsys: Capture) -> None:
    def noisy() -> dict[str, Any]:
        print("a library talks")
        return {"accuracy": float("nan"), "path": Path("x"), "next": None}

    stage.act = noisy
    place = [str(run_folder)] if command in CONTINUING else ["--run", str(run_folder)]
    assert main([command, *place, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"accuracy": None, "path": "x", "next": None}
    assert captured.err == "a library talks\n"
    assert stage.calls[0][2].quiet


def test_bad_input_leaves_no_folder(stage: FakeStage, tmp_path: Path, capsys: Capture) -> None:
    failure(capsys, "train", "--train.epochs", "0")
    failure(capsys, "train", "--preset", "nope")
    assert not (tmp_path / "runs").exists()
    assert stage.calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.epoch", "3"], "unknown option --train.epoch. The nearest known one is --train.epochs."),
        (["--train.epoch=3"], "--train.epochs"),
        (["--epochs", "3"], "unknown option --epochs. The nearest known one is --"),
        (["--train.epochs", "x"], "--train.epochs must be a whole number, got 'x'"),
        (["--train.sampler", "x"], "--train.sampler must be one of filter, uniform, fair, got 'x'"),
        (["--train.augment.flip", "3"], "--train.augment.flip must be true or false, got '3'"),
        (["--train.lr", "0"], "train.lr must be above 0"),
        (["--train", "x.yaml"], "--train is a group of options: give one of them, such as --train.epochs"),
        (["--preset", "sampl"], "Did you mean 'sample'?"),
        (["--config", "/no/file.yaml"], "cannot read the configuration file /no/file.yaml: No such file"),
        (["--run"], "expected one argument"),
        (["stray"], "unexpected argument 'stray'"),
        (["--zzzz"], "unknown option --zzzz."),
    ],
)
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_bad_options(stage: FakeStage, capsys: Capture, words: list[str], message: str, extra: list[str]) -> None:
    assert message in failure(capsys, "train", *words, *extra)


def test_options_of_another_command(stage: FakeStage, run_folder: Path, capsys: Capture) -> None:
    message = failure(capsys, "search", str(run_folder), "--train.epochs", "3")
    assert "--train.epochs is no option of this command" in message
    assert main(["search", str(run_folder), "--search.evaluations", "9", "--search_stage.bn", "recalibrate"]) == 0
    assert stage.calls[0][1].overrides == {"search.evaluations": 9, "search_stage.bn": "recalibrate"}
    capsys.readouterr()


@pytest.mark.parametrize("command", CONTINUING)
def test_an_argument_given_as_an_option(stage: FakeStage, run_folder: Path, command: str, capsys: Capture) -> None:
    assert "run is given by itself, without its name before it." in failure(capsys, command, "--run", str(run_folder))
    assert "The nearest known one is --json." in failure(capsys, command, str(run_folder), "--jsn")


# `retrain` may begin a run; that it refuses to without a path is tested with the stages.
@pytest.mark.parametrize("command", [command for command in CONTINUING if command != "retrain"])
def test_no_run_folder(stage: FakeStage, command: str, tmp_path: Path, capsys: Capture) -> None:
    assert "no such folder" in failure(capsys, command, str(tmp_path / "absent"))
    assert "config.yaml" in failure(capsys, command, str(tmp_path))
    assert "missing: run" in failure(capsys, command)


def test_print_config(stage: FakeStage, run_folder: Path, capsys: Capture) -> None:
    assert main(["train", "--print_config", "--train.epochs", "3"]) == 0
    printed = RunConfig.from_yaml(capsys.readouterr().out)
    assert printed == load_config("sample", overrides={"train.epochs": 3})
    assert main(["train", "--print_config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == load_config("sample").to_dict()
    assert main(["run", "--run", str(run_folder), "--print_config"]) == 0
    assert RunConfig.from_yaml(capsys.readouterr().out).train.epochs == 5
    assert stage.calls == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "continuation"),
    [(["train"], "train --run runs/sample-1"), (["run", "--run", "a b"], "run --run 'a b'")],
)
def test_ctrl_c_says_how_to_go_on(stage: FakeStage, capsys: Capture, words: list[str], continuation: str) -> None:
    def stop() -> Any:
        raise KeyboardInterrupt

    stage.act = stop
    assert main(words) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"Stopped. Continue with: greedynas-fast {continuation}\n"


def test_ctrl_c_on_a_run_folder(stage: FakeStage, run_folder: Path, capsys: Capture) -> None:
    def stop() -> Any:
        raise KeyboardInterrupt

    stage.act = stop
    assert main(["search", str(run_folder), "--json"]) == 130
    assert capsys.readouterr().err == f"Stopped. Continue with: greedynas-fast search {run_folder}\n"


def test_errors_about_files_and_packages(stage: FakeStage, run_folder: Path, capsys: Capture) -> None:
    def no_space() -> Any:
        raise OSError(28, "No space left on device", "/full/file")

    stage.act = no_space
    assert failure(capsys, "export", str(run_folder)) == "error: /full/file: No space left on device.\n"

    def no_package() -> Any:
        raise ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper")

    stage.act = no_package
    assert "pip install 'greedynas_fast[export]'" in failure(capsys, "export", str(run_folder))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ModuleNotFoundError("x", name="ours"), OSError("no name")])
def test_bugs_keep_their_traceback(stage: FakeStage, run_folder: Path, error: Exception) -> None:
    def bug() -> Any:
        raise error

    stage.act = bug
    with pytest.raises(type(error)):
        main(["export", str(run_folder)])


def test_debug_shows_the_traceback(stage: FakeStage, capsys: Capture) -> None:
    assert main(["train", "--train.epochs", "0", "--debug"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith("error: train.epochs must be at least 1, got 0.\n")


@pytest.mark.parametrize("command", STAGES)
def test_help_of_a_stage(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"usage: greedynas-fast {command} [")
    if command in ("train", "run"):
        assert "--train.update_every_epochs" in captured.out
        assert "epochs between two filters" in captured.out
