"""Adam for the path filter, with an optional cosine schedule and an optional running average of the weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn


class FilterOptimizer:
    """Steps a small network and, in the end, leaves the averaged weights in it.

    Args:
        net: the network to train.
        lr: learning rate of Adam.
        weight_decay: L2 penalty, as in `torch.optim.Adam`.
        steps: length of the schedule.
        schedule: `constant`, or `cosine` from `lr` to zero.
        average: decay of the exponential average of the weights; 0 keeps none.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        weight_decay: float,
        steps: int,
        schedule: Literal["constant", "cosine"],
        average: float,
    ) -> None:
        self._parameters = list(net.parameters())
        self._adam = torch.optim.Adam(self._parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self._lr, self._steps, self._schedule, self._decay = lr, steps, schedule, average
        self._done = 0
        self._mean = [parameter.detach().clone() for parameter in self._parameters] if average else []

    def step(self, loss: Tensor) -> None:
        """One update from the gradient of `loss`."""
        if self._schedule == "cosine":
            self._adam.param_groups[0]["lr"] = self._lr * 0.5 * (1.0 + math.cos(math.pi * self._done / self._steps))
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self._done += 1
        # A short memory at first, so that the initial weights do not linger in the average.
        decay = min(self._decay, self._done / (self._done + 10.0))
        with torch.no_grad():
            for mean, parameter in zip(self._mean, self._parameters, strict=False):
                mean.lerp_(parameter, 1.0 - decay)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights, if any, into the network."""
        for mean, parameter in zip(self._mean, self._parameters, strict=False):
            parameter.copy_(mean)
