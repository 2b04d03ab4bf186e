"""Inputs for op-masked norm, activation, residual, pooling and gates, and what torch's own layers make of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast.ops.inverted_residual import Gate
from greedynas_fast.ops.masked_gate import masked_gates, masked_squeeze
from greedynas_fast.ops.masked_norm_act import masked_moments, masked_norm_act, masked_scale_shift
from greedynas_fast.ops.ragged import Ragged, ragged

ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "hard_swish": F.hardswish, "silu": F.silu, "relu6": F.relu6}
GATES = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}
EPS = 1e-3


@dataclass(frozen=True)
class Case:
    """Groups are (samples, channels, operation or -1 if masked); a masked group has channels in the residual."""

    groups: tuple[tuple[int, int, int], ...]
    height: int = 2
    width: int = 5
    activation: str = "hard_swish"
    residual: bool = True

    @cached_property
    def layout(self) -> Ragged:
        samples = [samples for samples, _, _ in self.groups]
        return ragged(samples, self.height, self.width, [c if op >= 0 else 0 for _, c, op in self.groups])

    @cached_property
    def layout_out(self) -> Ragged:
        return self.layout.with_widths([c for _, c, _ in self.groups]) if self.residual else self.layout

    @property
    def offsets(self) -> tuple[list[int], list[int]]:
        """Of weights and biases: 5 elements before each, so that an offset is odd now and then."""
        return [5 + 60 * max(op, 0) for *_, op in self.groups], [38 + 60 * max(op, 0) for *_, op in self.groups]

    @property
    def pools(self) -> list[bool]:
        """Operations with an even number have a gate."""
        return [op >= 0 and op % 2 == 0 for *_, op in self.groups]


CASES = [
    Case(((2, 20, 0), (1, 5, -1), (2, 7, 1), (1, 20, 0), (0, 4, 2))),
    Case(((1, 16, 1), (2, 16, 2), (1, 16, 1)), activation="relu"),
    Case(((2, 24, 0), (1, 9, 1), (2, 9, 1)), activation="silu", residual=False),
    Case(((2, 8, 0), (1, 8, -1)), height=1, width=20, activation="identity"),
    Case(((2, 24, 0), (1, 9, 1)), activation="relu6"),
]
VECTORS = ("moments", "scale_shift", "squeezed_scale_shift")


def gates_of(case: Case, seed: int = 5) -> dict[int, Gate]:
    """The gate of each operation that has one; its parameters are leaves."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, Gate] = {}
    for (_, channels, op), pools in zip(case.groups, case.pools, strict=True):
        if pools and op not in found:
            shapes = ((3, channels, 1, 1), (3,), (channels, 3, 1, 1), (channels,))
            tensors = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
            names = (case.activation, "sigmoid" if op else "hard_sigmoid")
            found[op] = Gate(*tensors, *names)
    return found


def leaves_of(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    """x, residual and bank; values of x are far from zero compared to their deviation in the first channel."""
    generator = torch.Generator().manual_seed(1)

    def part(layout: Ragged) -> Tensor:
        shapes = [(n, c, layout.height, layout.width) for n, c in zip(layout.samples, layout.widths, strict=True)]
        return layout.pack([torch.randn(shape, generator=generator) for shape in shapes])

    x = part(case.layout)
    for group in case.layout.live:
        case.layout.view(x, group)[:, 0] += 8
    bank = torch.randn(200, generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    values = {"x": x.to(dtype), "residual": part(case.layout_out).to(dtype), "bank": bank.to(wide)}
    return {name: value.to(device).requires_grad_() for name, value in values.items()}


def public(case: Case, leaves: dict[str, Tensor], gates: dict[int, Gate], bank_grad: Tensor | None = None) -> dict:
    """All results of the public functions, chained as a layer does it."""
    layout, offsets = case.layout, case.offsets
    x, bank = leaves["x"], leaves["bank"]
    moments = masked_moments(x, layout)
    scale_shift = masked_scale_shift(moments, layout, bank, *offsets, eps=EPS, bank_grad=bank_grad)
    residual = {"residual": leaves["residual"], "layout_out": case.layout_out} if case.residual else {}
    y = masked_norm_act(x, layout, scale_shift, activation=case.activation, **residual)
    options = {"pools": case.pools, "activation": case.activation, "eps": EPS, "bank_grad": bank_grad}
    x, squeezed, pooled = masked_squeeze(x, layout, bank, *offsets, **options)
    chosen = [gates.get(op) if pools else None for (*_, op), pools in zip(case.groups, case.pools, strict=True)]
    gate = masked_gates(pooled, layout, chosen)
    values = {"moments": moments, "scale_shift": scale_shift, "squeezed_scale_shift": squeezed}
    return values | {"y": y, "x": x, "gate": gate}


def by_group(case: Case, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The defined parts of the results, by group."""
    layout, out = case.layout, case.layout_out
    parts = {f"y{g}": out.view(results["y"], g) for g in out.live}
    for g in layout.live:
        parts[f"x{g}"] = layout.view(results["x"], g)
        parts[f"gate{g}"] = layout.gates(results["gate"], g)
        for name in VECTORS:
            parts[f"{name}{g}"] = torch.stack([layout.channels(row, g) for row in results[name]])
    return parts


def oracle(case: Case, leaves: dict[str, Tensor], gates: dict[int, Gate]) -> dict[str, Tensor]:
    """The same, group by group, by torch.nn.functional.batch_norm and autograd."""
    layout, out = case.layout, case.layout_out
    act = ACTIVATIONS[case.activation]
    parts = {}
    for g, (_, channels, op) in enumerate(case.groups):
        if g not in layout.live:
            if g in out.live:
                parts[f"y{g}"] = out.view(leaves["residual"], g)
            continue
        x = layout.view(leaves["x"], g)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = (leaves["bank"][offsets[g] : offsets[g] + channels] for offsets in case.offsets)
        z = F.batch_norm(values, None, None, weight, bias, True, 0.0, EPS)
        parts[f"y{g}"] = act(z + out.view(leaves["residual"], g) if case.residual else z).to(x.dtype)
        parts[f"x{g}"] = x * 1
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        parts[f"moments{g}"] = torch.stack([mean, variance])
        scale = weight * (variance + EPS).rsqrt()
        parts[f"scale_shift{g}"] = torch.stack([scale, bias - mean * scale])
        parts[f"squeezed_scale_shift{g}"] = parts[f"scale_shift{g}"] * 1
        if op in gates:
            gate = gates[op]
            pooled = F.adaptive_avg_pool2d(act(z), 1)
            w1, b1, w2, b2 = (value.to(z.dtype) for value in gate[:4])
            hidden = ACTIVATIONS[gate.activation](F.conv2d(pooled, w1, b1))
            parts[f"gate{g}"] = GATES[gate.gate](F.conv2d(hidden, w2, b2)).flatten(1)
        else:
            parts[f"gate{g}"] = z.new_ones(z.shape[:2])
    return parts


def random_sum(parts: dict[str, Tensor]) -> Tensor:
    """A random combination of all values."""
    generator = torch.Generator().manual_seed(4)
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(parts):
        weights = torch.randn(parts[name].shape, generator=generator).to(parts[name].device)
        total = total + (parts[name] * weights).double().sum().cpu()
    return total


def gradients(parts: dict[str, Tensor], leaves: dict[str, Tensor], gates: dict[int, Gate]) -> dict[str, Tensor]:
    """Of `random_sum`: of x, residual, bank and the gates' parameters."""
    wanted = dict(leaves) | {f"{op}.{i}": gates[op][i] for op in gates for i in range(4)}
    found = torch.autograd.grad(random_sum(parts), list(wanted.values()), allow_unused=True)
    return {name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None}


def compare(case: Case, got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the largest value of a tensor; gaps of flat activations are left out."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        mine = got[name].detach().double().cpu()
        value = value.detach().double().cpu()
        for layout, flat in ((case.layout, "x"), (case.layout_out, "residual")):
            if name == flat:
                mine, value = (torch.cat([layout.view(t, g).flatten() for g in layout.live]) for t in (mine, value))
        error = float((mine - value).abs().max())
        scale = float(value.abs().max())
        rounding = 1e-6 if got[name].dtype is torch.float32 else 0.0  # parameters of gates, whatever x is
        assert error <= max(tolerance, rounding) * (scale + 0.1), f"{name}: off by {error:.3g} at {scale:.3g}"


def compiled_and_eager(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients by `torch.compile` as one graph, and without."""
    gates = gates_of(case)
    names = ("x", "residual", "bank")

    def function(*values: Tensor) -> Tensor:
        parts = by_group(case, public(case, dict(zip(names, values, strict=True)), gates))
        return torch.stack([(part * part).sum() for part in parts.values()]).sum()

    assert case.layout.samples == case.layout_out.samples  # both are made before a graph is traced
    found = []
    for way in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        leaves = leaves_of(case)
        way(*leaves.values()).backward()
        parts = {"bank": leaves["bank"].grad}
        for name, layout in (("x", case.layout), ("residual", case.layout_out)):
            parts |= {f"{name}{g}": layout.view(leaves[name].grad, g) for g in layout.live}
        found.append(parts)
    return found[0], found[1]
