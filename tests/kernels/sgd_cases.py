"""Blocks of a bank, and what `torch.optim.SGD` makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 208
BLOCKS = [(0, 32, 80), (96, 96, 128), (128, 128, 128), (144, 176, 176)]
"""With and without weight decay and both; one is empty; the second and the third touch."""


def buffers() -> list[Tensor]:
    """data, grad, momentum (zeros) and moving average."""
    generator = torch.Generator().manual_seed(0)
    data, grad, average = (torch.randn(SIZE, generator=generator) for _ in range(3))
    return [data, grad, torch.zeros(SIZE), average]


def active() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for start, _, end in BLOCKS:
        mask[start:end] = True
    return mask


def torch_steps(
    data: Tensor, grads: list[Tensor], lr: float, clip: float | None, **options: float | bool
) -> tuple[Tensor, Tensor]:
    """Parameters and momentum after torch's steps, in float64."""
    data = data.double()
    decay = options.pop("weight_decay")
    parts = [(s, m, decay) for s, m, _ in BLOCKS if m > s] + [(m, e, 0.0) for _, m, e in BLOCKS if e > m]
    leaves = [torch.nn.Parameter(data[start:end].clone()) for start, end, _ in parts]
    groups = [{"params": [leaf], "weight_decay": d} for leaf, (_, _, d) in zip(leaves, parts, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=lr, **options)
    for grad in grads:
        for leaf, (start, end, _) in zip(leaves, parts, strict=True):
            leaf.grad = grad[start:end].double()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(leaves, clip)
        optimizer.step()
    momentum = torch.zeros_like(data)
    for leaf, (start, end, _) in zip(leaves, parts, strict=True):
        data[start:end] = leaf.detach()
        if (buffer := optimizer.state[leaf].get("momentum_buffer")) is not None:
            momentum[start:end] = buffer
    return data, momentum
