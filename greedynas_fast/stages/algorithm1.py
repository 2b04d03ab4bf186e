"""Algorithm 1: a supernet trained on the paths that a learned filter lets through, or on those of a baseline.

Everything that a step depends on is in `state_dict`; all randomness is a pure function of the run's seed and a counter
(step, update, proposal), so a training that goes on from any checkpoint ends with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.config import RunConfig
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterEngine, TrainedFilter
from greedynas_fast.nn import synchronise_norms, use_backend
from greedynas_fast.runtime import Stopwatch, World, all_reduce, seed_for
from greedynas_fast.sampling import FairSampler, FilterSampler, RejectionError, UniformSampler, group_size
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.filter_update import TRAINING_STREAM, FilterUpdate, FilterUpdater, Poll
from greedynas_fast.stages.gradients import Gradients, StepResult
from greedynas_fast.stages.loss_scale import LossScale
from greedynas_fast.stages.schedule import Schedule
from greedynas_fast.supernet import BankSGD, ParameterBank, Supernet, compact, load_checkpoint

Paths = npt.NDArray[np.uint8]


class Algorithm1:
    """The state of a supernet training and its two moves, `train_step` and `update_filter`.

    Attributes:
        net: the supernet; operations that were merged into others have left it.
        bank: its parameters; a new one after each update that merges operations.
        optimizer: of the bank, new with it.
        schedule: when what is done.
        step: steps done.
        updates: filter updates done.
        allowed: operations still in the space, bool [L, N].
        trained: the current filter, None in warm-up.
        acceptance: share of the proposals that passed the filter for the current queue; None without a filter.
        fallbacks: paths of the current queue that were taken although the filter calls them weak.
        kappa: of the last update that had one.
        stop_reason: why the training is over; None while it is not.
        sampling: the time that drawing paths and comparing filters took in this process.
        scoring: the time that scoring paths for updates took in this process.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: RunConfig,
        schedule: Schedule,
        score: Callable[[Supernet, Paths, Poll], npt.NDArray[np.float64]],
        device: torch.device,
        world: World | None = None,
    ) -> None:
        """An untrained supernet, the same on all ranks.

        Args:
            space: the search space.
            config: the run's configuration; `train`, `filter` and `seed` are used.
            schedule: when what is done.
            score: validation losses [m] of paths [m, L] on a supernet; calls its last argument now and then.
            device: where to train.
            world: the processes that train it together; None for this one alone.
        """
        self.space, self.config, self.schedule, self.device = space, config, schedule, device
        self.world = world or World()
        self.net = Supernet(space, seed=seed_for(config.seed, "supernet"))
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        use_backend(self.net, config.backend)
        if config.train.sync_bn and self.world.size > 1:
            synchronise_norms(self.net, all_reduce)
        self.net.train()  # once: walking all modules at every step would cost more than a small step itself
        self._loss_scale = LossScale() if config.train.precision == "fp16" else None
        self._gradients: Gradients | None = None
        self._use(ParameterBank(self.net))
        self.sampling, self.scoring = Stopwatch(), Stopwatch()
        self._scorer = score
        self.updater = FilterUpdater(
            space,
            config.train,
            config.filter,
            config.seed,
            self._score,
            self.sampling,
            self.world,
        )
        self.step = 0
        self.updates = 0
        self.allowed = space.allowed
        self.trained: TrainedFilter | None = None
        self.acceptance: float | None = None
        self.fallbacks = 0
        self.kappa: float | None = None
        self.stop_reason: str | None = None
        self._queue: Paths = np.empty((0, space.num_layers), dtype=np.uint8)

    @property
    def q(self) -> float | None:
        """Weak-path prior of the current filter; None in warm-up."""
        return None if self.trained is None else self.trained.report.q

    @property
    def removed(self) -> int:
        """Operations merged away so far."""
        return int(self.space.allowed.sum() - self.allowed.sum())

    @property
    def paths_per_step(self) -> int:
        """Paths that a step trains: 1, or those of a fair group."""
        return group_size(self.allowed) if self.config.train.sampler == "fair" else 1

    @property
    def bank_mb(self) -> float:
        """Parameters, gradients and the optimizer's state in megabytes (10^6 bytes)."""
        held = (self.bank.data, self.bank.grad, *self.optimizer.state_dict().values())
        return sum(tensor.nbytes for tensor in held) / 1e6

    @property
    def update_due(self) -> bool:
        """Whether the filter is to be trained before the next step (Alg. 1, line 7)."""
        return self.schedule.is_update(self.step) and self.updates < self.schedule.updates_by(self.step)

    def next_paths(self) -> Paths:
        """The path of the next step, or its fair group, [n, L] (Alg. 1, lines 2-5).

        Those of all steps up to the next update, or of an epoch for fair groups, are drawn at once.
        """
        if not len(self._queue):
            self._fill_queue()
        return self._queue[: self.paths_per_step]

    def train_step(self, images: Tensor, labels: Tensor, *, stop: bool = False) -> StepResult:
        """Train the next path, or the next fair group, on one batch (Alg. 1, line 6).

        Args:
            images: this rank's part of the batch, [B, C, H, W].
            labels: int64 [B].
            stop: whether this process was asked to stop, which the result tells all ranks; the step is done anyway.

        Returns:
            Figures of the whole batch, the same on all ranks.

        Raises:
            InputError: the loss, or with `grad_clip` a gradient, is not finite; no parameter has been changed by this
                step. With `fp16` gradients that are not finite make the loss scale smaller instead, and the step is
                one without an update.
        """
        paths = self.next_paths()
        assert self._gradients is not None
        scale = None if self._loss_scale is None else self._loss_scale.value
        # Seeded by the step, dropout does not depend on where the run was resumed.
        first = self.step * len(paths)
        seeds = [seed_for(self.config.seed, "dropout", first + index) for index in range(len(paths))]
        result = self._gradients.compute(paths, images, labels, seeds, scale, stop)
        loss = result.loss.item()
        if not math.isfinite(loss):
            self.bank.zero_grad(paths)
            raise self._diverged(f"the loss is {loss}", paths)
        stepped = self.optimizer.step(paths, self.schedule.lr(self.step), loss_scale=scale)
        if self._loss_scale is not None:
            self._loss_scale.update(stepped)
        elif not stepped:
            raise self._diverged("a gradient is not finite", paths)
        self._queue = self._queue[len(paths) :]
        self.step += 1
        if self.step >= self.schedule.total_steps:
            self.stop_reason = f"all {self.config.train.epochs} epochs are done"
        return result

    def _diverged(self, what: str, paths: Paths) -> InputError:
        group = f"a group of {len(paths)} paths, the first " if len(paths) > 1 else "path "
        return self.world.same_error(
            f"train: {what} at step {self.step + 1} (epoch {self.schedule.epoch(self.step)}, "
            f"{group}{self.space.format(paths[0], 'digits')}); a smaller train.lr or train.grad_clip may help."
        )

    def update_filter(self, poll: Poll = None) -> FilterUpdate:
        """Train a new filter on the supernet as it is, merge operations, look whether to stop (Alg. 1, lines 8-12).

        Args:
            poll: called now and then; what it raises ends the update, and nothing has changed.
        """
        epoch = self.schedule.epoch(self.step)
        update = self.updater.update(self.updates, self.schedule.q(epoch), self.allowed, self.trained, poll)
        self.updates += 1
        before = self.bank_mb
        self._compact(update.allowed)
        update = replace(update, row={**update.row, "bank_mb_before": before, "bank_mb": self.bank_mb})
        self.trained, self.allowed = update.trained, update.allowed
        self.kappa = update.row["kappa"]
        self._queue = self._queue[:0]
        if update.stop and self.stop_reason is None:
            c = self.config.train
            self.stop_reason = f"the filter is steady: {c.stop_on} above {c.agreement_threshold} after {epoch} epochs"
        return update

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only; the tensors are live."""
        return {
            "space": self.space.fingerprint(),
            "sampler": self.config.train.sampler,
            "step": self.step,
            "updates": self.updates,
            "allowed": torch.from_numpy(self.allowed),
            "filter": None if self.trained is None else self.trained.state_dict(),
            "acceptance": self.acceptance,
            "fallbacks": self.fallbacks,
            "kappa": self.kappa,
            "stop_reason": self.stop_reason,
            "queue": torch.from_numpy(np.ascontiguousarray(self._queue)),
            "loss_scale": None if self._loss_scale is None else self._loss_scale.state_dict(),
            "supernet": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the training that gave `state` stood; the space must be the same (the caller checks).

        Raises:
            InputError: `state` needs operations that this training has merged already, and a new training takes it; or
                it is of a training with another sampler, whose paths wait in it.
        """
        sampler = self.config.train.sampler
        if state.get("sampler", sampler) != sampler:  # older checkpoints do not say
            found = state["sampler"]
            raise InputError(f"state: it is of a training with train.sampler {found}, this one has {sampler}")
        allowed = state["allowed"].numpy()
        if (allowed & ~self.net.allowed).any():
            raise InputError("state: it has operations that this training has merged; load it into a new training")
        self._use(*load_checkpoint(self.bank, state["supernet"], state["optimizer"], allowed))
        self.step, self.updates = state["step"], state["updates"]
        self.allowed = allowed
        self.trained = None if state["filter"] is None else TrainedFilter.from_state_dict(state["filter"])
        self.acceptance, self.fallbacks, self.kappa = state["acceptance"], state["fallbacks"], state["kappa"]
        self.stop_reason = state["stop_reason"]
        self._queue = state["queue"].numpy()
        if self._loss_scale is not None:
            self._loss_scale.load_state_dict(state["loss_scale"])

    def _use(self, bank: ParameterBank, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Go on with this bank and an optimizer of its own, whose state is `buffers` if there are any."""
        train = self.config.train
        self.bank = bank
        self.optimizer = BankSGD(
            bank,
            train.momentum,
            train.weight_decay,
            clip_norm=train.grad_clip,
            ema_decay=train.ema_decay,
            triton=train.triton_sgd,
        )
        if buffers is not None:
            self.optimizer.load_state_dict(dict(buffers))
        if self._gradients is not None:
            self._gradients.close()
        self._gradients = Gradients(bank, train, self.world)

    def _score(self, paths: Paths, poll: Poll) -> npt.NDArray[np.float64]:
        with self.scoring, self.optimizer.averaged():
            return self._scorer(self.net, paths, poll)

    def _compact(self, allowed: npt.NDArray[np.bool_]) -> None:
        """Free what operations hold that no path will use again."""
        bank, buffers = compact(self.bank, allowed, self.optimizer.state_dict())
        if bank is not self.bank:
            self._use(bank, buffers)

    def _fill_queue(self) -> None:
        """Draw the paths of all steps up to the next update, or the fair groups of an epoch.

        Rank 0 draws for all: filters on CPUs of different kinds round differently, and might let different paths
        through. One message a period costs nothing.
        """
        count = self.schedule.next_update(self.step) - self.step
        with self.sampling:
            self._queue, self.fallbacks, self.acceptance = self.world.on_main(lambda: self._draw(count))

    def _draw(self, count: int) -> tuple[Paths, int, float | None]:
        """Paths, how many of them the filter calls weak, and the share of proposals that passed it, if there is one."""
        if self.config.train.sampler == "fair":
            return self._draw_groups(), 0, None
        # Each period between two updates has a sequence of proposals of its own.
        seed = seed_for(self.config.seed, "training paths", self.updates)
        if self.trained is None or self.trained.collapsed:
            return UniformSampler(self.space, self.allowed, seed, TRAINING_STREAM).sample(count).paths, 0, None
        sampler = FilterSampler(
            self.space,
            FilterEngine(self.trained.net, screen=True) if self.config.train.sampling_screen else self.trained.engine,
            threshold=self.trained.threshold,
            allowed=self.allowed,
            seed=seed,
            stream=TRAINING_STREAM,
            max_proposals=self.config.train.max_proposals * count,
            strict=self.config.train.strict_sampling,
        )
        try:
            batch = sampler.sample(count)
        except RejectionError as error:
            raise InputError(f"train.strict_sampling: {error}.") from None
        return batch.paths, batch.fallbacks, batch.acceptance

    def _draw_groups(self) -> Paths:
        """Fair groups up to the end of the epoch, no more: a checkpoint holds what is drawn and not yet trained."""
        steps = self.schedule.steps_per_epoch - self.step % self.schedule.steps_per_epoch
        seed = seed_for(self.config.seed, "fair groups", self.step)
        return FairSampler(self.space, self.allowed, seed, TRAINING_STREAM).sample(steps * self.paths_per_step).paths
