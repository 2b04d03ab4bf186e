"""When Algorithm 1 does what: learning rate, updates of the filter, and the weak-path prior q (Sec. 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from greedynas_fast.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The whole plan as pure functions of the step; a step trains one batch on one path, or on one fair group.

    Attributes:
        config: the numbers of Sec. 5.1.
        steps_per_epoch: full batches an epoch, at least 1.
    """

    config: TrainConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole training when it is not stopped early."""
        return self.config.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """Epoch (from 0) that contains `step`."""
        return step // self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Cosine from `lr` to 0 over the whole training, one value a step."""
        return 0.5 * self.config.lr * (1.0 + math.cos(math.pi * step / self.total_steps))

    def q(self, epoch: int) -> float:
        """Weak-path prior after `epoch` epochs: linear from q_start to q_end over q_epochs from the end of warm-up."""
        c = self.config
        share = min(1.0, max(0.0, (epoch - c.warmup_epochs) / c.q_epochs))
        return c.q_start + (c.q_end - c.q_start) * share

    def is_update(self, step: int) -> bool:
        """Whether the filter is trained after `step` steps (Alg. 1, line 7): at warm-up's end, then every t epochs.

        Also after the last step if it falls due there: the search rejects with that filter.
        """
        c = self.config
        if c.sampler != "filter" or step % self.steps_per_epoch != 0 or not 0 < step <= self.total_steps:
            return False
        epoch = step // self.steps_per_epoch
        return epoch >= c.warmup_epochs and (epoch - c.warmup_epochs) % c.update_every_epochs == 0

    def updates_by(self, step: int) -> int:
        """Updates that the first `step` steps call for, one that is due right after them included."""
        c = self.config
        if c.sampler != "filter":
            return 0
        # An untrained supernet is never scored: without warm-up the first update comes after one period.
        first = 1 if c.warmup_epochs else 0
        return max(0, (self.epoch(step) - c.warmup_epochs) // c.update_every_epochs + first)

    def next_update(self, step: int) -> int:
        """The first step after `step` with `is_update`, or the end of the training."""
        for epoch in range(step // self.steps_per_epoch + 1, self.config.epochs):
            if self.is_update(epoch * self.steps_per_epoch):
                return epoch * self.steps_per_epoch
        return self.total_steps
