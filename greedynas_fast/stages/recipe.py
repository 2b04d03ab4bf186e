"""How one network is retrained: gradient, optimizer, learning rate and weight average, through timm (Sec. 5.1)."""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.config import RetrainConfig
from greedynas_fast.errors import InputError
from greedynas_fast.nn import BatchDropout, synchronise_norms
from greedynas_fast.runtime import World, all_reduce, seed_generators
from greedynas_fast.stages.gradients import StepResult, autocast, num_passes, weighted
from greedynas_fast.supernet import FlatNetwork, Network


class Recipe:
    """Optimizer, schedule and exponential moving average for one network.

    The learning rate is a pure function of the step, so only optimizer, average and loss scale have a state.

    Attributes:
        network: the network that is trained.
        average: the averaged network (exponential moving average); None where the recipe keeps none.
    """

    def __init__(
        self, network: nn.Module, config: RetrainConfig, steps_per_epoch: int, world: World | None = None
    ) -> None:
        """A recipe at its first step.

        Args:
            network: on its device, the same on all ranks.
            config: the numbers.
            steps_per_epoch: full batches an epoch.
            world: the processes that train it together; None for this one alone.

        Raises:
            InputError: `sync_bn`, and a batch norm of the model is neither torch's nor timm's.
        """
        from timm.utils import ModelEmaV3

        self.network, self.config, self._world = network, config, world or World()
        if config.sync_bn and self._world.size > 1:
            try:
                synchronise_norms(network, all_reduce)
            except InputError as error:
                raise InputError(f"retrain.sync_bn: {error}") from None
        self._drops = [part for part in network.modules() if isinstance(part, BatchDropout)]
        self._replica = network if self._world.size == 1 else _replica(network)
        device = next(network.parameters()).device
        alone = self._world.size == 1 and device.type == "cpu"
        self._flat = FlatNetwork(network) if alone and isinstance(network, Network) else None
        self.optimizer = _optimizer(network if self._flat is None else self._flat.groups, config)
        self._scheduler = _scheduler(self.optimizer, config, steps_per_epoch)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._averaged = network if self._flat is None else self._flat.tensors
        self._ema = None if config.ema_decay is None else ModelEmaV3(self._averaged, decay=config.ema_decay)
        self.average: nn.Module | None = None if self._ema is None else self._ema.module
        if self._ema is not None and self._flat is not None:
            self.average = copy.deepcopy(network).eval()
            self._ema.module.move_in(self.average)

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average if there is one."""
        return self.network if self.average is None else self.average

    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradient(self, images: Tensor, labels: Tensor, seed: int, *, stop: bool = False) -> StepResult:
        """The gradient of one whole batch, in the parameters' `grad` (times the scale of `fp16`).

        Args:
            images: this rank's part of the batch, float32 [B, C, H, W] on the network's device.
            labels: int64 [B].
            seed: of dropout in this step, the same on all ranks.
            stop: whether this process was asked to stop.

        Returns:
            Figures of the whole batch, the same on all ranks, without a graph.
        """
        config, world = self.config, self._world
        batch = len(labels) if world.size == 1 else config.batch_size
        self.optimizer.zero_grad(set_to_none=self._flat is None)
        loss, correct = torch.zeros((), device=images.device), torch.zeros((), dtype=torch.int64, device=images.device)
        count = num_passes(batch, config.micro_batch, world)
        parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
        first = world.share(batch).start
        for index, (some, targets) in enumerate(parts):
            self._seed_dropout(images.device, seed, first, batch, len(targets))
            first += len(targets)
            with self._last_pass(index == len(parts) - 1):
                with autocast(config.precision, images.device):
                    part, right = self._loss(some, targets)
                part = weighted(part, len(targets) / batch)
                # What the replicas' gradients are averaged over is multiplied back: they are to be added up.
                self._scaler.scale(part * world.size if world.size > 1 else part).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
            correct += right
        if world.size == 1:
            return StepResult(loss, correct, batch, stop)
        figures = torch.stack((loss, correct.float(), torch.tensor(float(stop), device=loss.device)))
        all_reduce(figures).wait()
        return StepResult(figures[0], figures[1], batch, bool(figures[2]))

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, and how many images are classified correctly."""
        smoothing = self.config.label_smoothing
        if self._flat is not None:
            return self._flat.loss(images, labels, smoothing)
        logits = self._replica(images).float()  # where label smoothing over many classes keeps its small terms
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss, (logits.detach().argmax(dim=1) == labels).sum()

    def _seed_dropout(self, device: torch.device, seed: int, first: int, batch: int, count: int) -> None:
        """Make masks those of the whole batch where that is possible, and else different for each part of it."""
        whole = count == batch
        for drop in self._drops:
            drop.part = None if whole else (first, batch)
        seed_generators(device, seed if whole or self._drops else seed ^ first)

    def _last_pass(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in the last backward pass of a step."""
        if last or self._world.size == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self._replica.no_sync()  # type: ignore[operator]
        return context

    def step(self, step: int) -> None:
        """One update with the gradient that stands in the parameters.

        Args:
            step: number of the step, from 0.
        """
        self._scheduler.step_update(step)
        if self.config.grad_clip is not None:
            self._scaler.unscale_(self.optimizer)
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self._averaged, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, average and loss scale; tensors and plain values."""
        optimizer = self.optimizer.state_dict()
        return {
            "network": self.network.state_dict(),
            "optimizer": optimizer if self._flat is None else self._flat.split(optimizer),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the recipe that gave `state` stood."""
        self.network.load_state_dict(state["network"])
        optimizer = state["optimizer"]
        self.optimizer.load_state_dict(optimizer if self._flat is None else self._flat.join(optimizer))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state.get("scaler", {}))  # checkpoints from before `fp16` have none


def _replica(network: nn.Module) -> nn.Module:
    """The network as one of several that train alike.

    Running statistics are not exchanged: no training step reads them, and those of rank 0 are kept.
    """
    replica = nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(replica).parameters  # since torch 2.14
    exchange: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return replica(network, **exchange)


def _optimizer(network: nn.Module | list[dict[str, Any]], config: RetrainConfig) -> torch.optim.Optimizer:
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
