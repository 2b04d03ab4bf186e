"""Batch norm and activation from the layers that hold the parameters."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, name_of, norm_act
from greedynas_fast.nn.prepared import Prepared, slots_of
from greedynas_fast.ops import direct
from greedynas_fast.ops.bn_act_direct import NormAct
from greedynas_fast.ops.rows import threads

IDENTITY = nn.Identity()
"""For norms without an activation: one for all, since what has been seen of layers is remembered."""


def run_norm_act(block: Fusable, norm: nn.BatchNorm2d, act: nn.Module, x: Tensor) -> Tensor | None:
    """act(norm(x)) as one operation, with the bookkeeping of running statistics.

    Args:
        block: has the layers, or is the norm.
        norm: batch norm [C].
        act: one that `activation_name` knows; always the same.
        x: [N, C, H, W].

    Returns:
        [N, C, H, W], or None where the layers do not fuse.

    Raises:
        InputError: see `Fusable.fuses`.
    """
    seen = block.seen_fit(x, norm, act)
    if seen is None:
        return norm_act(norm, act, x) if block.fuses(x, norm, act) else None
    prepared: _Prepared = seen.prepare(lambda: _Prepared(norm, act))
    y = prepared.run(x)
    return norm_act(norm, act, x) if y is None else y


class _Prepared(Prepared):
    def __init__(self, norm: nn.BatchNorm2d, act: nn.Module) -> None:
        super().__init__(slots_of(norm), [norm])
        self._act = act

    def lay_out(
        self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running], bf16: bool
    ) -> direct.Laid:
        """See `Prepared`."""
        weight, bias = cast("list[Tensor]", parameters)
        return NormAct(x.shape, weight, bias, self._norms[0].eps, name_of(self._act), running, threads(), bf16)
