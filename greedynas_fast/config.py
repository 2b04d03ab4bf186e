"""Everything that a run depends on, as one tree of dataclasses; presets, YAML files and overrides that make one.

Each component has its own dataclass, validated when it is made. Numbers that the paper states are the defaults
(Sec. 5.1); a preset is a complete YAML file in `presets/`. A run stores its resolved configuration in `config.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from greedynas_fast import presets
from greedynas_fast.data import Augment, DataConfig
from greedynas_fast.dataclass_io import (
    build,
    check_range,
    check_types,
    flatten,
    merge,
    nest,
    read_mapping,
    to_mapping,
)
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterConfig
from greedynas_fast.search import SearchConfig
from greedynas_fast.stages.export import ExportConfig

BatchNorm = Literal["batch", "recalibrate"]
Walk = Literal["paths", "layers"]
RecipeName = Literal["mobile", "resnet", "small"]
Precision = Literal["float32", "bf16", "fp16"]

# Which parts of the configuration a stage depends on first. They may change until that stage has started.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "train": ("preset", "seed", "device", "threads", "backend", "space", "data", "train", "filter"),
    "search": ("search", "search_stage"),
    "retrain": ("retrain",),
    "evaluate": ("evaluate",),
    "export": ("export",),
}
# These may change at any time. How image files are read, not which, so that a run can go on when a file has gone bad;
# and what scoring may hold, which changes its time alone.
FREE = frozenset(
    {"data.on_bad_file", "data.max_bad_files", "data.workers", "train.score_memory_mb", "search_stage.memory_mb"}
)


@dataclass(frozen=True)
class SpaceConfig:
    """The search space.

    Attributes:
        name: a built-in space (`greedynas-fast spaces` lists them) or a YAML file that defines one.
        num_classes: classes of the head; null takes the number that the data has.
        resolution: height and width of the images in pixels; null takes the space's own.
        in_channels: channels of the images; null takes the space's own.
        shuffle_se: squeeze-and-excitation in the Shuffle units (the paper's text has none).
        shuffle_activation: activation of the Shuffle units.
        res_se_reduction: of squeeze-and-excitation in res50-se; 0 has none.
    """

    name: str = "mb-se-mix-shuffle"
    num_classes: int | None = None
    resolution: int | None = None
    in_channels: int | None = None
    shuffle_se: bool = False
    shuffle_activation: Literal["relu", "hard_swish"] = "relu"
    res_se_reduction: int = 8

    def __post_init__(self) -> None:
        check_types(self, "space")
        check_range(self, "space", "num_classes", "resolution", "in_channels", low=1)
        check_range(self, "space", "res_se_reduction", low=0)
        if not self.name:
            raise InputError("space.name must name a search space or a YAML file, got an empty text.")


@dataclass(frozen=True)
class TrainConfig:
    """Training of the supernet: Algorithm 1 and its schedule (Sec. 5.1, Sec. 4.1, Sec. 4.2).

    Attributes:
        epochs: passes over the training images at most; the stop rule may end training earlier.
        batch_size: images a step, over all processes, which divide it among themselves.
        micro_batch: images a forward pass of one process at most; gradients are added up over several. null: no limit.
        precision: of activations: `bf16` and `fp16` are torch's autocast, fp16 with a loss scale that adapts itself.
        sync_bn: batch normalisation in training over the batches of all processes.
        lr: learning rate at the first step.
        schedule: the learning rate falls to zero over `epochs` along a half cosine.
        momentum: of SGD. Note: not in the paper.
        weight_decay: of SGD, on the operations of the current path only. Note: not in the paper.
        label_smoothing: of the training loss.
        grad_clip: largest norm of a step's gradient; null clips nothing.
        ema_decay: of an exponential moving average of the weights, in which paths are then scored and searched: that of
            an operation moves in the steps that train it. null keeps no average. Note: not in the paper.
        sampler: `filter` is Algorithm 1; `uniform` and `fair` never train a filter. `uniform`: one uniform path a step
            (SPOS). `fair`: a group of paths a step, as many as the largest layer has operations, in which those of a
            layer occur equally often; all see the same batch, and their gradients are summed, not averaged, for one
            update (FairNAS, https://arxiv.org/abs/1907.01845, Alg. 1). `lr` and `grad_clip` meet the sum: an
            operation's gradient of one path in the largest layers, that of all paths in stem and head.
        fair_walk: of the paths of a `fair` group. `paths`: one after the other. `layers`: all of them a layer at a
            time, fewer launches on a GPU, for as many times the memory; without `sync_bn`.
        warmup_epochs: epochs of uniform paths before the first filter.
        update_every_epochs: epochs between two filters.
        q_start: share of weak paths, q, at the end of warm-up.
        q_end: q at the end of its rise.
        q_epochs: epochs over which q rises linearly, counted from the end of warm-up.
        score_paths: m, paths scored for one update of the filter. Note: not in the paper.
        score_images: validation images on which a path is scored.
        score_batch_size: images scored at once, at most; with `score_bn: batch` they are what statistics are of.
        score_bn: batch normalisation when scoring: statistics of the batch, or recomputed on training images.
        score_memory_mb: megabytes (10^6 bytes) of activations that paths may share while they are scored, beside those
            of one path; 0 shares nothing. It changes the time alone.
        score_walk: `paths`: a path after the other, what they share once. `layers`: a layer at a time for many paths,
            fewer launches on a GPU; with `score_bn: batch`.
        unlabeled_ratio: |U| / |P|.
        merge_threshold: cosine similarity above which two operations of a layer are merged, Eq. (9).
        agreement_paths: M, paths on which two successive filters are compared, Eq. (7).
        agreement_threshold: stop when u (or Cohen's kappa) is above it.
        stop_on: the quantity that stops training.
        max_proposals: draws for one path, counted over all paths up to the next update, after which the least weak ones
            are taken (or `strict_sampling` raises). The rule `quantile` needs 1 / (1 - q) on average.
        strict_sampling: end with an error instead of taking a path that the filter calls weak.
        sampling_screen: proposals are scored in bf16 first, and anew in float32 near the threshold, on a CPU where that
            is faster: up to three times as many a second, almost surely the same paths (`FilterEngine`).
        triton_sgd: update by one Triton launch instead of torch's operators for lists of tensors, on a GPU.
        checkpoint_every_steps: steps between two checkpoints.
        log_every_steps: steps between two rows of metrics.
        augment: augmentation of the training images.
    """

    epochs: int = 120
    batch_size: int = 1024
    micro_batch: int | None = None
    precision: Precision = "float32"
    sync_bn: bool = False
    lr: float = 0.12
    schedule: Literal["cosine"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    grad_clip: float | None = None
    ema_decay: float | None = None
    sampler: Literal["filter", "uniform", "fair"] = "filter"
    fair_walk: Walk = "paths"
    warmup_epochs: int = 20
    update_every_epochs: int = 5
    q_start: float = 0.5
    q_end: float = 0.99
    q_epochs: int = 90
    score_paths: int = 1000
    score_images: int = 1000
    score_batch_size: int = 250
    score_bn: BatchNorm = "batch"
    score_memory_mb: int = 1000
    score_walk: Walk = "paths"
    unlabeled_ratio: int = 10
    merge_threshold: float = 0.8
    agreement_paths: int = 10_000
    agreement_threshold: float = 0.9
    stop_on: Literal["agreement", "kappa", "never"] = "agreement"
    max_proposals: int = 1000
    strict_sampling: bool = False
    sampling_screen: bool = True
    triton_sgd: bool = False
    checkpoint_every_steps: int = 500
    log_every_steps: int = 50
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        check_types(self, "train")
        check_range(self, "train", "epochs", "batch_size", "update_every_epochs", "q_epochs", low=1)
        check_range(self, "train", "micro_batch", low=1)
        check_range(self, "train", "score_memory_mb", low=0)
        check_range(
            self,
            "train",
            "score_images",
            "score_batch_size",
            "unlabeled_ratio",
            "agreement_paths",
            "max_proposals",
            low=1,
        )
        check_range(self, "train", "checkpoint_every_steps", "log_every_steps", low=1)
        check_range(self, "train", "score_paths", low=2)
        check_range(self, "train", "warmup_epochs", "weight_decay", low=0)
        check_range(self, "train", "lr", "grad_clip", low=0, open_low=True)
        check_range(self, "train", "momentum", "label_smoothing", "q_start", "q_end", low=0, high=0.9999)
        check_range(self, "train", "ema_decay", low=0, high=0.999999)
        check_range(self, "train", "merge_threshold", "agreement_threshold", low=-1, high=1)
        _check_walk("train.score_walk", self.score_walk, self.score_bn)
        if self.fair_walk == "layers" and (self.sampler != "fair" or self.sync_bn):
            raise InputError("train.fair_walk: layers is for train.sampler fair, without train.sync_bn.")
        if self.q_end < self.q_start:
            raise InputError(f"train.q_end must be at least train.q_start = {self.q_start}, got {self.q_end}.")


@dataclass(frozen=True)
class SearchStageConfig:
    """How the search stage scores a path on the supernet; the search itself is `SearchConfig`.

    Attributes:
        images: validation images on which a path is scored, a fixed class-balanced subset; null takes all of them.
        batch_size: images scored at once.
        bn: batch normalisation: statistics of the batch, or recomputed on training images for each path.
        calibration_images: training images for `recalibrate`.
        memory_mb: as `train.score_memory_mb`.
        walk: as `train.score_walk`; with `layers` a generation at a time, which a run that is killed begins anew.
        use_filter: reject paths that the last path filter calls weak before they are evaluated (Sec. 4.1).
    """

    images: int | None = None
    batch_size: int = 500
    bn: BatchNorm = "batch"
    calibration_images: int = 2048
    memory_mb: int = 1000
    walk: Walk = "paths"
    use_filter: bool = True

    def __post_init__(self) -> None:
        check_types(self, "search_stage")
        check_range(self, "search_stage", "memory_mb", low=0)
        check_range(self, "search_stage", "images", "batch_size", "calibration_images", low=1)
        _check_walk("search_stage.walk", self.walk, self.bn)


@dataclass(frozen=True)
class RetrainConfig:
    """Training of one network from scratch; the defaults are the `mobile` recipe (Sec. 5.1, "Retraining").

    Attributes:
        recipe: a named set of the values below, the base for those that are not given.
        path: the network: a path as text, `@file`, or a published one (GreedyNAS-A/B/C); null takes the run's best.
        model: a timm model by name instead of a path, without pretrained weights: a reference under the same recipe.
        resolution: pixels a side of the training images; null takes the space's.
        optimizer: `rmsproptf` (TensorFlow form, epsilon 1e-3) or `sgd` (Nesterov).
        epochs: passes over the training images.
        batch_size: images a step, over all devices.
        micro_batch: images in one forward pass at most, the gradients of a step are summed; null takes all. Batch
            normalisation sees one micro-batch at a time.
        precision: of convolutions and linear layers in training (torch's autocast); weights stay float32. `fp16` scales
            the loss. Networks are always measured in float32.
        sync_bn: batch normalisation over the batches of all processes.
        lr: learning rate after warm-up.
        warmup_epochs: epochs in which the learning rate rises linearly from `warmup_lr`.
        warmup_lr: learning rate at the first step.
        schedule: `step` multiplies by `decay_rate` every `decay_epochs`; `cosine` falls to zero.
        decay_rate: factor of one step of `step`.
        decay_epochs: epochs between two steps of `step`.
        momentum: of the optimizer.
        weight_decay: not applied to bias and batch normalisation.
        dropout: before the classifier.
        label_smoothing: of the training loss.
        ema_decay: of the exponential moving average of the weights, which is what is kept; null keeps no average.
        grad_clip: largest norm of a step's gradient; null clips nothing.
        checkpoint_every_steps: steps between two checkpoints.
        log_every_steps: steps between two rows of metrics.
        eval_every_epochs: epochs between two measurements of the averaged and the raw weights on the test part, of
            which the best averaged ones are kept too; 0 measures nothing before the end.
        augment: augmentation of the training images.
    """

    recipe: RecipeName = "mobile"
    path: str | None = None
    model: str | None = None
    resolution: int | None = None
    optimizer: Literal["rmsproptf", "sgd"] = "rmsproptf"
    epochs: int = 450
    batch_size: int = 768
    micro_batch: int | None = None
    precision: Precision = "float32"
    sync_bn: bool = False
    lr: float = 0.048
    warmup_epochs: float = 3
    warmup_lr: float = 1e-6
    schedule: Literal["step", "cosine"] = "step"
    decay_rate: float = 0.97
    decay_epochs: float = 2.4
    momentum: float = 0.9
    weight_decay: float = 1e-5
    dropout: float = 0.2
    label_smoothing: float = 0.1
    ema_decay: float | None = 0.9999
    grad_clip: float | None = None
    checkpoint_every_steps: int = 500
    log_every_steps: int = 50
    eval_every_epochs: int = 0
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        check_types(self, "retrain")
        check_range(self, "retrain", "epochs", "batch_size", "checkpoint_every_steps", "log_every_steps", low=1)
        check_range(self, "retrain", "resolution", "micro_batch", low=1)
        check_range(self, "retrain", "warmup_epochs", "warmup_lr", "weight_decay", "eval_every_epochs", low=0)
        check_range(self, "retrain", "lr", "decay_epochs", "grad_clip", low=0, open_low=True)
        check_range(self, "retrain", "decay_rate", low=0, high=1, open_low=True)
        check_range(self, "retrain", "momentum", "dropout", "label_smoothing", low=0, high=0.9999)
        check_range(self, "retrain", "ema_decay", low=0, high=0.999999)
        if self.path is not None and self.model is not None:
            raise InputError(
                f"retrain.path {self.path!r} and retrain.model {self.model!r} name two networks; set one to null."
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """The final figure of a network.

    Attributes:
        split: images to evaluate on; `test` is an error where the data has no test part.
        path: null measures the retrained network; a path as text, `@file`, a published name or `best` measures that
            path with the supernet's weights instead.
        resolution: pixels a side of the images; null takes the one that the network was trained at.
        batch_size: images at once.
    """

    split: Literal["test", "validation"] = "test"
    path: str | None = None
    resolution: int | None = None
    batch_size: int = 500

    def __post_init__(self) -> None:
        check_types(self, "evaluate")
        check_range(self, "evaluate", "resolution", "batch_size", low=1)


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration of a run.

    Attributes:
        preset: the preset that it started from.
        seed: of everything random.
        device: `auto` takes CUDA where there is a GPU.
        threads: CPU threads; 0 means all cores found now, and that number is what is kept.
        backend: `auto` runs blocks as fused operations wherever there are some for the device, `fused` insists on them,
            `reference` runs torch's layers. Results agree within rounding.
        profile: so many steps of `train` and of `retrain` are profiled, each time the command runs, after three to warm
            up; the Chrome trace is `profile/<stage>.json` in the run folder. 0 profiles nothing.
        space: the search space.
        data: the images.
        train: training of the supernet.
        filter: the path filter.
        search: the search over paths.
        search_stage: how the search scores a path.
        retrain: training of the result.
        evaluate: the final figure.
        export: the files to export.
    """

    preset: str
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    backend: Literal["auto", "fused", "reference"] = "auto"
    profile: int = 0
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    search_stage: SearchStageConfig = field(default_factory=SearchStageConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        check_types(self, "")
        check_range(self, "", "seed", low=0, high=2**63 - 1)
        check_range(self, "", "threads", "profile", low=0)
        if self.threads == 0:
            object.__setattr__(self, "threads", cores())

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain nested mappings."""
        result: dict[str, Any] = to_mapping(self)
        return result

    def to_yaml(self) -> str:
        """The configuration as YAML text that `from_yaml` reads back to an equal one."""
        return presets.dump_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str, origin: str = "the configuration") -> RunConfig:
        """A complete or partial configuration from YAML text; missing keys take their defaults.

        Raises:
            InputError: not YAML, an unknown key, or a value that cannot be; `origin` names the text in the message.
        """
        return _build(_read(presets.parse_yaml(text, origin), origin))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ConfigSource:
    """What the user asked for on one command line; `load_config` says what the parts are."""

    preset: str | None = None
    file: Path | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)


def load_config(
    preset: str | None = None, config_file: Path | None = None, overrides: Mapping[str, object] | None = None
) -> RunConfig:
    """Make a configuration: preset, then file, then overrides, each laid over the one before.

    Args:
        preset: name of a preset; None takes the file's `preset` key, else `sample`.
        config_file: YAML file, complete or partial.
        overrides: dotted keys (`train.epochs`) and values.

    Raises:
        InputError: unknown preset, unreadable file, unknown key, wrong type or impossible value.
    """
    return resolve(ConfigSource(preset, config_file, overrides or {}))


def resolve(
    source: ConfigSource, stored: Mapping[str, object] | None = None, frozen: Collection[str] = ()
) -> RunConfig:
    """The configuration of a new run, or of an existing one with what this command line changes.

    The rule for an existing run: what a command line asks for is laid over what is stored; a section whose stage has
    started (`frozen`) may be repeated but not changed, save for `FREE`.

    Args:
        source: what the command line asks for.
        stored: the existing run's configuration (`RunConfig.to_dict`), or None for a new run.
        frozen: top-level keys that may no longer change, from `frozen_sections`.

    Raises:
        InputError: as `load_config`, or a frozen value would change.
    """
    file = {} if source.file is None else _read_file(source.file)
    asked = merge(file, _read(nest(source.overrides), "the command line"))
    if stored is None:
        preset = source.preset or file.get("preset") or presets.DEFAULT
        base = _read(presets.read(str(preset)), f"preset {preset}")
        return _build(merge(merge(base, asked), {"preset": preset}))
    if source.preset is not None:
        asked = merge(asked, {"preset": source.preset})
    before = RunConfig.to_dict(_build(_read(stored, "the run's config.yaml")))
    after = _build(merge(before, asked))
    old, new = flatten(before), flatten(after.to_dict())
    for key, value in new.items():
        if key.split(".", 1)[0] in frozen and key not in FREE and value != old[key]:
            raise InputError(
                f"{key} is {old[key]!r} in this run and its stage has started, so it cannot become {value!r}. "
                "Leave the option away to go on, or start a new run."
            )
    return after


def frozen_sections(started_stages: Iterable[str]) -> frozenset[str]:
    """Top-level keys that may no longer change once the named stages (`STAGE_SECTIONS`) have started."""
    return frozenset(section for stage in started_stages for section in STAGE_SECTIONS.get(stage, ()))


def _check_walk(name: str, walk: Walk, bn: BatchNorm) -> None:
    if walk == "layers" and bn == "recalibrate":
        raise InputError(f"{name}: layers is for batch statistics, not for recalibrate.")


def _read_file(file: Path) -> dict[str, Any]:
    return _read(presets.parse_yaml(presets.read_text(file, "configuration file"), str(file)), str(file))


def _read(mapping: object, origin: str) -> dict[str, Any]:
    """A checked partial configuration; a recipe that it names is laid under its own `retrain` values."""
    result = read_mapping(RunConfig, mapping, origin)
    recipe = result.get("retrain", {}).get("recipe")
    if recipe is not None:
        base = read_mapping(RetrainConfig, presets.read_recipe(recipe), f"recipe {recipe}", "retrain.", RunConfig)
        result["retrain"] = merge(base, result["retrain"])
    return result


def _build(mapping: Mapping[str, Any]) -> RunConfig:
    return build(RunConfig, {"preset": presets.DEFAULT, **mapping})
