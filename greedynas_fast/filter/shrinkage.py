"""Merging of operations whose embeddings point the same way (Sec. 4.2, Eqs. 8-9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from greedynas_fast.errors import InputError


@dataclass(frozen=True)
class Merge:
    """One merged pair.

    Attributes:
        layer: its layer.
        kept: index of the operation that stays.
        removed: index of the operation that is never sampled again.
        similarity: cosine similarity of their embeddings.
    """

    layer: int
    kept: int
    removed: int
    similarity: float


def similarity_matrices(
    embedding: torch.Tensor | npt.NDArray[np.floating], allowed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Cosine similarities of the operations of each layer, Eqs. (8) and (9).

    Args:
        embedding: [L, N, H], the filter's operation embeddings.
        allowed: bool [L, N], operations that are still there.

    Returns:
        float32 [L, N, N], symmetric; 0 where one of the two operations is not allowed or has no direction (a zero
        embedding, or one that is not finite because the training of the filter diverged).

    Raises:
        InputError: if the shapes do not fit.
    """
    values = torch.as_tensor(embedding).detach().cpu().numpy().astype(np.float64)
    mask = np.asarray(allowed, dtype=bool)
    if values.ndim != 3 or mask.shape != values.shape[:2]:
        raise InputError(f"embedding must be [L, N, H] and allowed [L, N], got {values.shape} and {mask.shape}")
    usable = mask & np.isfinite(values).all(axis=2)
    values = np.where(usable[:, :, None], values, 0.0)
    norms = np.linalg.norm(values, axis=2, keepdims=True)
    units = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    result: npt.NDArray[np.float32] = np.matmul(units, units.transpose(0, 2, 1)).astype(np.float32)
    return result


def shrink_operations(
    embedding: torch.Tensor | npt.NDArray[np.floating],
    allowed: npt.NDArray[np.bool_],
    macs: npt.NDArray[np.integer],
    threshold: float = 0.8,
) -> tuple[npt.NDArray[np.bool_], list[Merge]]:
    """Merge similar operations of a layer into the one with fewer MACs.

    Pairs are taken in descending similarity; an operation that was removed takes part in no later pair; each merge
    keeps one of its two, so no layer becomes empty. Equal MACs keep the lower index.

    Note: the prose of Sec. 4.2 merges where the similarity is "less than" the threshold; the rule under Eq. (9) and
    Table 5 say above, which is what is done.

    Args:
        embedding: [L, N, H], the filter's operation embeddings.
        allowed: bool [L, N], operations that are still there; others are ignored.
        macs: int [L, N], multiply-accumulates of each operation.
        threshold: cosine similarity above which a pair is merged, -1..1.

    Returns:
        The new mask, bool [L, N] (the given one is left as it is), and the merges in the order made.

    Raises:
        InputError: if the shapes do not fit or the threshold is out of range.
    """
    if not -1.0 <= threshold <= 1.0:
        raise InputError(f"threshold must be a cosine similarity between -1 and 1, got {threshold}")
    costs = np.asarray(macs)
    remaining = np.array(allowed, dtype=bool)
    if costs.shape != remaining.shape:
        raise InputError(f"macs must have the shape of allowed {remaining.shape}, got {costs.shape}")
    similarity = similarity_matrices(embedding, remaining)
    merges: list[Merge] = []
    for layer in range(remaining.shape[0]):
        ops = np.flatnonzero(remaining[layer])
        pairs = [(float(similarity[layer, j, k]), int(j), int(k)) for j in ops for k in ops if j < k]
        for value, j, k in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
            if value > threshold and remaining[layer, j] and remaining[layer, k]:
                kept, removed = (k, j) if costs[layer, k] < costs[layer, j] else (j, k)
                remaining[layer, removed] = False
                merges.append(Merge(layer, kept, removed, value))
    return remaining, merges
