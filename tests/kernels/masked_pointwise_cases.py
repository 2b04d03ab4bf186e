"""Inputs for the op-masked pointwise convolution and what autograd makes of them with torch's own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast.ops.ragged import Ragged

ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "hard_swish": F.hardswish, "silu": F.silu, "relu6": F.relu6}
KINKS = {"identity": (), "relu": (0.0,), "hard_swish": (-3.0, 3.0), "silu": (), "relu6": (0.0, 6.0)}


@dataclass(frozen=True)
class Case:
    """Shapes and options of a call; groups are (samples, channels in, channels out, operation or -1 if masked)."""

    groups: tuple[tuple[int, int, int, int], ...]
    height: int = 3
    width: int = 3
    norm: bool = True
    activation: str = "hard_swish"
    gate: bool = True
    stats: bool = True

    @property
    def ragged(self) -> tuple[Ragged, Ragged]:
        samples, ins, outs, ops = zip(*self.groups, strict=True)
        size = (samples, self.height, self.width)
        masks = [op >= 0 for op in ops]
        return (
            Ragged(*size, tuple(c * m for c, m in zip(ins, masks, strict=True))),
            Ragged(*size, tuple(c * m for c, m in zip(outs, masks, strict=True))),
        )

    @property
    def weight_offsets(self) -> tuple[int, ...]:
        """Operations lie in the bank in the order of their numbers, 8 elements apart."""
        offsets, end = {-1: -1}, 8
        for _, width_in, width_out, op in sorted(self.groups, key=lambda group: group[3]):
            if op not in offsets:
                offsets[op] = end
                end += width_in * width_out + 8
        return tuple(offsets[op] for *_, op in self.groups)


@dataclass
class Inputs:
    """Tensors of a case; `grad` and `grad_moments` reach y and its moments."""

    x: Tensor
    bank: Tensor
    scale: Tensor | None
    shift: Tensor | None
    gate: Tensor | None
    grad: Tensor
    grad_moments: Tensor

    def to(self, **options: Any) -> Inputs:
        return Inputs(**{n: None if v is None else v.to(**options) for n, v in vars(self).items()})


def inputs_of(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Random float32 values, x and grad of `dtype`; no activation is taken near a kink."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    shape_in, shape_out = case.ragged
    end = max(offset + group[1] * group[2] for offset, group in zip(case.weight_offsets, case.groups, strict=True))
    widest = max(shape_in.widths)
    scale = randn(shape_in.channel_offsets[-1]) if case.norm else None
    shift = randn(shape_in.channel_offsets[-1]) if case.norm else None
    x = shape_in.pack(
        [randn(n, c, case.height, case.width) for n, c in zip(shape_in.samples, shape_in.widths, strict=True)]
    )
    x = x.to(dtype)
    for g in shape_in.live:
        view = shape_in.view(x, g)
        z = view.float()
        if scale is not None and shift is not None:
            z = z * shape_in.channels(scale, g).view(-1, 1, 1) + shape_in.channels(shift, g).view(-1, 1, 1)
        for kink in KINKS[case.activation]:
            view[(z - kink).abs() < 0.01] += 0.1
    return Inputs(
        x=x,
        bank=randn(max(end, 8) + 8) / max(widest, 1) ** 0.5,
        scale=scale,
        shift=shift,
        gate=torch.rand(shape_in.gate_offsets[-1], generator=generator) if case.gate else None,
        grad=randn(shape_out.numel).to(dtype),
        grad_moments=randn(2, shape_out.channel_offsets[-1]),
    )


def oracle(case: Case, given: Inputs) -> dict[str, Tensor | None]:
    """y, moments and every gradient in float64, by autograd through torch.nn.functional, one group after the other."""
    shape_in, shape_out = case.ragged
    leaves = {
        name: None if (value := getattr(given, name)) is None else value.detach().double().requires_grad_()
        for name in ("x", "bank", "scale", "shift", "gate")
    }
    x, bank, scale, shift, gate = leaves.values()
    outputs, moments = [], []
    for g, (samples, width_in, width_out, op) in enumerate(case.groups):
        if op < 0:
            outputs.append(x.new_zeros(samples, 0, case.height, case.width))
            continue
        p = shape_in.view(x, g)
        if scale is not None:
            p = p * shape_in.channels(scale, g).view(-1, 1, 1) + shape_in.channels(shift, g).view(-1, 1, 1)
        p = ACTIVATIONS[case.activation](p)
        if gate is not None:
            p = p * shape_in.gates(gate, g)[:, :, None, None]
        begin = case.weight_offsets[g]
        weight = bank[begin : begin + width_in * width_out].view(width_out, width_in, 1, 1)
        y = F.conv2d(p, weight)
        outputs.append(y)
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0) if samples else (y.new_zeros(2, width_out))
        moments.append(torch.stack([mean, variance]))
    y = shape_out.pack(outputs)
    results: dict[str, Tensor | None] = {"y": y, "moments": torch.cat(moments, 1) if moments else y.new_zeros(2, 0)}
    loss = (y * given.grad.double()).sum()
    if case.stats:
        loss = loss + (results["moments"] * given.grad_moments.double()).sum()
    wanted = [leaf for leaf in leaves.values() if leaf is not None]
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    for name, leaf in leaves.items():
        results[name] = None if leaf is None else next(found)
    return results


def elements(shape: Ragged, flat: Tensor) -> Tensor:
    """A flat activation without what lies between its groups."""
    return torch.cat([shape.view(flat, g).permute(0, 2, 3, 1).reshape(-1) for g in range(shape.groups)])


def compare(case: Case, got: dict[str, Tensor | None], want: dict[str, Tensor | None], tolerance: float) -> None:
    """Largest error of each result against the size of its largest value."""
    shape_in, shape_out = case.ragged
    for name, expected in want.items():
        actual = got[name]
        if expected is None:
            assert actual is None, name
            continue
        if name == "moments" and not case.stats:
            assert actual is not None
            assert actual.shape == (2, 0)
            continue
        assert actual is not None, name
        if name in ("x", "y"):
            shape = shape_in if name == "x" else shape_out
            actual, expected = elements(shape, actual), elements(shape, expected)
        assert actual.shape == expected.shape, name
        if expected.numel():
            error = (actual.detach().cpu().double() - expected.detach()).abs().max().item()
            size = max(1.0, expected.abs().max().item())
            assert error <= tolerance * size, f"{name} of {case}: error {error} at size {size}"


# Three groups, one masked, two of them with the same operation; odd sizes.
THREE = ((2, 5, 19, 0), (1, 7, 3, -1), (1, 5, 19, 0))
SAMPLED = [
    Case(THREE),
    Case(THREE, norm=False, activation="silu", stats=False),
    Case(THREE, activation="relu6"),
    Case(THREE, activation="relu", gate=False),
    Case(THREE, norm=False, activation="identity", gate=False),
    Case(THREE, norm=False, activation="identity", gate=True, stats=False),
    Case(((1, 24, 16, 1), (2, 40, 33, 0), (1, 24, 16, 1)), height=5, width=4, activation="silu"),
    Case(((0, 6, 4, 0), (2, 6, 4, 0), (3, 1, 1, 1)), height=1, width=1, activation="identity"),
]
