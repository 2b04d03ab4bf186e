"""A search space: layers of alternative operations between a fixed stem and head, and what can be asked of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.spaces import cost as costing
from greedynas_fast.spaces import pathtext, serial
from greedynas_fast.spaces.canonical import canonical_paths
from greedynas_fast.spaces.checks import positive_int
from greedynas_fast.spaces.cost import Cost
from greedynas_fast.spaces.describe import describe_space
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, StemSpec
from greedynas_fast.spaces.validation import check_structure, total_stride

Paths = npt.NDArray[np.uint8]


class _CostTable(NamedTuple):
    """Costs at one resolution: `params` and `macs` int64 [L, max_ops], `fixed` the stem and head."""

    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]
    fixed: Cost


@dataclass(frozen=True)
class SearchSpace:
    """All networks that choose one operation in each of L layers (Sec. 3, Table 1).

    A path is a uint8 array [L] of indices into each layer's operations; a batch of paths is uint8 [n, L].

    Attributes:
        name: how the space is asked for.
        stem: what precedes the layers.
        layers: the L searchable layers, in order.
        head: what follows the layers.
        in_channels: of the images.
        num_classes: outputs of the classifier.
        resolution: pixels a side of the (square) images.

    Raises:
        InputError: the parts do not fit together, or a size is not positive or too small.
    """

    name: str
    stem: StemSpec
    layers: tuple[LayerSpec, ...]
    head: HeadSpec
    in_channels: int
    num_classes: int
    resolution: int

    def __post_init__(self) -> None:
        for field in ("in_channels", "num_classes"):
            object.__setattr__(self, field, positive_int(field, getattr(self, field)))
        check_structure(self.name, self.stem, self.layers, self.head)
        object.__setattr__(self, "resolution", self._checked_resolution(self.resolution))

    @property
    def num_layers(self) -> int:
        """Searchable layers, L."""
        return len(self.layers)

    @cached_property
    def ops(self) -> tuple[tuple[str, ...], ...]:
        """Names of each layer's operations, in the order of their indices."""
        return tuple(tuple(spec.name for spec in layer.ops) for layer in self.layers)

    @property
    def num_ops(self) -> tuple[int, ...]:
        """How many operations each layer has."""
        return tuple(len(layer.ops) for layer in self.layers)

    @property
    def max_ops(self) -> int:
        """The most operations that a layer has."""
        return max(self.num_ops)

    @property
    def size(self) -> int:
        """Number of paths, exactly."""
        return math.prod(self.num_ops)

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Mask bool [L, max_ops] of the operations that exist; a fresh copy each time."""
        return np.arange(self.max_ops)[None, :] < np.array(self.num_ops)[:, None]

    def parse(self, text: str | Sequence[str] | Sequence[int] | npt.NDArray[np.integer[Any]]) -> Paths:
        """Read a path.

        Args:
            text: names in any case separated by spaces, commas or `|`; or one base-32 digit (0-9, a-v) a layer; or a
                sequence of names; or a sequence of indices.

        Returns:
            The path, uint8 [L].

        Raises:
            InputError: a wrong number of operations, or one that its layer does not have.
        """
        if isinstance(text, str):
            indices = pathtext.indices_from_text(text, self.ops)
        elif len(text) > 0 and all(isinstance(item, str) for item in text):
            indices = pathtext.indices_from_names([str(item) for item in text], self.ops)
        else:
            return self._single(text)
        return self._single(indices)

    def format(self, path: npt.ArrayLike, style: Literal["names", "digits"] = "names") -> str:
        """Write a path as text that `parse` reads.

        Args:
            path: integers [L].
            style: `names`, with a bar between stages, or `digits`, one base-32 digit a layer.

        Raises:
            InputError: not a path of this space, or an unknown style.
        """
        indices: list[int] = self._single(path).tolist()
        if style == "digits":
            return pathtext.digits_text(indices)
        if style == "names":
            names = [names[index] for names, index in zip(self.ops, indices, strict=True)]
            return pathtext.names_text(names, [layer.stage for layer in self.layers])
        raise InputError(f"style: expected 'names' or 'digits', got {style!r}")

    def check(self, paths: npt.ArrayLike, allowed: npt.NDArray[np.bool_] | None = None) -> Paths:
        """Validate paths.

        Args:
            paths: integers [L] or [n, L].
            allowed: bool [L, max_ops], the operations that may still be used; None: all that exist.

        Returns:
            The paths, uint8 [n, L] (n = 1 for a single one).

        Raises:
            InputError: a wrong shape or type, or a first operation that its layer does not have or has lost.
        """
        array = self._integer_batch(paths)
        exists = (array >= 0) & (array < np.array(self.num_ops))
        if not exists.all():
            row, layer = (int(i) for i in np.argwhere(~exists)[0])
            raise InputError(
                f"paths: path {row} asks layer {layer} for operation {array[row, layer]}, "
                f"expected 0 to {self.num_ops[layer] - 1}"
            )
        batch = array.astype(np.uint8)
        if allowed is not None:
            self._refuse_removed(batch, allowed)
        return batch

    def cost(self, path: npt.ArrayLike, resolution: int | None = None) -> Cost:
        """Exact parameters and MACs of one network, stem and head included.

        Args:
            path: integers [L].
            resolution: pixels a side; None: the space's own.
        """
        params, macs = self.costs(self._single(path), resolution)
        return Cost(int(params[0]), int(macs[0]))

    def costs(
        self, paths: npt.ArrayLike, resolution: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Exact costs of many networks.

        Args:
            paths: integers [L] or [n, L].
            resolution: pixels a side; None: the space's own.

        Returns:
            Parameters int64 [n] and MACs int64 [n].
        """
        batch, table, layers = self.check(paths), self._cost_table(resolution), np.arange(self.num_layers)
        params = table.params[layers, batch].sum(axis=1, dtype=np.int64) + table.fixed.params
        macs = table.macs[layers, batch].sum(axis=1, dtype=np.int64) + table.fixed.macs
        return params, macs

    def op_costs(self, resolution: int | None = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Costs of each operation at each layer: parameters and MACs, int64 [L, max_ops], 0 where none exists."""
        table = self._cost_table(resolution)
        return table.params.copy(), table.macs.copy()

    def fixed_cost(self, resolution: int | None = None) -> Cost:
        """Cost of the stem and the head together."""
        return self._cost_table(resolution).fixed

    def supernet_params(self) -> int:
        """Parameters of the supernet: stem, head, and every operation of every layer."""
        table = self._cost_table(None)
        return int(table.params.sum()) + table.fixed.params

    def canonical(self, paths: npt.ArrayLike) -> Paths:
        """Normal form of paths that are the same network; see `canonical.canonical_paths`.

        Args:
            paths: integers [L] or [n, L].

        Returns:
            uint8 [n, L].
        """
        return canonical_paths(self.layers, self.check(paths))

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON values; `from_dict` reads it."""
        return {
            "name": self.name,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "resolution": self.resolution,
            "stem": serial.stem_to_dict(self.stem),
            "layers": [serial.layer_to_dict(layer) for layer in self.layers],
            "head": serial.head_to_dict(self.head),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Inverse of `to_dict`.

        Raises:
            InputError: a part is missing, unknown, or does not fit.
        """
        return serial.build(cls, serial.space_parts_from_dict(data))

    def describe(self, resolution: int | None = None) -> dict[str, Any]:
        """Sizes, layers and the range of costs as plain JSON values; see `describe.describe_space`."""
        return describe_space(self, resolution)

    def fingerprint(self) -> str:
        """Sha256, in hex, of the canonical JSON of `to_dict`: equal for equal spaces, in any process."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _integer_batch(self, paths: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
        """`paths` as an integer array [n, L]."""
        try:
            array = np.asarray(paths)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"paths: expected integers [{self.num_layers}] or [n, {self.num_layers}]") from error
        if array.ndim == 1:
            array = array[None, :]
        if array.ndim != 2 or array.shape[1] != self.num_layers:
            raise InputError(
                f"paths: expected {self.num_layers} operations a path, got an array of shape {np.shape(paths)}"
            )
        if array.dtype.kind not in "iu":
            raise InputError(f"paths: expected integers, got {array.dtype}")
        return array

    def _single(self, path: object) -> Paths:
        """One validated path, uint8 [L]."""
        batch = self.check(np.asarray(path))
        if len(batch) != 1:
            raise InputError(f"path: expected one path of {self.num_layers} operations, got {len(batch)} paths")
        single: Paths = batch[0]
        return single

    def _refuse_removed(self, batch: Paths, allowed: npt.NDArray[np.bool_]) -> None:
        """Raise for the first operation that the mask has no more."""
        mask = np.asarray(allowed)
        if mask.shape != (self.num_layers, self.max_ops) or mask.dtype != np.bool_:
            raise InputError(
                f"allowed: expected a bool array [{self.num_layers}, {self.max_ops}], "
                f"got {mask.dtype} of shape {mask.shape}"
            )
        kept = mask[np.arange(self.num_layers), batch]
        if not kept.all():
            row, layer = (int(i) for i in np.argwhere(~kept)[0])
            raise InputError(
                f"paths: path {row} uses {self.ops[layer][batch[row, layer]]} at layer {layer}, which was removed"
            )

    def _checked_resolution(self, resolution: int) -> int:
        """A resolution whose last feature map still has a pixel of its own."""
        pixels, stride = positive_int("resolution", resolution), total_stride(self.stem, self.layers)
        if pixels < stride:
            raise InputError(
                f"resolution: {self.name} reduces images {stride} times, so expected at least {stride} pixels a side, "
                f"got {pixels}"
            )
        return pixels

    @cached_property
    def _cost_tables(self) -> dict[int, _CostTable]:
        """Cost tables made so far, by resolution."""
        return {}

    def _cost_table(self, resolution: int | None) -> _CostTable:
        """The cost table for a resolution; made once."""
        pixels = self.resolution if resolution is None else self._checked_resolution(resolution)
        if pixels not in self._cost_tables:
            self._cost_tables[pixels] = self._build_cost_table(pixels)
        return self._cost_tables[pixels]

    def _build_cost_table(self, resolution: int) -> _CostTable:
        """Costs of every operation of every layer, and of the fixed parts."""
        params = np.zeros((self.num_layers, self.max_ops), dtype=np.int64)
        macs = np.zeros_like(params)
        size = costing.stem_output_size(self.stem, resolution)
        for row, layer in enumerate(self.layers):
            for index, spec in enumerate(layer.ops):
                params[row, index], macs[row, index] = costing.operation_cost(
                    spec, layer.in_channels, layer.out_channels, layer.stride, size
                )
            size = costing.output_size(size, layer.stride)
        stem = costing.stem_cost(self.stem, self.in_channels, resolution)
        head = costing.head_cost(self.head, self.num_classes, size)
        return _CostTable(params, macs, Cost(stem.params + head.params, stem.macs + head.macs))
