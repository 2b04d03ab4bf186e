"""The path filter network of Sec. 4.1: per-layer operation embeddings, a bidirectional LSTM and a two-layer classifier.

Legend: L layers, N operations in the widest layer, H hidden units, n paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError

from . import core_recurrence
from ._random import Stream, generator
from .prefixes import Level, prefix_levels
from .recurrence import last_hidden

_T = TypeVar("_T")
PathsLike: TypeAlias = npt.NDArray[np.integer] | Tensor
GOOD, WEAK = 0, 1  # columns of the network's output
_INFERENCE_CHUNK = 1024


class HasOperations(Protocol):
    """Anything that knows the number of operations of each layer, such as a `SearchSpace`."""

    @property
    def num_ops(self) -> tuple[int, ...]:
        """Operations of each layer."""


def operation_counts(space_or_num_ops: HasOperations | Sequence[int]) -> tuple[int, ...]:
    """Operations of each layer, from a space or from the numbers themselves.

    Args:
        space_or_num_ops: a search space, or L positive integers.

    Returns:
        L integers.

    Raises:
        InputError: if there is no layer, or a layer without operations.
    """
    counts = space_or_num_ops if isinstance(space_or_num_ops, Sequence) else space_or_num_ops.num_ops
    result = tuple(int(count) for count in counts)
    if not result or min(result) < 1:
        raise InputError(f"num_ops must be one positive integer a layer, got {list(result)}")
    return result


class PathFilter(nn.Module):
    """Classifies paths as good or weak.

    Weights are drawn from `seed` alone; the global random state is neither read nor written. `lstm` holds its weights
    under torch's names, and `forward` computes what `nn.LSTM` would.

    Attributes:
        num_ops: operations of each layer.
        hidden: H.
        embedding: parameter float32 [L, N, H], the E of Sec. 4.1; rows of operations that a layer lacks are zero.
        lstm: bidirectional, H -> H in each direction.
        fc1: 2H -> H.
        fc2: H -> 2, the logits of (good, weak).
    """

    def __init__(
        self,
        space_or_num_ops: HasOperations | Sequence[int],
        hidden: int = 128,
        *,
        seed: int = 0,
        embedding_std: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise InputError(f"hidden must be at least 1, got {hidden}")
        self.num_ops = operation_counts(space_or_num_ops)
        self.hidden = hidden
        self.embedding = nn.Parameter(torch.empty(len(self.num_ops), max(self.num_ops), hidden))
        with torch.random.fork_rng(devices=[]):  # what torch draws for them is overwritten
            self.lstm = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True, device="cpu")
            self.fc1 = nn.Linear(2 * hidden, hidden, device="cpu")
            self.fc2 = nn.Linear(hidden, 2, device="cpu")
        self._initialise(seed, embedding_std)

    def _initialise(self, seed: int, embedding_std: float) -> None:
        """Torch's default distributions for LSTM and linear layers, a normal for the embeddings."""
        rng = generator(seed, Stream.WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name == "embedding":
                    values = rng.standard_normal(tuple(parameter.shape), dtype=np.float32) * np.float32(embedding_std)
                    for layer, count in enumerate(self.num_ops):
                        values[layer, count:] = 0
                else:
                    fan_in = self.fc1.in_features if name.startswith("fc1") else self.hidden
                    bound = 1.0 / math.sqrt(fan_in)
                    values = ((2 * rng.random(tuple(parameter.shape), dtype=np.float32) - 1) * bound).astype(np.float32)
                parameter.copy_(torch.from_numpy(values))

    def check(self, paths: PathsLike) -> Tensor:
        """Check paths and return them as int64 [n, L] on the network's device.

        Args:
            paths: integer array or tensor [n, L] or [L].

        Returns:
            int64 [n, L].

        Raises:
            InputError: for a wrong length or an operation that the layer does not have.
        """
        tensor = torch.as_tensor(paths).to(device=self.embedding.device, dtype=torch.int64)
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim != 2 or tensor.shape[1] != len(self.num_ops):
            raise InputError(f"paths must be [n, {len(self.num_ops)}], got {list(tensor.shape)}")
        wrong = (tensor < 0) | (tensor >= torch.tensor(self.num_ops, device=tensor.device))
        if bool(wrong.any()):
            row, layer = (int(v) for v in wrong.nonzero()[0])
            raise InputError(
                f"paths: path {row} has operation {int(tensor[row, layer])} at layer {layer}, "
                f"which has {self.num_ops[layer]} operations"
            )
        return tensor

    def tables(self) -> tuple[Tensor, Tensor]:
        """Gate inputs of every operation for the forward and the backward direction, each [L, N, 4H]."""
        layers, ops, hidden = self.embedding.shape
        flat = self.embedding.view(layers * ops, hidden)
        forward, backward = (
            torch.addmm(self._lstm("bias_ih", end) + self._lstm("bias_hh", end), flat, self._lstm("weight_ih", end).t())
            for end in ("", "_reverse")
        )
        return forward.view(layers, ops, 4 * hidden), backward.view(layers, ops, 4 * hidden)

    def classify(self, features: Tensor) -> Tensor:
        """Log-probabilities of (good, weak), [n, 2], from both last hidden states, [n, 2H]."""
        return torch.log_softmax(self.fc2(torch.relu(self.fc1(features))), dim=1)

    def forward(self, paths: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Log-probabilities of (good, weak), differentiable.

        Args:
            paths: int64 [n, L], as `check` returns them.
            tables: the result of `tables()` where the caller needs it more than once.

        Returns:
            float32 [n, 2].
        """
        tables, weights = tables or self.tables(), self.recurrent()
        if core_recurrence.runs(*tables, *weights) and len(paths):
            return self.classify(core_recurrence.last_states(tables, weights, self._levels(paths)))
        return self.by_torch(paths, tables)

    def by_torch(self, paths: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`forward` by torch's operators, on any device and in any precision."""
        directions = zip(tables or self.tables(), self.recurrent(), self._orders(), self._levels(paths), strict=True)
        states = []
        for table, weight, order, levels in directions:
            rows = [_select(table[layer], level.operations) for layer, level in zip(order, levels, strict=True)]
            state = last_hidden(rows, weight, [level.parents for level in levels])
            last = levels[-1].members
            states.append(state if last is None else state[last])
        return self.classify(torch.cat(states, dim=1))

    def forward_mixed(
        self, first: Tensor, second: Tensor, gamma: float, tables: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Log-probabilities of (good, weak) of `gamma * first + (1 - gamma) * second` on the embedded sequences.

        Paths are discrete, so MixUp acts on the embeddings; the input projection is linear and the two weights add up
        to one, so mixing its table rows is the same.

        Args:
            first: int64 [n, L].
            second: int64 [n, L].
            gamma: weight of `first`, 0..1.
            tables: as in `forward`.

        Returns:
            float32 [n, 2].
        """
        tables, weights = tables or self.tables(), self.recurrent()
        if core_recurrence.runs(*tables, *weights) and len(first):
            levels = self._each(lambda layer: Level(first[:, layer], None, None))
            mixed = core_recurrence.Mixed(gamma, self._each(lambda layer: second[:, layer]))
            return self.classify(core_recurrence.last_states(tables, weights, levels, mixed))
        states = []
        for table, weight, order in zip(tables, weights, self._orders(), strict=True):
            rows = [_select(table[layer], first[:, layer], second[:, layer], gamma) for layer in order]
            states.append(last_hidden(rows, weight, [None] * len(rows)))
        return self.classify(torch.cat(states, dim=1))

    def _orders(self) -> tuple[list[int], list[int]]:
        """The layers as each direction meets them."""
        layers = list(range(len(self.num_ops)))
        return layers, layers[::-1]

    def _each(self, of_layer: Callable[[int], _T]) -> tuple[list[_T], list[_T]]:
        """Something of each layer, as each direction meets it."""
        forward, backward = ([of_layer(layer) for layer in order] for order in self._orders())
        return forward, backward

    def _levels(self, paths: Tensor) -> tuple[list[Level], list[Level]]:
        """The distinct beginnings of paths, for both directions."""
        forward, backward = (
            prefix_levels(paths.t()[order], [self.num_ops[layer] for layer in order]) for order in self._orders()
        )
        return forward, backward

    def recurrent(self) -> tuple[Tensor, Tensor]:
        """Hidden-to-hidden weights of both directions, each [4H, H]."""
        return self._lstm("weight_hh", ""), self._lstm("weight_hh", "_reverse")

    def _lstm(self, name: str, end: str) -> Tensor:
        """A parameter of the single LSTM layer; `end` is empty or `_reverse`."""
        parameter: Tensor = getattr(self.lstm, f"{name}_l0{end}")
        return parameter

    @torch.no_grad()
    def log_prob_weak(self, paths: PathsLike) -> Tensor:
        """Log Phi, the log-probability that a path is weak, computed in chunks without gradients.

        Args:
            paths: integer array or tensor [n, L] or [L]; n may be 0.

        Returns:
            float32 [n].

        Raises:
            InputError: for paths that do not fit.
        """
        checked = self.check(paths)
        tables = self.tables()
        parts = [self(chunk, tables)[:, WEAK] for chunk in torch.split(checked, _INFERENCE_CHUNK) if len(chunk)]
        return torch.cat(parts) if parts else checked.new_empty(0, dtype=torch.float32)


def _select(table: Tensor, operations: Tensor, second: Tensor | None = None, gamma: float = 1.0) -> Tensor:
    """Rows of `table` [N, 4H], or mixtures of two, as a product: its gradient is a product too, in a fixed order."""
    weights = nn.functional.one_hot(operations, table.shape[0]).to(table.dtype)
    if second is not None:
        weights = gamma * weights + (1 - gamma) * nn.functional.one_hot(second, table.shape[0]).to(table.dtype)
    return weights @ table
