"""SGD that moves the blocks of one path and leaves all others, and their momentum, exactly as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.supernet.bank import ParameterBank
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.sgd import Blocks, Buffers, Rule, update_for


class BankSGD:
    """SGD with momentum over the active blocks of a bank, in the arithmetic of `torch.optim.SGD` (dampening 0).

    Weight decay is for weights alone, not for batch norm and biases. An operation that a path does not use feels no
    weight decay and no momentum, as if its gradient were None in `torch.optim.SGD`. Its momentum starts at zero.

    A step leaves the gradients of its blocks at zero. So all gradients of a bank are zero except between a backward
    pass and the step after it, and nothing else need reset them, as long as both use the same path.

    The moving average of the parameters (EMA) starts as a copy of them. That of an operation moves in the steps that
    move the operation, as batch-norm statistics do: where a parameter stands still, so does its average.

    Attributes:
        momentum_buffer: float32 [n], laid out as `bank.data`.
        ema_buffer: the moving average, float32 [n], laid out as `bank.data`; None without `ema_decay`.

    Args:
        bank: parameters and gradients.
        momentum: 0 or more.
        weight_decay: 0 or more.
        nesterov: Nesterov's form of momentum.
        clip_norm: upper bound of the norm of all active gradients together, as `torch.nn.utils.clip_grad_norm_`; None
            for no bound.
        ema_decay: share of itself that the moving average keeps in a step, 0 to 1 (1 excluded); None for no average.
        triton: step by one Triton launch instead of torch's operators for lists of tensors, on a GPU.

    Raises:
        InputError: a number out of its range, Nesterov without momentum, or Triton without it or a GPU.
    """

    def __init__(
        self,
        bank: ParameterBank,
        momentum: float = 0.9,
        weight_decay: float = 4e-5,
        nesterov: bool = False,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        triton: bool = False,
    ) -> None:
        if not (momentum >= 0 and weight_decay >= 0):
            raise InputError(f"momentum and weight_decay: expected 0 or more, got {momentum} and {weight_decay}")
        if nesterov and momentum == 0:
            raise InputError("nesterov: expected a momentum above 0, got 0")
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(f"clip_norm: expected a number above 0 or None, got {clip_norm}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise InputError(f"ema_decay: expected 0 or more and less than 1, or None, got {ema_decay}")
        self.bank = bank
        self.momentum_buffer = torch.zeros_like(bank.data)
        self.ema_buffer = None if ema_decay is None else bank.data.clone()
        self._rule = Rule(momentum, weight_decay, nesterov, clip_norm, ema_decay)
        self._buffers = Buffers(bank.data, bank.grad, self.momentum_buffer if momentum else None, self.ema_buffer)
        self._update = update_for(bank.data.device, triton)
        self._table = _block_table(bank)
        self._rows = np.arange(len(self._table))

    def blocks(self, path: Path) -> Blocks:
        """The blocks that a step of `path` moves, in the order of the buffer; stem and head are always among them.

        The same as `bank.active`, from a table, and with those of operations without parameters, which are empty.

        Args:
            path: [L] operation indices, or an array or tensor [n, L] for the union over several paths.

        Returns:
            int64 [B, 3]: start, decay_end and end of each.

        Raises:
            InputError: a path that the space does not have, or no path at all.
        """
        choices = self.bank.net.choices
        if not (isinstance(path, (np.ndarray, torch.Tensor)) and path.ndim == 2):
            rows: Blocks = self._table[self._rows, np.array((0, *choices(path)))]
            return rows
        if not len(path):
            raise InputError("path: expected at least one path, got none")
        if len(path) == 1:  # a step of most samplers: rows of the table, without a mask of it
            return self.blocks(path[0])
        used = np.zeros(self._table.shape[:2], dtype=np.bool_)
        for row in path:
            used[self._rows, np.array((0, *choices(row)))] = True
        return self._table[used]

    def step(self, path: Path, lr: float, *, loss_scale: float | None = None) -> bool:
        """Move the parameters of one path by the gradients of its blocks, and set these to zero.

        Args:
            path: [L] operation indices, or [n, L] for the union over several paths.
            lr: learning rate.
            loss_scale: what the loss was multiplied by before the backward pass; the gradients are divided by it. None
                says that losses are not scaled.

        Returns:
            Whether the step was made. With `clip_norm` or a loss scale it is not if a gradient is infinite or no
            number: then only the gradients of the path are set to zero; parameters, momentum and average stay as they
            are. Without both nothing looks, so that all is one pass.

        Raises:
            InputError: a path that the space does not have, or a loss scale that is not a finite number above 0.
        """
        if loss_scale is not None and not (loss_scale > 0 and math.isfinite(loss_scale)):
            raise InputError(f"loss_scale: expected a finite number above 0, got {loss_scale}")
        return self._update(self._buffers, self.blocks(path), self._rule, lr, loss_scale)

    def use_average(self) -> None:
        """Give the parameters the values of their moving average, if there is one."""
        if self.ema_buffer is not None:
            self.bank.data.copy_(self.ema_buffer)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the parameters are their moving average, if there is one; no step is to be made in it."""
        kept = None if self.ema_buffer is None else self.bank.data.clone()
        self.use_average()
        try:
            yield
        finally:
            if kept is not None:
                self.bank.data.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """`momentum_buffer` and, with `ema_decay`, `ema_buffer`; the live tensors, not copies."""
        state = {"momentum_buffer": self.momentum_buffer}
        return state if self.ema_buffer is None else {**state, "ema_buffer": self.ema_buffer}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a state in.

        Raises:
            InputError: a buffer is missing or has another size, or there is an average and no `ema_decay`. Nothing has
                been changed then.
        """
        own = self.state_dict()
        if "ema_buffer" in state and "ema_buffer" not in own:
            raise InputError("ema_buffer: the state has a moving average, this optimizer has no ema_decay")
        for name, buffer in own.items():
            came = state.get(name)
            if came is None or came.shape != buffer.shape:
                found = "none" if came is None else f"{list(came.shape)}"
                raise InputError(f"{name}: expected shape {list(buffer.shape)}, got {found}")
        for name, buffer in own.items():
            buffer.copy_(state[name])


def _block_table(bank: ParameterBank) -> Blocks:
    """[1 + L, max_ops, 3]: stem and head in row 0, then the layers; zeros where a layer has fewer operations."""
    counts = bank.net.space.num_ops
    table = np.zeros((1 + len(counts), max(counts), 3), dtype=np.int64)
    for layer, count in enumerate((1, *counts), start=-1):
        for op in range(count):
            block = bank.block(layer, op)
            table[1 + layer, op] = (block.start, block.decay_end, block.end)
    return table
