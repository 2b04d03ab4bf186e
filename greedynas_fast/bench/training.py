"""What the measurements of whole blocks and training steps share: the versions, the comparison, the rows.

A row's `paths` are images here, `paths_per_s` images a second through forward, backward and what else a step does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from greedynas_fast.nn import use_backend

from .timing import Budget, alternate_steps, core_isa, fastest, make_row, rate_values, torch_isa

Module = TypeVar("Module", bound=nn.Module)
Results = Mapping[str, Sequence[Tensor]]  # in groups: the result, gradients, running statistics

FUSED = "fused"
REFERENCE_LAST = "reference channels_last"
FLOOR = 1e-2


class Version(NamedTuple):
    """How the same modules are run.

    Attributes:
        backend: of layers.
        memory_format: of weights and images.
        dtype: of activations, where a measurement has several; otherwise float32.
    """

    backend: Literal["fused", "reference"]
    memory_format: torch.memory_format
    dtype: torch.dtype = torch.float32

    def prepare(self, module: Module) -> Module:
        """Turn a module into this version of it, in place."""
        use_backend(module, self.backend)
        return module.to(memory_format=self.memory_format)


VERSIONS = {
    FUSED: Version("fused", torch.channels_last),
    "reference NCHW": Version("reference", torch.contiguous_format),
    REFERENCE_LAST: Version("reference", torch.channels_last),
}


def distance(found: Results, wanted: Results) -> float:
    """The largest Euclidean distance between two tensors of the same place, relative to the norm of the wanted one.

    Not the largest difference of two values: where rounding makes one value cross a kink of an activation, a few
    gradients of a correct version differ by much. Some gradients are zero but for rounding, such as those of a bias
    before a batch norm: a norm below `FLOOR` of the largest one in its group is taken as that.

    Args:
        found: tensors in named groups.
        wanted: float64 tensors of the same shapes, in the same groups.

    Returns:
        NaN if something is NaN.
    """
    distances = []
    for group, tensors in wanted.items():
        norms = [float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors]
        smallest = max(FLOOR * max(norms), sys.float_info.min)
        for tensor, target, norm in zip(found[group], tensors, norms, strict=True):
            away = float(torch.linalg.vector_norm(tensor.double() - target.double()))
            distances.append(away / max(norm, smallest))
    return float(torch.tensor(distances, dtype=torch.float64).max())  # unlike Python's, this maximum keeps NaN


def refuse(name: str, provider: str, error: float, tolerance: float, source: str = "the float64 reference") -> None:
    """Raise an error if a version computes something else than `source`.

    Raises:
        RuntimeError: `error` is above `tolerance` or NaN.
    """
    if not error <= tolerance:
        raise RuntimeError(f"{name}: {provider} and {source} disagree by {error:.2g}")


def time_rows(
    name: str,
    note: str,
    images: int,
    runs: Mapping[str, Callable[[], object]],
    errors: Mapping[str, float],
    budget: Budget,
) -> list[dict[str, Any]]:
    """Rows of versions that have passed the comparison; the peer is the fastest but the fused one.

    Args:
        name: of the measurement.
        note: what is measured.
        images: that a step handles.
        runs: one step each, on one thread.
        errors: of every version.
        budget: for how long; of short steps many make a run.
    """
    rates = alternate_steps(runs, images, budget)
    best = fastest(rates, [provider for provider in runs if provider != FUSED])
    return [
        make_row(
            name,
            provider,
            core_isa() if provider == FUSED else torch_isa(),
            1,
            paths=images,
            max_error=errors[provider],
            note=note,
            **rate_values(rates, provider, best),
        )
        for provider in runs
    ]
