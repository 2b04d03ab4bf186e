"""timm's batch norm with an activation, over the batches of all processes. Imported only where timm is."""

from __future__ import annotations

from typing import cast

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from greedynas_fast.nn.sync_norm import SyncBatchNorm2d


class SyncBatchNormAct2d(SyncBatchNorm2d, BatchNormAct2d):  # type: ignore[misc]
    """Batch norm and activation."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the same on all ranks but for N, which may differ."""
        if self.synchronises:
            x = self.normalise(x)
            for part in (self.drop, self.act):
                x = cast("nn.Module", part)(x)
            return x
        y: Tensor = BatchNormAct2d.forward(self, x)
        return y


FORMS: dict[type[nn.Module], type[SyncBatchNorm2d]] = {BatchNormAct2d: SyncBatchNormAct2d}
