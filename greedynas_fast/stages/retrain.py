"""`retrain`: one network from scratch on all training images (Sec. 5.1, "Retraining")."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from greedynas_fast.config import ConfigSource, resolve
from greedynas_fast.errors import InputError
from greedynas_fast.nn import use_backend
from greedynas_fast.runtime import CheckpointStore, Interrupt, MetricsLog, Progress, RunFolder, seed_for
from greedynas_fast.stages.choice import chosen_path
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.model_files import save_model
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.train import to_device
from greedynas_fast.stages.window import Window
from greedynas_fast.supernet import Network

STAGE = "retrain"


def retrain(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Retrain the best path of a run, a path given by hand or a published one; or go on where that was stopped.

    Args:
        run: the run folder; made if there is none and the path is given by hand.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `text` (the path), `params`, `macs`, `epochs`, `train_loss`, `train_accuracy`, `model`, `next`.

    Raises:
        InputError: no path, bad input, a loss that is not finite.
        KeyboardInterrupt: stopped by a signal, after a checkpoint.
    """
    # A path given by hand needs no search, so retraining it may begin a run of its own.
    create = not RunFolder(run).has_config and resolve(source).retrain.path is not None
    with open_run(run, source, reporter, create=create) as context:
        return retrain_stage(context)


def retrain_stage(context: StageContext) -> dict[str, Any]:
    """`retrain` on a run folder that is already open."""
    path, origin = chosen_path(context, context.config.retrain.path)
    training = _Retraining(context, path)
    training.run()
    return training.finish(origin)


class _Retraining:
    """The loop around a recipe: batches in, rows and checkpoints out."""

    def __init__(self, context: StageContext, path: npt.NDArray[np.uint8]) -> None:
        self.context, self.space, self.path = context, context.space, path
        self.config = config = context.config.retrain
        self.steps_per_epoch = len(context.data.full_train) // config.batch_size
        if self.steps_per_epoch < 1:
            raise InputError(
                f"retrain.batch_size: {config.batch_size} is larger than the training set of "
                f"{len(context.data.full_train)} images."
            )
        self.total = config.epochs * self.steps_per_epoch
        network = Network(self.space, path, seed=seed_for(context.config.seed, STAGE))
        network.head.dropout.p = config.dropout  # type: ignore[union-attr]
        use_backend(network, context.config.backend)
        self.network = network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = Recipe(self.network, config, self.steps_per_epoch)
        self.store = CheckpointStore(context.run.checkpoints(STAGE))
        self.step, self.window, self.began_s = 0, Window(), time.monotonic()
        self.last: dict[str, float] = {}
        self._resume()

    def _resume(self) -> None:
        state = self.context.load_checkpoint(STAGE)
        if state is None:
            return
        digits = self.space.format(self.path, "digits")
        if state["path"] != digits:
            raise InputError(
                f"{self.store.folder} holds the retraining of path {state['path']}, not of {digits}; "
                "retrain that in a run folder of its own."
            )
        self.recipe.load_state_dict(state["recipe"])
        self.step, self.last = state["step"], state["last"]
        self.window.load_state_dict(state["window"])

    def run(self) -> None:
        """Train to the end."""
        context, start = self.context, self.step
        batches = context.data.full_train.batches(
            self.config.batch_size,
            start_step=start,
            num_steps=self.total - start,
            seed=seed_for(context.config.seed, STAGE, "batches") >> 1,
            augment=self.config.augment,
        )
        with (
            context.metrics() as metrics,
            context.progress(STAGE, self.total, start=start, unit_size=self.config.batch_size) as progress,
            Interrupt() as interrupt,
        ):
            metrics.truncate_after(STAGE, start if start else -1)
            if start:
                progress.message(f"going on from step {start} of {self.total}")
            context.say_layers(progress)
            self.network.train()
            for images, labels in to_device(batches, context.device):
                if interrupt.requested:
                    self._save(metrics)
                    raise KeyboardInterrupt
                loss, correct = self._train_step(images, labels)
                self.window.add(loss, correct, len(labels))
                self._after_step(metrics, progress)
            if interrupt.requested:
                raise KeyboardInterrupt

    def finish(self, origin: str) -> dict[str, Any]:
        """Write the network to keep, with all that is needed to rebuild it."""
        context, cost = self.context, self.space.cost(self.path)
        context.run.retrain.mkdir(exist_ok=True)
        network = Network(self.space, self.path)
        network.load_state_dict({name: value.cpu() for name, value in self.recipe.result.state_dict().items()})
        save_model(
            network.eval(),
            context.run.retrain,
            space=self.space,
            path=self.path,
            extra={
                **context.model_facts(origin),
                "recipe": self.config.recipe,
                "epochs": self.config.epochs,
            },
        )
        summary = {
            "text": self.space.format(self.path),
            "params": cost.params,
            "macs": cost.macs,
            "epochs": self.config.epochs,
            "train_loss": self.last.get("loss"),
            "train_accuracy": self.last.get("accuracy"),
        }
        context.final_row(STAGE, self.total, summary)
        return {
            "run": str(context.run.path),
            **summary,
            "model": str(context.run.retrain_weights),
            "next": context.command("evaluate"),
        }

    def _train_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Dropout draws from the global generator: seeded by the step, it does not depend on where the run was resumed.
        torch.manual_seed(seed_for(self.context.config.seed, STAGE, "dropout", self.step))
        logits = self.network(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if not torch.isfinite(loss):
            raise InputError(
                f"retrain: the loss is {loss.item()} at step {self.step + 1} "
                f"(epoch {self.step // self.steps_per_epoch}); a smaller retrain.lr may help. "
                f"{self._last_checkpoint()}"
            )
        self.recipe.step(self.step, loss)
        self.step += 1
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _last_checkpoint(self) -> str:
        steps = self.store.steps()
        if not steps:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.store.path(steps[-1])}."

    def _after_step(self, metrics: MetricsLog, progress: Progress) -> None:
        step, config = self.step, self.config
        if step % config.log_every_steps == 0 or step == self.total:
            self.last = self.window.means()
            epoch = step / self.steps_per_epoch
            metrics.append(
                {
                    "stage": STAGE,
                    "kind": "step",
                    "step": step,
                    "epoch": epoch,
                    **self.last,
                    "lr": self.recipe.lr(),
                    "images_per_s": self.window.images_per_s(),
                    "elapsed_s": time.monotonic() - self.began_s,
                }
            )
            self.window = Window()
            progress.update(step, epoch=epoch, loss=self.last["loss"], acc=self.last["accuracy"])
        if step % config.checkpoint_every_steps == 0 or step == self.total:
            self._save(metrics)

    def _save(self, metrics: MetricsLog) -> None:
        """A checkpoint, after all that it counts on is on the disk."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.network.parameters()):
            raise InputError(
                f"retrain: weights are not finite after step {self.step}; a smaller retrain.lr may help. "
                f"{self._last_checkpoint()}"
            )
        metrics.sync()
        state = {
            "space": self.space.fingerprint(),
            "path": self.space.format(self.path, "digits"),
            "step": self.step,
            "last": self.last,
            "window": self.window.state_dict(),
            "recipe": self.recipe.state_dict(),
        }
        self.store.save(self.step, state)
