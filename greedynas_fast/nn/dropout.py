"""Dropout whose mask does not depend on how a batch is divided."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BatchDropout(nn.Dropout):
    """Dropout for a part of a batch.

    The mask is drawn for the whole batch, and the part takes its rows of it: with the generator in the same state,
    parts get together what the whole would get. Undivided, it is `nn.Dropout`, bit for bit.

    Attributes:
        part: number of the part's first row, and rows of the whole batch; None: a batch is whole.
    """

    part: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        if self.part is None or not self.training or self.p == 0:
            return super().forward(x)
        first, total = self.part
        whole = functional.dropout(torch.ones((total, *x.shape[1:]), dtype=x.dtype, device=x.device), self.p)
        return x * whole[first : first + len(x)]

    def draw(self, rows: int, columns: int) -> tuple[Tensor | None, float]:
        """What `forward` would do to float32 [N, C] on the CPU.

        Returns:
            A mask float32 [N, C] of 0 and 1, contiguous, and what it is multiplied by; None: nothing is dropped.
        """
        if not self.training or self.p == 0:
            return None, 1.0
        first, total = self.part or (0, rows)
        mask = torch.empty((total, columns), dtype=torch.float32).bernoulli_(1 - self.p)
        return mask[first : first + rows], 0.0 if self.p == 1 else 1 / (1 - self.p)
