"""A depth-first walk of the prefix tree of paths.

A level is a place in the network (stem, layers, head), a node a prefix of some paths, computed from the node before it.
Where paths part, the activation is held until the last of them has gone on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Run = Callable[[int, int, Tensor], Tensor]
"""Runs the module of a node: (level, path that names the node, input) -> output."""


class _Branch(NamedTuple):
    """Groups of paths that have still to go on from an activation, the next one last.

    Attributes:
        x: input of `level`.
        level: from here on the modules are run for every group.
        groups: (first, past the last) path.
    """

    x: Tensor
    level: int
    groups: list[tuple[int, int]]


class PrefixTree:
    """Distinct paths in lexicographic order, which puts those with a common prefix side by side.

    Attributes:
        paths: int64 [m, D], a choice a level.
        node: int64 [m, D], the first path that has the same choices up to and including the level: it names the node.
    """

    def __init__(self, paths: NDArray[np.int64]) -> None:
        """Take the paths, [m, D], sorted and distinct."""
        self.paths = paths
        parts = np.ones(paths.shape, dtype=bool)  # from the path before, at this level or an earlier one
        np.logical_or.accumulate(paths[1:] != paths[:-1], axis=1, out=parts[1:])
        rows = np.arange(len(paths))[:, None]
        self.node = np.maximum.accumulate(np.where(parts, rows, 0), axis=0)

    def walk(self, x: Tensor, run: Run, memory: int) -> Iterator[tuple[int, Tensor]]:
        """Run all modules of all paths, those of a shared prefix once.

        The same calls are made for a path whatever the other paths are, so its result does not depend on them.

        Args:
            x: input of the first level.
            run: see `Run`.
            memory: bytes of activations held at most for paths that come later; x and what is being computed are not
                counted. Where they would be more, the levels since the last held activation are run again.

        Yields:
            (path, output of the last level), path by path.
        """
        root, depth = x, self.paths.shape[1]
        stack = [_Branch(root, 0, [(0, len(self.paths))])] if len(self.paths) else []
        while stack:
            base = stack[-1]
            first, end = base.groups.pop()
            if not base.groups:
                stack.pop()
            x, level = base.x, base.level
            while end - first > 1:  # distinct paths: they part before the last level
                *others, (first, end) = self._groups(first, end, level)
                if others:
                    held = _num_bytes([branch.x for branch in stack] + [x], root)
                    base = _Branch(x, level, others) if held <= memory else _Branch(base.x, base.level, others)
                    stack.append(base)
                x = run(level, int(self.node[first, level]), x)
                level += 1
            del base  # nothing will branch off any more: what is passed by is freed
            for last in range(level, depth):
                x = run(last, int(self.node[first, last]), x)
            yield first, x

    def _groups(self, first: int, end: int, level: int) -> list[tuple[int, int]]:
        """Paths first .. end - 1, alike before `level`, by their choice there; the last group first."""
        later = np.unique(self.node[first:end, level])[1:].tolist()
        return list(zip([first, *later], [*later, end], strict=True))[::-1]


def _num_bytes(tensors: Sequence[Tensor], root: Tensor) -> int:
    """Of different tensors: an identity hands on its input. `root` is the caller's."""
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in tensors if x is not root}.values())
