"""How one network is retrained: optimizer, learning rate and weight average through timm (Sec. 5.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from greedynas_fast.config import RetrainConfig


class Recipe:
    """Optimizer, schedule and exponential moving average for one network.

    The learning rate is a pure function of the step, so only the optimizer and the average have a state.

    Attributes:
        network: the network that is trained.
        average: its exponential moving average; None where the recipe keeps none.
    """

    def __init__(self, network: nn.Module, config: RetrainConfig, steps_per_epoch: int) -> None:
        """A recipe at its first step.

        Args:
            network: on its device.
            config: the numbers.
            steps_per_epoch: full batches an epoch.
        """
        from timm.utils import ModelEmaV3

        self.network, self.config = network, config
        self.optimizer = _optimizer(network, config)
        self._scheduler = _scheduler(self.optimizer, config, steps_per_epoch)
        self._ema = None if config.ema_decay is None else ModelEmaV3(network, decay=config.ema_decay)

    @property
    def average(self) -> nn.Module | None:
        """The averaged network."""
        if self._ema is None:
            return None
        module: nn.Module = self._ema.module
        return module

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average if there is one."""
        return self.network if self.average is None else self.average

    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, step: int, loss: torch.Tensor) -> None:
        """Backward pass and one update.

        Args:
            step: number of the step, from 0.
            loss: finite scalar of the network's forward pass.
        """
        self._scheduler.step_update(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        self.optimizer.step()
        if self._ema is not None:
            self._ema.update(self.network, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and average; tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the recipe that gave `state` stood."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def _optimizer(network: nn.Module, config: RetrainConfig) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    extra = {"eps": 1e-3} if config.optimizer == "rmsproptf" else {}
    # timm leaves bias and batch norm out of weight decay by itself; its "sgd" is the Nesterov form.
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        network,
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **extra,
    )
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, config: RetrainConfig, steps_per_epoch: int) -> Any:
    from timm.scheduler import CosineLRScheduler, StepLRScheduler

    warmup = {
        "warmup_t": round(config.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": config.warmup_lr,
        "t_in_epochs": False,
    }
    if config.schedule == "step":
        return StepLRScheduler(
            optimizer, decay_t=config.decay_epochs * steps_per_epoch, decay_rate=config.decay_rate, **warmup
        )
    return CosineLRScheduler(optimizer, t_initial=config.epochs * steps_per_epoch, lr_min=0.0, **warmup)
