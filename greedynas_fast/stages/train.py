"""`train`: Algorithm 1 on a run folder, with its logs, checkpoints and continuation."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.config import ConfigSource, RunConfig
from greedynas_fast.data import DataBundle, Split
from greedynas_fast.errors import InputError, LostRankError
from greedynas_fast.nn import local_norms
from greedynas_fast.runtime import (
    CheckpointStore,
    Interrupt,
    LineLog,
    MetricsLog,
    Progress,
    RunFolder,
    Waiting,
    World,
    atomic_write,
    seed_for,
    write_json,
)
from greedynas_fast.spaces.pathtext import digits_text
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.context import Reporter, StageContext, open_run
from greedynas_fast.stages.filter_update import FilterUpdate, Poll
from greedynas_fast.stages.gradients import image_dtype
from greedynas_fast.stages.schedule import Schedule
from greedynas_fast.stages.window import Window
from greedynas_fast.supernet import MemoryBound, Supernet, score_paths

T = TypeVar("T")

STAGE = "train"
# Images a forward pass when paths are scored: enough for batch statistics, small enough for activations at 224 pixels.
CALIBRATION_BATCH = 250


def train(run: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """Train a supernet in a run folder, or go on where it was stopped.

    Args:
        run: the run folder; made if there is none.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        `run`, `steps`, `epochs`, `stop_reason`, `updates`, `removed_operations`, `agreement`, `next`.

    Raises:
        InputError: bad input, a run in use, a loss that is not finite.
        KeyboardInterrupt: stopped by a signal, after a checkpoint.
    """
    with open_run(run, source, reporter, create=True) as context:
        return train_stage(context)


def train_stage(context: StageContext) -> dict[str, Any]:
    """`train` on a run folder that is already open."""
    algorithm, batch_seed = build(context), seed_for(context.config.seed, "batches") >> 1
    state = context.load_checkpoint(STAGE)
    if state is not None:
        algorithm.load_state_dict(state)
    if not _finished(algorithm):
        _Training(context, algorithm, batch_seed).run(state)
    figures = _figures(algorithm)
    context.final_row(STAGE, algorithm.step, figures)
    return {"run": str(context.run.path), **figures, "next": context.command("search")}


def build(context: StageContext) -> Algorithm1:
    """Algorithm 1 at its beginning, for the run's space, data and configuration."""
    config, data = context.config, context.data
    steps_per_epoch = len(data.train) // config.train.batch_size
    # Before `context.space`, which writes a file of the run: a run that cannot begin can still be given other options.
    if steps_per_epoch < 1:
        raise context.world.same_error(
            f"train.batch_size: {config.train.batch_size} is larger than the training part of the data, "
            f"{len(data.train)} images."
        )
    if config.train.batch_size < context.world.size:
        raise context.world.same_error(
            f"train.batch_size: {config.train.batch_size} images cannot be divided over {context.world.size} processes."
        )
    schedule = Schedule(config.train, steps_per_epoch)
    score = scorer(config, data, context.device, context.world)
    return Algorithm1(context.space, config, schedule, score, context.device, context.world)


def scorer(
    config: RunConfig, data: DataBundle, device: torch.device, world: World
) -> Callable[[Supernet, npt.NDArray[np.uint8], Poll], npt.NDArray[np.float64]]:
    """The function that gives validation losses of paths (Alg. 1, line 9), on a fixed validation subset.

    Each rank scores its share of the paths. As a path's loss does not depend on the others, nothing depends on how many
    ranks there are.
    """
    train = config.train
    part = data.validation.subset(min(train.score_images, len(data.validation)), config.seed)
    images, labels = (tensor.to(device) for tensor in part.tensors())
    bound = MemoryBound(train.score_memory_mb * 10**6)

    def score(net: Supernet, paths: npt.NDArray[np.uint8], poll: Poll = None) -> npt.NDArray[np.float64]:
        bn = train.score_bn
        batches = None
        if bn == "recalibrate":
            batches = calibration(data.train, config.search_stage.calibration_images, config.seed, device)
        own = paths[world.share(len(paths))]
        with local_norms(net):
            scores = score_paths(
                net,
                own,
                images,
                labels,
                batch_size=train.score_batch_size,
                bn=bn,
                calibration=batches,
                memory=bound,
                poll=poll,
                walk=train.score_walk,
            )
        return np.concatenate(world.gather(scores.loss))

    return score


def calibration(split: Split, num_images: int, seed: int, device: torch.device) -> list[Tensor]:
    """A fixed, class-balanced set of training images for BN statistics, in batches on the device."""
    part = split.subset(min(num_images, len(split)), seed)
    return [images.to(device) for images, _ in part.sequential(CALIBRATION_BATCH)]


def to_device(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device, copied while it computes."""
    for batch in batches:
        # From memory that may be paged out, a copy keeps this process waiting until the device gets to it.
        images, labels = (part.pin_memory() if _travels(part, device) else part for part in batch)
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _travels(part: Tensor, device: torch.device) -> bool:
    """Whether a tensor is copied from host memory to a GPU."""
    return device.type == "cuda" and part.device.type == "cpu"


def one_ahead(batches: Iterable[T]) -> Iterator[tuple[T, Exception | None]]:
    """Each batch with what making the next one has raised (a file has gone), if it has; then the end.

    So there is a step left in which a rank can tell the others, and after it all save what is trained.

    Raises:
        Exception: what making the first batch raises.
    """
    iterator = iter(batches)
    batch, more = next(iterator, None), True
    while batch is not None and more:
        following, failure = None, None
        try:
            following = next(iterator, None)
        except Exception as error:
            failure = error
        yield batch, failure
        batch, more = following, failure is None


def raise_failure(world: World, failure: Exception | None) -> None:
    """Raise on all ranks what making a batch has raised on one of them; a collective.

    Args:
        world: the processes of the run.
        failure: this rank's, of `one_ahead`.
    """
    texts = world.gather(None if failure is None else str(failure))
    if failure is not None and (world.size == 1 or not isinstance(failure, InputError)):
        raise failure
    for rank, text in enumerate(texts):
        if text is not None:
            raise world.same_error(f"rank {rank} of {world.size}: {text}")


def _finished(algorithm: Algorithm1) -> bool:
    return algorithm.stop_reason is not None and not algorithm.update_due


class _Training:
    """The loop around Algorithm 1: batches in, rows and checkpoints out."""

    def __init__(self, context: StageContext, algorithm: Algorithm1, batch_seed: int) -> None:
        self.context, self.algorithm, self.batch_seed = context, algorithm, batch_seed
        self.config = context.config.train
        self.images = context.data.train.in_dtype(image_dtype(self.config.precision))
        self.store = CheckpointStore(context.run.checkpoints(STAGE))
        self.window, self.waiting = Window(), Waiting()
        self.failure: Exception | None = None
        self.began_s = time.monotonic()

    def run(self, state: dict[str, Any] | None) -> None:
        """Train to the end; `state` is the checkpoint that the algorithm was loaded from."""
        algorithm, run = self.algorithm, self.context.run
        if state is not None:
            self.window.load_state_dict(state["window"])
            self.images.load_state_dict(state.get("data", {}))  # checkpoints from before have none
        total, start = algorithm.schedule.total_steps, algorithm.step
        with (
            self.context.metrics() as metrics,
            LineLog(run.paths) as path_log,
            self.context.progress(STAGE, total, start=start, unit_size=self.config.batch_size) as progress,
            Interrupt() as interrupt,
            self.store,
            self.context.profile(STAGE, progress) as self.profile_step,
        ):
            num_paths = start * algorithm.paths_per_step
            self.context.world.on_main(
                lambda: _cut_back(
                    metrics, path_log, start, num_paths, continued=state is not None, updates=algorithm.update_due
                )
            )
            if state is not None:
                progress.message(f"going on from step {start} of {total}")
            self.context.say_layers(progress)
            self.context.say_backend(progress)
            if not run.held_out.is_file():
                atomic_write(run.held_out, "".join(f"{name}\n" for name in self.context.data.held_out()).encode())
            self._say_notices(metrics, path_log, progress)
            while not _finished(algorithm):
                if algorithm.update_due:
                    # An update takes minutes: whatever ends it finds the steps before it saved.
                    self._save(metrics, path_log)
                    self._update(metrics, progress, interrupt)
                    self._save(metrics, path_log)
                elif self._train_to_next_update(metrics, path_log, progress, interrupt):
                    self._save(metrics, path_log)
                    self.store.flush()
                    raise_failure(self.context.world, self.failure)
                    raise interrupt.stopped()
            self._save(metrics, path_log)
            self.store.flush()
            progress.message(f"sampling and filter inference took {algorithm.sampling.summary()}")
            if algorithm.scoring.elapsed_s > 0:  # without a filter, no path is scored here
                progress.message(f"scoring paths took {algorithm.scoring.summary()}")
            if any(self.context.world.gather(interrupt.requested)):
                raise interrupt.stopped()

    def _train_to_next_update(
        self, metrics: MetricsLog, path_log: LineLog, progress: Progress, interrupt: Interrupt
    ) -> bool:
        """Steps up to the next filter update or the end; True if a signal or a batch's failure asks to stop before."""
        algorithm = self.algorithm
        count = algorithm.schedule.next_update(algorithm.step) - algorithm.step
        batches = self.images.batches(
            self.config.batch_size,
            start_step=algorithm.step,
            num_steps=count,
            seed=self.batch_seed,
            augment=self.config.augment,
            rank=self.context.world.rank,
            num_ranks=self.context.world.size,
        )
        alone = self.context.world.size == 1
        ahead = one_ahead(to_device(batches, self.context.device))
        for (images, labels), failure in self.waiting.over(ahead):
            if alone and interrupt.requested:
                return True
            try:
                paths = algorithm.next_paths()
                self.failure, stop = failure, interrupt.requested or failure is not None
                result = algorithm.train_step(images, labels, stop=stop)
            except InputError as error:
                raise self.context.world.same_error(f"{error} {self._last_checkpoint()}") from None
            path_log.append(map(digits_text, paths.tolist()))
            self.window.add(result.loss, result.correct, result.images)
            self._after_step(metrics, path_log, progress)
            self.profile_step()
            if failure is not None or (result.stop and not alone):  # ranks know it of each other, so all stop here
                return True
        return False

    def _after_step(self, metrics: MetricsLog, path_log: LineLog, progress: Progress) -> None:
        algorithm, config = self.algorithm, self.config
        step = algorithm.step
        if step % config.log_every_steps == 0 or step == algorithm.schedule.total_steps:
            row = {
                "stage": STAGE,
                "kind": "step",
                "step": step,
                "epoch": step / algorithm.schedule.steps_per_epoch,
                **self.window.means(),
                "lr": algorithm.schedule.lr(step - 1),
                "q": algorithm.q,
                "acceptance": algorithm.acceptance,
                "fallbacks": algorithm.fallbacks,
                "images_per_s": self.window.images_per_s(),
                "data_wait": self.waiting.share(),
                "elapsed_s": time.monotonic() - self.began_s,
            }
            metrics.append(row)
            self.window = Window()
            self._say_notices(metrics, path_log, progress)
            progress.update(
                step,
                loss=row["loss"],
                acc=row["accuracy"],
                q=algorithm.q,
                acceptance=algorithm.acceptance,
                kappa=algorithm.kappa,
                merged=algorithm.removed,
            )
        if step % config.checkpoint_every_steps == 0 and not algorithm.update_due:  # that saves
            self._save(metrics, path_log)

    def _update(self, metrics: MetricsLog, progress: Progress, interrupt: Interrupt) -> None:
        def poll() -> None:
            if interrupt.requested:
                raise interrupt.stopped()

        algorithm = self.algorithm
        progress.message(f"scoring {self.config.score_paths} paths and training filter {algorithm.updates + 1}")
        try:
            update = algorithm.update_filter(poll)
        except LostRankError:
            poll()  # torchrun sends a signal to all ranks: another one has left a moment sooner
            raise
        epoch = algorithm.schedule.epoch(algorithm.step)
        row = {"stage": STAGE, "kind": "update", "step": algorithm.step, "epoch": epoch, **update.row}
        _write_update(self.context.run, update, row)
        metrics.append(row)
        self.window.restart_clock()
        self.waiting.restart()
        progress.message(_sentence(update, epoch))

    def _save(self, metrics: MetricsLog, path_log: LineLog) -> None:
        """A checkpoint, after all that it counts on is on the disk."""
        # The loss tells only of the operations on the path: one that has overflowed may not be sampled for long.
        if not torch.isfinite(self.algorithm.bank.data).all():
            raise self.context.world.same_error(
                f"train: weights are not finite after step {self.algorithm.step}; a smaller train.lr or "
                f"train.grad_clip may help. {self._last_checkpoint()}"
            )
        if not self.context.world.is_main:
            return
        metrics.sync()
        path_log.sync()
        step = self.algorithm.step
        loop = {"window": self.window.state_dict(), "data": self.images.state_dict(step)}
        self.store.save_soon(step, {**self.algorithm.state_dict(), **loop})

    def _say_notices(self, metrics: MetricsLog, path_log: LineLog, progress: Progress) -> None:
        try:
            self.context.say_notices(progress)
        except InputError:
            self._save(metrics, path_log)
            raise

    def _last_checkpoint(self) -> str:
        steps = self.store.steps()
        if not steps:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.store.path(steps[-1])}."


def _cut_back(
    metrics: MetricsLog, path_log: LineLog, step: int, num_paths: int, *, continued: bool, updates: bool
) -> None:
    """Forget what was logged beyond the checkpoint; other ranks than 0 have logs of this process's steps alone.

    With `updates`, an update that was logged at this step too: it is yet to be done.
    """
    metrics.truncate_after(STAGE, step if continued else -1, kind="update" if updates else None)
    path_log.truncate_to(num_paths)


def _write_update(run: RunFolder, update: FilterUpdate, row: dict[str, Any]) -> None:
    """`filter/update-NNN.npz` and `.json`; a pure function of the run, so a repeated update writes the same bytes."""
    arrays, text = run.filter_update(row["update"])
    arrays.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, similarity=update.similarity, allowed=update.allowed)
    atomic_write(arrays, buffer.getvalue())
    write_json(text, row)


def _sentence(update: FilterUpdate, epoch: int) -> str:
    row = update.row
    if row["collapsed"]:
        return (
            f"epoch {epoch}: the filter has learned nothing ({update.trained.report.reason}); paths stay uniform until "
            "the next update"
        )
    auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
    steady = "" if row["agreement"] is None else f", agreement {row['agreement']:.3f}, kappa {row['kappa']:.3f}"
    freed = f", parameter bank {row['bank_mb_before']:.3g} -> {row['bank_mb']:.3g} MB" if row["merges"] else ""
    return (
        f"epoch {epoch}: q {row['q']:.3f}, filter AUROC {auroc}{steady}, "
        f"{len(row['merges'])} operations merged ({row['removed_total']} in all){freed}"
    )


def _figures(algorithm: Algorithm1) -> dict[str, Any]:
    return {
        "steps": algorithm.step,
        "epochs": algorithm.schedule.epoch(algorithm.step),
        "stop_reason": algorithm.stop_reason,
        "updates": algorithm.updates,
        "removed_operations": algorithm.removed,
        "kappa": algorithm.kappa,
    }
