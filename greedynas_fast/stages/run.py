"""`run`: train, search, retrain, evaluate, export and report, one after the other in one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greedynas_fast.config import ConfigSource
from greedynas_fast.errors import InputError
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.evaluate import evaluate_stage
from greedynas_fast.stages.export import export_model
from greedynas_fast.stages.report import write_report
from greedynas_fast.stages.retrain import retrain_stage
from greedynas_fast.stages.search import search_stage
from greedynas_fast.stages.train import train_stage


def run(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Do everything, or what is left of it: a stage that is done is not done again.

    Args:
        run: the run folder; made if there is none.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `text` (the path), `params`, `macs`, `supernet_accuracy` (validation), `top1`, `top5` (test), `images`,
        `report`, `next`.

    Raises:
        InputError: bad input of any stage.
        KeyboardInterrupt: stopped by a signal; the same command goes on.
    """
    with open_run(run, source, reporter, create=True) as context:
        if context.config.retrain.model is not None:
            raise InputError(
                f"retrain.model: `run` retrains what its search finds; a reference is trained by itself: "
                f"greedynas-fast retrain DIR --model {context.config.retrain.model}."
            )
        return run_stages(context)


def run_stages(context: StageContext) -> dict[str, Any]:
    """`run` on a run folder that is already open."""
    trained = train_stage(context)
    context.say(f"train: {trained['stop_reason']}, {trained['removed_operations']} operations merged")
    found = search_stage(context)
    context.say(f"search: {found['accuracy']:.1%} on validation images with {found['macs']:,} MACs: {found['text']}")
    retrain_stage(context)
    measured = evaluate_stage(context)
    context.say(f"evaluate: top-1 {measured['top1']:.1%} on {measured['images']} {measured['split']} images")
    report = context.world.on_main(lambda: _write_results(context))
    return {
        "run": str(context.run.path),
        **{key: measured[key] for key in ("text", "params", "macs")},
        "supernet_accuracy": found["accuracy"],
        **{key: measured[key] for key in ("top1", "top5", "images")},
        "report": str(report),
        "next": context.command("export", " --export.formats '[safetensors,onnx]'"),
    }


def _write_results(context: StageContext) -> Path:
    export_model(context.run.retrain, context.run.path / "export", context.config.export)
    return write_report(context.run.path, context.space)
