"""`evaluate`: the final figures of a network, on images that no decision has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.config import ConfigSource
from greedynas_fast.data import Split
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import Interrupt, World, write_json
from greedynas_fast.stages.architecture import Architecture, PathNetwork
from greedynas_fast.stages.choice import chosen_path, inherited
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.model_files import architecture, load_model

STAGE = "evaluate"
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def evaluate(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Measure the retrained network of a run, or a path with the supernet's weights (`evaluate.path`).

    Args:
        run: the run folder.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `weights` (retrained or inherited), `split`, `resolution`, `images`, `top1`, `top5` (0..1), `loss`,
        `path` (digits, or timm:NAME), `text`, `params`, `macs`, `next`.

    Raises:
        InputError: nothing to measure, or no test part in the data.
    """
    # A question of the moment: its options must not change what `run` measures in the end.
    with open_run(run, source, reporter, keep=False) as context:
        return evaluate_stage(context)


def evaluate_stage(context: StageContext) -> dict[str, Any]:
    """`evaluate` on a run folder that is already open."""
    config = context.config.evaluate
    # The folder is rank 0's; the images are divided among all.
    subject = context.world.on_main(lambda: _subject(context.solo()))
    trained, measured = subject.trained, subject.measured
    data = context.data_at(measured.resolution)
    split = data.test if config.split == "test" else data.validation
    assert split is not None
    network = _Renormalised(subject.network, (data.mean, data.std), subject.statistics)
    context.say_backend(data=data)
    figures = measure(network.to(context.device), split, config.batch_size, context.device, context.world)
    context.say_notices(data=data)
    cost = measured.cost()
    result = {
        "weights": subject.weights,
        "split": config.split,
        "resolution": measured.resolution,
        **figures,
        "path": measured.key,
        "text": measured.text,
        "params": cost.params,
        "macs": cost.macs,
    }
    if subject.weights == "retrained" and measured.resolution == _headline_resolution(context, trained):
        write_json(context.run.result, {**result, "next": context.command("export")})
        context.final_row(STAGE, 0, result)
    return {"run": str(context.run.path), **result, "next": context.command("export")}


@torch.no_grad()
def measure(
    network: nn.Module,
    split: Split,
    batch_size: int,
    device: torch.device,
    world: World | None = None,
    interrupt: Interrupt | None = None,
) -> dict[str, Any]:
    """Loss, top-1 and top-5 accuracy (0..1) of a network in eval mode; a collective.

    Args:
        network: on `device`, the same on all ranks.
        split: the images.
        batch_size: images at once.
        device: where to compute.
        world: the processes that divide the batches among themselves; None for this one alone.
        interrupt: asks to stop, if it is asked.

    Returns:
        `images`, `top1`, `top5`, `loss`; the same on all ranks and for any number of them.

    Raises:
        KeyboardInterrupt: one of the ranks is asked to stop; raised on all.
    """
    network.eval()
    world = world or World()
    batches, stopped = [], False
    for images, labels in split.sequential(batch_size, rank=world.rank, num_ranks=world.size):
        if stopped := interrupt is not None and interrupt.requested:
            break
        logits = network(images.to(device))
        targets = labels.to(device)
        loss = float(functional.cross_entropy(logits.double(), targets, reduction="sum"))
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        batches.append((int(ranked[:, 0].sum()), int(ranked.any(dim=1).sum()), loss))
    # Batch by batch, so that the order of the sum does not depend on who had which.
    parts = [part for part in world.gather(None if stopped else batches) if part is not None]
    if interrupt is not None and len(parts) < world.size:
        raise interrupt.stopped()
    top1, top5, total = map(sum, zip(*(batch for part in parts for batch in part), strict=True))
    count = len(split)
    return {"images": count, "top1": top1 / count, "top5": top5 / count, "loss": total / count}


def _headline_resolution(context: StageContext, trained: Architecture) -> int:
    """The resolution of the run's own figure: what this one command asks for does not replace it."""
    stored = context.run.read_config().get("evaluate") or {}
    return int(stored.get("resolution") or trained.resolution)


class _Renormalised(nn.Module):
    """A network whose images were normalised by other statistics than those that it was trained with.

    Statistics that are computed from the images differ a little from resolution to resolution.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Statistics, trained: Statistics) -> None:
        super().__init__()
        self.network, self.same = network, given == trained
        (mean, std), (own_mean, own_std) = (torch.tensor(pair)[:, :, None, None] for pair in (given, trained))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images if self.same else images * self.scale + self.shift)
        return logits


class _Subject(NamedTuple):
    """What is to be measured.

    Attributes:
        network: on the CPU.
        trained: what it is at the resolution that it was trained for.
        measured: what it is at the one to measure at.
        weights: where they come from, `retrained` or `inherited`.
        statistics: of the images that it was trained with.
    """

    network: nn.Module
    trained: Architecture
    measured: Architecture
    weights: str
    statistics: Statistics


def _subject(context: StageContext) -> _Subject:
    config = context.config.evaluate
    if config.split == "test" and context.data.test is None:
        raise InputError(
            "evaluate: the data has no test part; --evaluate.split validation measures on the held-out one."
        )
    network, trained, weights, statistics = _network(context)
    measured = trained
    if config.resolution is not None:
        try:
            measured = trained.at(config.resolution)
        except InputError as error:
            raise InputError(f"evaluate.resolution: {error}") from None
    return _Subject(network.cpu(), trained, measured, weights, statistics)


def _network(context: StageContext) -> tuple[nn.Module, Architecture, str, Statistics]:
    """`network`, `trained`, `weights` and `statistics` of a `_Subject`; the network where it was made."""
    asked = context.config.evaluate.path
    if asked is not None:
        path, _ = chosen_path(context, asked)
        statistics = (context.data.mean, context.data.std)
        return inherited(context, path), PathNetwork(context.space, path), "inherited", statistics
    if not context.run.retrain_weights.is_file():
        raise InputError(
            f"{context.run.path}: no network is retrained here yet. First: {context.command('retrain')}, or measure a "
            "path with the supernet's weights: --evaluate.path best."
        )
    network, model = load_model(context.run.retrain)
    statistics = tuple(model["mean"] or context.data.mean), tuple(model["std"] or context.data.std)
    return network, architecture(model, context.run.retrain_config), "retrained", statistics
