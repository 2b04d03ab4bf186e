"""The channel shuffle of ShuffleNetV2 (https://arxiv.org/abs/1807.11164), its split and its concatenation."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels: output channel `2 i + h` is input channel `h C / 2 + i`.

    Args:
        x: [N, C, H, W] with even C.

    Returns:
        [N, C, H, W] in the memory format of `x` (channels-last stays channels-last).
    """
    n, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        # Channels innermost also while shuffling; otherwise the copy would be contiguous [N, C, H, W].
        x_NHWC = x.permute(0, 2, 3, 1)
        return x_NHWC.view(n, h, w, 2, c // 2).transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C, H, W] -> the first and the second half of its shuffled channels, [N, C / 2, H, W] each."""
    kept, moved = channel_shuffle(x).chunk(2, dim=1)
    return kept, moved


def shuffle_concat(kept: Tensor, y: Tensor) -> Tensor:
    """[N, A, H, W] and [N, B, H, W] -> [N, A + B, H, W]."""
    return torch.cat((kept, y), dim=1)
