"""What the path filter is compared with: the same network, with the same weights, in torch and in numpy.

Legend: n paths, L layers, N operations in the widest layer, H hidden units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from greedynas_fast import spaces
from greedynas_fast.filter import PathFilter
from greedynas_fast.spaces import SearchSpace

Paths = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Score = Callable[[Paths], Floats]  # uint8 [n, L] -> log Phi [n]

SPACE, HIDDEN = "mb-se", 128
_NUMPY_CHUNK = 256  # keeps the gates of a step in the second-level cache


def network() -> tuple[SearchSpace, PathFilter]:
    """The space and the filter that are measured; random weights."""
    space = spaces.get(SPACE)
    return space, PathFilter(space, HIDDEN, seed=0).eval()


class LiteralFilter(nn.Module):
    """The network as Sec. 4.1 describes it, of torch's own modules: Embedding, LSTM, two linear layers.

    It shares the parameters of `net`. In another dtype it holds copies, and below float32 only Embedding and LSTM are
    converted: log Phi would be rounded to nothing, and the head costs 1 % of the time.
    """

    def __init__(self, net: PathFilter, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        layers, operations, hidden = net.embedding.shape
        self.embedding = nn.Embedding(layers * operations, hidden, device="meta")
        self.embedding.weight = nn.Parameter(net.embedding.detach().view(layers * operations, hidden))
        self.lstm, self.fc1, self.fc2 = net.lstm, net.fc1, net.fc2
        self.offsets = torch.arange(layers) * operations
        if dtype != torch.float32:
            self.embedding, self.lstm = copy.deepcopy(self.embedding).to(dtype), copy.deepcopy(self.lstm).to(dtype)
        if dtype == torch.float64:
            self.fc1, self.fc2 = copy.deepcopy(self.fc1).to(dtype), copy.deepcopy(self.fc2).to(dtype)

    def forward(self, paths: Tensor) -> Tensor:
        """int64 [n, L] -> log Phi [n]."""
        _, (last, _) = self.lstm(self.embedding(paths + self.offsets))
        features = torch.cat([last[0], last[1]], dim=1).to(self.fc1.weight.dtype)
        return torch.log_softmax(self.fc2(torch.relu(self.fc1(features))), dim=1)[:, 1]


class TableFilter(nn.Module):
    """The network with its input projection as a table, in plain operations: the form that torch.compile does best."""

    def __init__(self, net: PathFilter, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1, self.fc2 = net.fc1, net.fc2
        self.tables = [table.detach().to(dtype) for table in net.tables()]  # two of [L, N, 4H]
        self.weights = [weight.detach().t().contiguous().to(dtype) for weight in _recurrent(net)]  # two of [H, 4H]

    def forward(self, paths: Tensor) -> Tensor:
        """int64 [n, L] -> log Phi [n]."""
        order = range(paths.shape[1])
        ends = (self._last_hidden(paths, 0, order), self._last_hidden(paths, 1, reversed(order)))
        features = torch.cat(ends, dim=1).float()
        return torch.log_softmax(self.fc2(torch.relu(self.fc1(features))), dim=1)[:, 1]

    def _last_hidden(self, paths: Tensor, direction: int, order: Iterable[int]) -> Tensor:
        """Last hidden state of one direction, [n, H]."""
        table, weight = self.tables[direction], self.weights[direction]
        hidden = cell = None
        for layer in order:
            gates = table[layer][paths[:, layer]]
            if hidden is not None:
                gates = torch.addmm(gates, hidden, weight)
            gate_in, forget, candidate, gate_out = gates.chunk(4, dim=1)
            added = torch.sigmoid(gate_in) * torch.tanh(candidate)
            cell = added if cell is None else torch.sigmoid(forget) * cell + added
            hidden = torch.sigmoid(gate_out) * torch.tanh(cell)
        assert hidden is not None  # a path has a layer
        return hidden


class NumpyFilter:
    """The network with its input projection as a table, in numpy."""

    def __init__(self, net: PathFilter) -> None:
        self._tables = [_array(table) for table in net.tables()]
        self._weights = [np.ascontiguousarray(_array(weight).T) for weight in _recurrent(net)]
        self._fc1 = _array(net.fc1.weight).T, _array(net.fc1.bias)
        self._fc2 = _array(net.fc2.weight).T, _array(net.fc2.bias)

    def __call__(self, paths: Paths) -> Floats:
        """uint8 [n, L] -> log Phi [n]."""
        starts = range(0, len(paths), _NUMPY_CHUNK)
        return np.concatenate([self._score(paths[start : start + _NUMPY_CHUNK]) for start in starts])

    def _score(self, paths: Paths) -> Floats:
        order = range(paths.shape[1])
        ends = self._last_hidden(paths, 0, order), self._last_hidden(paths, 1, reversed(order))
        features = np.maximum(np.concatenate(ends, axis=1) @ self._fc1[0] + self._fc1[1], 0)
        logits = features @ self._fc2[0] + self._fc2[1]
        result: Floats = -np.logaddexp(np.float32(0), logits[:, 0] - logits[:, 1])
        return result

    def _last_hidden(self, paths: Paths, direction: int, order: Iterable[int]) -> Floats:
        table, weight = self._tables[direction], self._weights[direction]
        size = weight.shape[0]
        hidden = cell = np.zeros((len(paths), size), dtype=np.float32)
        for layer in order:
            gates = table[layer][paths[:, layer]] + hidden @ weight
            gate_in, forget = _sigmoid(gates[:, :size]), _sigmoid(gates[:, size : 2 * size])
            cell = forget * cell + gate_in * np.tanh(gates[:, 2 * size : 3 * size])
            hidden = _sigmoid(gates[:, 3 * size :]) * np.tanh(cell)
        return hidden


def in_chunks(module: Callable[[Tensor], Tensor], chunk: int) -> Score:
    """Score with a torch module, `chunk` paths at a time."""

    @torch.inference_mode()
    def score(paths: Paths) -> Floats:
        parts = [module(part) for part in torch.split(torch.from_numpy(paths).long(), chunk)]
        return torch.cat(parts).numpy()

    return score


def _recurrent(net: PathFilter) -> list[Tensor]:
    """W_hh of both directions, each [4H, H]."""
    return [getattr(net.lstm, name) for name in ("weight_hh_l0", "weight_hh_l0_reverse")]


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().numpy()
    return array


def _sigmoid(values: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-values))
    return result
