"""`retrain`: one network from scratch on all training images (Sec. 5.1, "Retraining")."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greedynas_fast.config import ConfigSource, resolve
from greedynas_fast.errors import InputError
from greedynas_fast.nn import use_backend
from greedynas_fast.runtime import CheckpointStore, Interrupt, MetricsLog, Progress, RunFolder, Waiting, seed_for
from greedynas_fast.stages.architecture import Architecture, TimmModel
from greedynas_fast.stages.choice import check_model, chosen_network
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.gradients import StepResult, image_dtype
from greedynas_fast.stages.model_files import save_network
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.selection import Selection, detached
from greedynas_fast.stages.train import one_ahead, raise_failure, to_device
from greedynas_fast.stages.window import Window

STAGE = "retrain"


def retrain(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Retrain the best path of a run, a given path or a model of timm; or go on where that was stopped.

    Args:
        run: the run folder; made if there is none and the network is given by hand.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `text` (the network), `params`, `macs`, `epochs`, `train_loss`, `train_accuracy`, with
        `retrain.eval_every_epochs` also `best_top1` and `best_epoch`; `model`, `next`.

    Raises:
        InputError: no path, bad input, a loss that is not finite.
        KeyboardInterrupt: stopped by a signal, after a checkpoint.
    """
    # A network given by hand needs no search, so retraining it may begin a run of its own.
    asked = None if RunFolder(run).has_config else resolve(source).retrain
    create = asked is not None and (asked.path is not None or asked.model is not None)
    if asked is not None:
        check_model(asked)  # before a folder is made
    with open_run(run, source, reporter, create=create) as context:
        return retrain_stage(context)


def retrain_stage(context: StageContext) -> dict[str, Any]:
    """`retrain` on a run folder that is already open."""
    training = _Retraining(context, *context.world.on_main(lambda: chosen_network(context.solo())))
    training.run()
    return context.world.on_main(training.finish)


class _Retraining:
    """The loop around a recipe: batches in, rows and checkpoints out."""

    def __init__(self, context: StageContext, architecture: Architecture, origin: str) -> None:
        self.context, self.architecture = context, architecture
        self.config = config = context.config.retrain
        self.data = context.data_at(architecture.resolution)
        self.images = self.data.full_train.in_dtype(image_dtype(config.precision))
        self.steps_per_epoch = len(self.images) // config.batch_size
        world = context.world
        if config.batch_size < world.size:
            raise world.same_error(
                f"retrain.batch_size: {config.batch_size} images cannot be divided over {world.size} processes."
            )
        if self.steps_per_epoch < 1:
            raise world.same_error(
                f"retrain.batch_size: {config.batch_size} is larger than the training set of {len(self.images)} images."
            )
        self.total = config.epochs * self.steps_per_epoch
        network = architecture.build(seed_for(context.config.seed, STAGE), config.dropout)
        use_backend(network, context.config.backend)
        self.network = network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = Recipe(self.network, config, self.steps_per_epoch, world)
        self.facts = {
            **context.model_facts(origin),
            # Where they are computed from the images, they depend on the resolution.
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "recipe": config.recipe,
            "epochs": config.epochs,
        }
        self.selection = Selection(context, architecture, self.recipe, self.data, self.facts)
        self.store = CheckpointStore(context.run.checkpoints(STAGE))
        self.step, self.window, self.began_s = 0, Window(), time.monotonic()
        self.waiting = Waiting()
        self.last: dict[str, float] = {}
        self._resume()

    def _resume(self) -> None:
        state = self.context.load_checkpoint(STAGE)
        if state is None:
            return
        if state["path"] != self.architecture.key:
            raise InputError(
                f"{self.store.folder} holds the retraining of path {state['path']}, not of {self.architecture.key}; "
                "retrain that in a run folder of its own."
            )
        self.recipe.load_state_dict(state["recipe"])
        if "selection" in state:  # checkpoints from before there were measurements have none
            self.selection.load_state_dict(state["selection"])
        self.step, self.last = state["step"], state["last"]
        self.window.load_state_dict(state["window"])
        self.images.load_state_dict(state.get("data", {}))  # checkpoints from before have none

    def run(self) -> None:
        """Train to the end."""
        context, start = self.context, self.step
        batches = self.images.batches(
            self.config.batch_size,
            start_step=start,
            num_steps=self.total - start,
            seed=seed_for(context.config.seed, STAGE, "batches") >> 1,
            augment=self.config.augment,
            rank=context.world.rank,
            num_ranks=context.world.size,
        )
        with (
            context.metrics() as metrics,
            context.progress(STAGE, self.total, start=start, unit_size=self.config.batch_size) as progress,
            Interrupt() as interrupt,
            self.store,
            context.profile(STAGE, progress) as profile_step,
        ):
            metrics.truncate_after(STAGE, start if start else -1)
            if start:
                progress.message(f"going on from step {start} of {self.total}")
            self._say_layers(progress)
            self.network.train()
            context.say_backend(progress, self.data)
            self._say_notices(metrics, progress)
            self._measure_if_due(metrics, progress, interrupt)  # a signal came in the midst of it
            alone = context.world.size == 1
            for (images, labels), failure in self.waiting.over(one_ahead(to_device(batches, context.device))):
                if alone and interrupt.requested:
                    self._save(metrics)
                    self.store.flush()
                    raise interrupt.stopped()
                result = self._train_step(images, labels, interrupt.requested or failure is not None)
                self.window.add(result.loss, result.correct, result.images)
                self._after_step(metrics, progress, interrupt)
                profile_step()
                if failure is not None or (result.stop and not alone):  # ranks know it of each other, so all stop here
                    self._save(metrics)
                    self.store.flush()
                    raise_failure(context.world, failure)
                    raise interrupt.stopped()
            self.store.flush()
            if any(context.world.gather(interrupt.requested)):  # too late for the last step to tell it
                raise interrupt.stopped()

    def finish(self) -> dict[str, Any]:
        """Write the network to keep, with all that is needed to rebuild it."""
        context, cost = self.context, self.architecture.cost()
        measured, best = self.selection.last, self.selection.best
        save_network(
            detached(self.architecture, self.recipe.result),
            context.run.retrain,
            self.architecture,
            {**self.facts, "accuracy": None if measured is None else measured["top1"]},
        )
        summary = {
            "text": self.architecture.text,
            "params": cost.params,
            "macs": cost.macs,
            "epochs": self.config.epochs,
            "train_loss": self.last.get("loss"),
            "train_accuracy": self.last.get("accuracy"),
            **({} if best is None else {"best_top1": best["top1"], "best_epoch": best["epoch"]}),
        }
        context.final_row(STAGE, self.total, summary)
        return {
            "run": str(context.run.path),
            **summary,
            "model": str(context.run.retrain_weights),
            "next": context.command("evaluate"),
        }

    def _say_layers(self, progress: Progress) -> None:
        if isinstance(self.architecture, TimmModel):
            progress.message("layers: timm's, as they are")
        elif self.config.precision == "fp16":
            progress.message("blocks: torch's layers (there are no fused operations of fp16)")
        else:
            self.context.say_layers(progress)

    def _train_step(self, images: Tensor, labels: Tensor, stop: bool) -> StepResult:
        # Seeded by the step, dropout does not depend on where the run was resumed.
        seed = seed_for(self.context.config.seed, STAGE, "dropout", self.step)
        result = self.recipe.gradient(images, labels, seed, stop=stop)
        if not torch.isfinite(result.loss):
            raise self.context.world.same_error(
                f"retrain: the loss is {result.loss.item()} at step {self.step + 1} "
                f"(epoch {self.step // self.steps_per_epoch}); a smaller retrain.lr may help. "
                f"{self._last_checkpoint()}"
            )
        self.recipe.step(self.step)
        self.step += 1
        return result

    def _last_checkpoint(self) -> str:
        steps = self.store.steps()
        if not steps:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.store.path(steps[-1])}."

    def _after_step(self, metrics: MetricsLog, progress: Progress, interrupt: Interrupt) -> None:
        step, config = self.step, self.config
        epoch = step / self.steps_per_epoch
        if step % config.log_every_steps == 0 or step == self.total:
            self.last = self.window.means()
            metrics.append(
                {
                    "stage": STAGE,
                    "kind": "step",
                    "step": step,
                    "epoch": epoch,
                    **self.last,
                    "lr": self.recipe.lr(),
                    "images_per_s": self.window.images_per_s(),
                    "data_wait": self.waiting.share(),
                    "elapsed_s": time.monotonic() - self.began_s,
                }
            )
            self.window = Window()
            self._say_notices(metrics, progress)
            progress.update(step, epoch=epoch, loss=self.last["loss"], acc=self.last["accuracy"])
        measured = self._measure_if_due(metrics, progress, interrupt)
        if not measured and (step % config.checkpoint_every_steps == 0 or step == self.total):
            self._save(metrics)

    def _measure_if_due(self, metrics: MetricsLog, progress: Progress, interrupt: Interrupt) -> bool:
        """Measure if this is the step for it and it is not done yet; whether it was.

        Saves afterwards, so that it is not done twice and the best network is one that the checkpoint knows. A signal
        ends it, after a checkpoint that has it to do.
        """
        step, epoch = self.step, self.step / self.steps_per_epoch
        every = self.config.eval_every_epochs * self.steps_per_epoch
        done = self.selection.last is not None and self.selection.last["step"] == step
        if not every or not step or done or (step % every and step != self.total):
            return False
        self._check_weights()
        try:
            row = self.selection.measure(step, epoch, interrupt)
        except KeyboardInterrupt:
            self._save(metrics)
            self.store.flush()
            raise
        metrics.append({"stage": STAGE, "kind": "eval", **row})
        progress.message(f"epoch {epoch:g}: top-1 {row['top1']:.1%} ({row['raw_top1']:.1%} without the average)")
        self.window.restart_clock()
        self._save(metrics)
        return True

    def _say_notices(self, metrics: MetricsLog, progress: Progress) -> None:
        try:
            self.context.say_notices(progress, self.data)
        except InputError:
            self._save(metrics)
            raise

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.network.parameters()):
            raise self.context.world.same_error(
                f"retrain: weights are not finite after step {self.step}; a smaller retrain.lr may help. "
                f"{self._last_checkpoint()}"
            )

    def _save(self, metrics: MetricsLog) -> None:
        """A checkpoint, after all that it counts on is on the disk."""
        self._check_weights()
        if not self.context.world.is_main:
            return
        metrics.sync()
        state = {
            "space": self.context.space.fingerprint(),
            "path": self.architecture.key,
            "step": self.step,
            "last": self.last,
            "window": self.window.state_dict(),
            "data": self.images.state_dict(self.step),
            "recipe": self.recipe.state_dict(),
            "selection": self.selection.state_dict(),
        }
        self.store.save_soon(self.step, state)
