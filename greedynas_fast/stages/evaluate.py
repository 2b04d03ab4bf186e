"""`evaluate`: the final figures of a network, on images that no decision has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from greedynas_fast.config import ConfigSource
from greedynas_fast.data import Split
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import write_json
from greedynas_fast.stages.choice import chosen_path, inherited
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.model_files import load_model
from greedynas_fast.supernet import Network

STAGE = "evaluate"


def evaluate(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Measure the retrained network of a run, or a path with the supernet's weights (`evaluate.path`).

    Args:
        run: the run folder.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `weights` (retrained or inherited), `split`, `images`, `top1`, `top5` (0..1), `loss`, `text`, `params`,
        `macs`, `next`.

    Raises:
        InputError: nothing to measure, or no test part in the data.
    """
    # A question of the moment: its options must not change what `run` measures in the end.
    with open_run(run, source, reporter, keep=False) as context:
        return evaluate_stage(context)


def evaluate_stage(context: StageContext) -> dict[str, Any]:
    """`evaluate` on a run folder that is already open."""
    config = context.config.evaluate
    split = context.data.test if config.split == "test" else context.data.validation
    if split is None:
        raise InputError(
            "evaluate: the data has no test part; --evaluate.split validation measures on the held-out one."
        )
    network, weights = _network(context)
    figures = measure(network.to(context.device), split, config.batch_size, context.device)
    cost = context.space.cost(network.path)
    result = {
        "weights": weights,
        "split": config.split,
        **figures,
        "path": context.space.format(network.path, "digits"),
        "text": context.space.format(network.path),
        "params": cost.params,
        "macs": cost.macs,
    }
    if weights == "retrained":
        write_json(context.run.result, {**result, "next": context.command("export")})
        context.final_row(STAGE, 0, result)
    return {"run": str(context.run.path), **result, "next": context.command("export")}


@torch.no_grad()
def measure(network: nn.Module, split: Split, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Loss, top-1 and top-5 accuracy (0..1) of a network in eval mode.

    Args:
        network: on `device`.
        split: the images.
        batch_size: images at once.
        device: where to compute.
    """
    network.eval()
    loss, top1, top5 = 0.0, 0, 0
    for images, labels in split.sequential(batch_size):
        logits = network(images.to(device))
        targets = labels.to(device)
        loss += float(functional.cross_entropy(logits.double(), targets, reduction="sum"))
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.any(dim=1).sum())
    count = len(split)
    return {"images": count, "top1": top1 / count, "top5": top5 / count, "loss": loss / count}


def _network(context: StageContext) -> tuple[Network, str]:
    asked = context.config.evaluate.path
    if asked is not None:
        path, _ = chosen_path(context, asked)
        return inherited(context, path), "inherited"
    if not context.run.retrain_weights.is_file():
        raise InputError(
            f"{context.run.path}: no network is retrained here yet. First: {context.command('retrain')}, or measure a "
            "path with the supernet's weights: --evaluate.path best."
        )
    return load_model(context.run.retrain)[0], "retrained"
