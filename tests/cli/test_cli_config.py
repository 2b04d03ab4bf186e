"""Configurations: presets, files, overrides, existing runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from greedynas_fast import presets, spaces
from greedynas_fast.config import (
    STAGE_SECTIONS,
    ConfigSource,
    RetrainConfig,
    RunConfig,
    SearchStageConfig,
    TrainConfig,
    frozen_sections,
    load_config,
    resolve,
)
from greedynas_fast.dataclass_io import flatten
from greedynas_fast.errors import InputError

PRESETS = ("sample", "imagenet-mobile", "imagenet-resnet")


def test_presets_are_these() -> None:
    assert presets.names() == PRESETS
    assert presets.recipes() == ("mobile", "resnet", "small")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_valid_and_commented(name: str) -> None:
    config = load_config(name)
    assert config.preset == name
    assert set(flatten(presets.read(name))) == set(flatten(config.to_dict()))
    assert presets.text(name).startswith("# ")
    assert spaces.get(config.space.name).name == config.space.name
    recipe = flatten({"retrain": presets.read_recipe(config.retrain.recipe)})
    assert {key: flatten(config.to_dict())[key] for key in recipe} == recipe


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_round_trip(name: str) -> None:
    config = load_config(name, overrides={"seed": 7, "train.grad_clip": 1e-7, "search.max_macs": 5e6})
    assert RunConfig.from_yaml(config.to_yaml()) == config
    for path in ("201163", "0123", "12e45", "1.e3", "null", "yes", "0x1f", "MB3_K3 | ID", "@file", "-"):
        config = load_config(name, overrides={"retrain.path": path})
        assert RunConfig.from_yaml(config.to_yaml()) == config
    assert list(config.to_dict()) == list(presets.read(name))


# Sec. 5.1 of the paper, and public settings of its first author where it is silent, by hand.
SUPERNET = {
    "train.epochs": 120,
    "train.batch_size": 1024,
    "train.lr": 0.12,
    "train.schedule": "cosine",
    "train.momentum": 0.9,
    "train.weight_decay": 4e-5,
    "train.label_smoothing": 0.1,
    "train.warmup_epochs": 20,
    "train.update_every_epochs": 5,
    "train.q_start": 0.5,
    "train.q_end": 0.99,
    "train.q_epochs": 90,
    "train.score_paths": 1000,
    "train.score_images": 1000,
    "train.score_bn": "batch",
    "train.unlabeled_ratio": 10,
    "train.merge_threshold": 0.8,
    "train.agreement_paths": 10_000,
    "train.agreement_threshold": 0.9,
    "train.sampler": "filter",
    "data.validation_size": 50_000,
    "filter.loss": "vpu",
    "filter.steps": 3000,
    "filter.batch_size": 1024,
    "filter.lr": 1e-3,
    "filter.hidden": 128,
    "filter.threshold_rule": "quantile",
    "search.method": "nsga2",
    "search.evaluations": 500,
    "search.population": 50,
    "space.resolution": 224,
    "retrain.ema_decay": 0.9999,
    "retrain.augment.auto_augment": "autoaugment",
    "retrain.augment.crop": "random_resized",
}
MOBILE = {
    "space.name": "mb-se-mix-shuffle",
    "search.max_macs": 330e6,
    "retrain.recipe": "mobile",
    "retrain.optimizer": "rmsproptf",
    "retrain.momentum": 0.9,
    "retrain.batch_size": 96 * 8,
    "retrain.lr": 0.048,
    "retrain.warmup_epochs": 3,
    "retrain.warmup_lr": 1e-6,
    "retrain.schedule": "step",
    "retrain.decay_rate": 0.97,
    "retrain.decay_epochs": 2.4,
    "retrain.weight_decay": 1e-5,
    "retrain.dropout": 0.2,
    "retrain.label_smoothing": 0.1,
    "retrain.epochs": 450,
    "retrain.augment.random_erasing": 0.2,
}
RESNET = {
    "space.name": "res50-se",
    "space.res_se_reduction": 8,
    "retrain.recipe": "resnet",
    "retrain.optimizer": "sgd",
    "retrain.batch_size": 1536,
    "retrain.lr": 0.6,
    "retrain.schedule": "cosine",
    "retrain.epochs": 240,
    "retrain.warmup_epochs": 5,
    "retrain.weight_decay": 1e-4,
}


@pytest.mark.parametrize(("name", "own"), [("imagenet-mobile", MOBILE), ("imagenet-resnet", RESNET)])
def test_imagenet_presets_carry_the_methods_numbers(name: str, own: dict[str, Any]) -> None:
    values = flatten(load_config(name).to_dict())
    expected = SUPERNET | own
    assert {key: values[key] for key in expected} == expected


def test_class_defaults_are_the_methods_numbers() -> None:
    values = flatten(RunConfig(preset="none").to_dict())
    expected = {key: value for key, value in (SUPERNET | MOBILE).items() if key.startswith("train.")}
    assert {key: values[key] for key in expected} == expected
    assert RetrainConfig().recipe == "mobile"
    assert RetrainConfig().lr == 0.048


def test_layers_of_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: imagenet-mobile\ntrain:\n  epochs: 7\n  lr: 1e-2\nsearch: {max_macs: 280e6}\n")
    config = load_config(None, file, {"train.epochs": 9})
    assert config.preset == "imagenet-mobile"
    assert (config.train.epochs, config.train.lr, config.search.max_macs) == (9, 0.01, 280e6)
    assert config.train.batch_size == 1024
    assert load_config("sample", file).preset == "sample"
    assert load_config("sample", file).train.batch_size == load_config("sample").train.batch_size
    assert load_config().preset == "sample"


def test_threads_are_resolved() -> None:
    assert load_config(overrides={"threads": 0}).threads == len(os.sched_getaffinity(0))
    assert load_config(overrides={"threads": 3}).threads == 3


def test_a_recipe_is_the_base_of_what_is_given_with_it() -> None:
    config = load_config("sample", overrides={"retrain.recipe": "resnet", "retrain.lr": 0.3})
    assert (config.retrain.optimizer, config.retrain.epochs, config.retrain.lr) == ("sgd", 240, 0.3)
    assert config.retrain.augment.auto_augment == "autoaugment"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.epoch": 3}, r"the command line: unknown configuration key 'train\.epoch'.*'train\.epochs'"),
        ({"epochs": 3}, r"unknown configuration key 'epochs'.*epochs'"),
        ({"search.poplation": 3}, r"'search\.population'"),
        ({"train.augment.flips": True}, r"'train\.augment\.flip'"),
        ({"train.epochs": "many"}, r"train\.epochs must be a whole number, got 'many'"),
        ({"train.epochs": 0}, r"^train\.epochs must be at least 1, got 0"),
        ({"train.lr": 0}, r"^train\.lr must be above 0, got 0"),
        ({"train.momentum": 1}, r"^train\.momentum"),
        ({"train.q_start": 0.995}, r"^train\.q_end must be at least train\.q_start = 0\.995"),
        ({"train.sampler": "spos"}, r"train\.sampler must be one of filter, uniform, fair, got 'spos'"),
        ({"train": 3}, "train must hold keys and values, got 3"),
        ({"filter.hidden": 0}, r"^filter\.hidden"),
        ({"search.population": 1}, r"^search\.population"),
        ({"export.opset": 3}, r"^export\.opset"),
        ({"train.augment.pad": -1}, r"augment\.pad"),
        ({"data.validation_size": -1}, r"^data\.validation_size"),
        ({"space.name": ""}, r"^space\.name"),
        ({"seed": -1}, "^seed must be at least 0"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"threads": -1}, "^threads must be at least 0"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"retrain.recipe": "big"}, r"retrain\.recipe must be one of mobile, resnet, small, got 'big'"),
        ({"retrain.ema_decay": 1.0}, r"^retrain\.ema_decay"),
        ({"train.score_batch_size": 0}, r"^train\.score_batch_size must be at least 1, got 0"),
        ({"train.score_memory_mb": -1}, r"^train\.score_memory_mb must be at least 0, got -1"),
        ({"search_stage.memory_mb": -1}, r"^search_stage\.memory_mb must be at least 0, got -1"),
        ({"search_stage.bn": "running"}, r"search_stage\.bn must be one of batch, recalibrate"),
        ({"search_stage.walk": "breadth"}, r"search_stage\.walk must be one of paths, layers"),
        ({"train.score_walk": "layers", "train.score_bn": "recalibrate"}, r"^train\.score_walk: layers is for batch"),
        ({"train.fair_walk": "layers"}, r"^train\.fair_walk: layers is for train\.sampler fair, without"),
        (
            {"train.fair_walk": "layers", "train.sampler": "fair", "train.sync_bn": True},
            r"^train\.fair_walk: layers is for train\.sampler fair, without",
        ),
        (
            {"search_stage.walk": "layers", "search_stage.bn": "recalibrate"},
            r"^search_stage\.walk: layers is for batch",
        ),
        ({"evaluate.split": "train"}, r"evaluate\.split"),
    ],
)
def test_bad_values(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("sample", overrides=overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", r"mine\.yaml: unknown configuration key 'train\.epoch'.*'train\.epochs'"),
        ("train: {epochs: 1.5}", r"mine\.yaml: train\.epochs must be a whole number, got 1\.5"),
        ("train: [", r"mine\.yaml is not YAML"),
        ("3", r"mine\.yaml: the configuration must hold keys and values, got 3"),
        ("seed: 1\nseed: 2", r"mine\.yaml, line 1: the key 'seed' stands there twice"),
        ("train: {lr: .nan}", r"mine\.yaml: train\.lr must be a number, got nan"),
        ("preset: sampel", "unknown preset 'sampel'.*Did you mean 'sample'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(None, file)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the configuration file .*nope\.yaml: No such file"):
        load_config(None, tmp_path / "nope.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        load_config(None, tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_config(None, binary)


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load_config(None, file) == load_config()


def test_wrong_types_from_python() -> None:
    with pytest.raises(InputError, match=r"^train\.epochs must be a whole number, got '3'"):
        TrainConfig(epochs="3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^search_stage\.images must be at least 1"):
        SearchStageConfig(images=0)


def _stored(**overrides: object) -> dict[str, Any]:
    return load_config("sample", overrides=overrides).to_dict()


def test_an_existing_run_keeps_its_configuration() -> None:
    stored = _stored(**{"train.epochs": 5, "threads": 1})
    config = resolve(ConfigSource(), stored, frozen_sections(["train", "search"]))
    assert config.to_dict() == stored


def test_frozen_values_may_be_repeated_but_not_changed() -> None:
    stored = _stored(**{"train.epochs": 5})
    frozen = frozen_sections(["train"])
    same = ConfigSource("sample", None, {"train.epochs": 5, "threads": 0})
    assert resolve(same, stored, frozen).to_dict() == stored
    for overrides, key in (
        ({"train.epochs": 6}, "train.epochs is 5"),
        ({"seed": 3}, "seed is 0"),
        ({"space.name": "mb-se"}, "space.name is 'sample'"),
        ({"filter.loss": "pn"}, "filter.loss is 'rank'"),
        ({"data.root": "x"}, "data.root is None"),
        ({"train.augment.pad": 3}, "train.augment.pad is 2"),
    ):
        with pytest.raises(InputError, match=f"^{key} in this run and its stage has started"):
            resolve(ConfigSource(overrides=overrides), stored, frozen)
    with pytest.raises(InputError, match=r"^preset is 'sample'"):
        resolve(ConfigSource("imagenet-mobile"), stored, frozen)


def test_later_stages_may_change_until_they_start() -> None:
    stored, frozen = _stored(), frozen_sections(["train"])
    asked = ConfigSource(overrides={"search.evaluations": 30, "search_stage.images": 5, "retrain.recipe": "mobile"})
    config = resolve(asked, stored, frozen)
    assert (config.search.evaluations, config.search_stage.images, config.retrain.lr) == (30, 5, 0.048)
    with pytest.raises(InputError, match=r"^search\.evaluations"):
        resolve(asked, stored, frozen_sections(["train", "search"]))


def test_a_file_for_an_existing_run(tmp_path: Path) -> None:
    file = tmp_path / "retrain.yaml"
    file.write_text("retrain: {epochs: 3}")
    stored, frozen = _stored(), frozen_sections(["train", "search"])
    assert resolve(ConfigSource(file=file), stored, frozen).retrain.epochs == 3
    file.write_text("train: {epochs: 3}")
    with pytest.raises(InputError, match=r"^train\.epochs"):
        resolve(ConfigSource(file=file), stored, frozen)


def test_a_damaged_stored_configuration_is_named() -> None:
    with pytest.raises(InputError, match=r"^the run's config\.yaml: unknown configuration key 'trian'"):
        resolve(ConfigSource(), {"preset": "sample", "trian": {}})


def test_every_section_belongs_to_one_stage() -> None:
    sections = [section for stage in STAGE_SECTIONS.values() for section in stage]
    free = ["profile"]  # changes no result, so it may be asked for at any time
    assert sorted(sections + free) == sorted(RunConfig(preset="x").to_dict())
