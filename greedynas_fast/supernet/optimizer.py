"""SGD that moves the blocks of one path and leaves all others, and their momentum, exactly as they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.supernet.bank import Block, ParameterBank
from greedynas_fast.supernet.choices import Path


class _View(NamedTuple):
    """A slice of the three flat tensors, and the weight decay of all its values."""

    data: Tensor
    grad: Tensor
    momentum: Tensor
    decay: float


class BankSGD:
    """SGD with momentum over the active blocks of a bank, in the arithmetic of `torch.optim.SGD` (dampening 0).

    Weight decay is for weights alone, not for batch norm and biases. An operation that a path does not use feels no
    weight decay and no momentum, as if its gradient were None in `torch.optim.SGD`. Its momentum starts at zero.

    Args:
        bank: parameters and gradients.
        momentum: 0 or more.
        weight_decay: 0 or more.
        nesterov: Nesterov's form of momentum.
        clip_norm: upper bound of the norm of all active gradients together, as `torch.nn.utils.clip_grad_norm_`; None
            for no bound.

    Raises:
        InputError: a negative number, or Nesterov without momentum.
    """

    def __init__(
        self,
        bank: ParameterBank,
        momentum: float = 0.9,
        weight_decay: float = 4e-5,
        nesterov: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        if momentum < 0 or weight_decay < 0:
            raise InputError(f"momentum and weight_decay: expected 0 or more, got {momentum} and {weight_decay}")
        if nesterov and momentum == 0:
            raise InputError("nesterov: expected a momentum above 0, got 0")
        if clip_norm is not None and clip_norm <= 0:
            raise InputError(f"clip_norm: expected a number above 0 or None, got {clip_norm}")
        self.bank = bank
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.clip_norm = clip_norm
        self.momentum_buffer = torch.zeros_like(bank.data)
        self._views = {block: self._split(block) for block in bank.blocks()}

    def _split(self, block: Block) -> list[_View]:
        """The parts of a block with and without weight decay, or all of it where there is none; no empty parts."""
        cut = block.decay_end if self.weight_decay else block.start
        bounds = ((block.start, cut, self.weight_decay), (cut, block.end, 0.0))
        data, grad, momentum = self.bank.data, self.bank.grad, self.momentum_buffer
        return [
            _View(data[start:end], grad[start:end], momentum[start:end], decay)
            for start, end, decay in bounds
            if end > start
        ]

    @torch.no_grad()
    def step(self, path: Path, lr: float) -> None:
        """Move the parameters of one path. Gradients stay as they are, unless they are clipped, which is done in place.

        Args:
            path: [L] operation indices, or [n, L] for the union over several paths.
            lr: learning rate.

        Raises:
            InputError: a path that the space does not have.
        """
        views = [view for block in self.bank.active(path) for view in self._views[block]]
        if self.clip_norm is not None:
            grads = [view.grad for view in views]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (self.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for decay in sorted({self.weight_decay, 0.0}):
            chosen = [view for view in views if view.decay == decay]
            # What `torch.optim.SGD(fused=True)` calls: each value is read and written once. A buffer of zeros gives the
            # same first step as none, so that blocks used for the first time need no case of their own.
            torch._fused_sgd_(
                [view.data for view in chosen],
                [view.grad for view in chosen],
                [view.momentum for view in chosen] if self.momentum else [],
                weight_decay=decay,
                momentum=self.momentum,
                lr=lr,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """`momentum_buffer`: float32 [n], laid out as `bank.data`; the live tensor, not a copy."""
        return {"momentum_buffer": self.momentum_buffer}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a state in.

        Raises:
            InputError: no `momentum_buffer`, or one of another size.
        """
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.shape != self.momentum_buffer.shape:
            came = "none" if buffer is None else f"{list(buffer.shape)}"
            raise InputError(f"momentum_buffer: expected shape {list(self.momentum_buffer.shape)}, got {came}")
        self.momentum_buffer.copy_(buffer)
