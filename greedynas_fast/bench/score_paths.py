"""`bench score_paths`: many paths scored on the same images, shared prefixes once, beside a loop over the paths.

64 random paths of `mb-se` on 64 images at 96 pixels, 2,000 of `nas-bench-macro` on 32 images at 32; one thread,
float32, batch norm by batch statistics. The loops are timed on some of the paths, drawn at random: each path costs them
a whole forward pass, whatever the others are. On these, all are compared with float64; the shared scores are compared
with torch's loop on 64 paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast import paths, spaces
from greedynas_fast.nn import use_backend
from greedynas_fast.supernet import Supernet, score_paths
from greedynas_fast.supernet.scoring import score_one_at_a_time

from .codec import core_threads
from .timing import Budget, alternate, core_isa, fastest, make_row, rate_values, torch_isa, torch_threads
from .training import FUSED, REFERENCE_LAST, VERSIONS, refuse

Paths = npt.NDArray[np.uint8]  # [m, L]
Losses = npt.NDArray[np.float64]  # [m]

SHARED, ONE_BY_ONE = "shared prefixes", "one path at a time, "
SEED, STREAM = 0, 0
ROUNDS = 5  # at most: one of them takes a minute
TOLERANCE = 1e-4  # relative, of a loss; found are differences below 1e-5
_FEW_REPEATS = 3  # up to this many rounds a run is a quick one


class Setting(NamedTuple):
    """What is scored.

    Attributes:
        space: its name.
        num_paths: random paths that are scored together.
        num_images: random images.
        resolution: of these.
        num_compared: the paths among them whose losses and order are compared with a loop's.
        num_timed: the paths among these that the loops are timed on, and all versions are compared with float64 on.
    """

    space: str
    num_paths: int
    num_images: int
    resolution: int
    num_compared: int
    num_timed: int


SETTINGS = (Setting("mb-se", 64, 64, 96, 64, 8), Setting("nas-bench-macro", 2000, 32, 32, 64, 32))
QUICK_SETTINGS = (Setting("mb-se", 12, 16, 64, 12, 4), Setting("nas-bench-macro", 200, 8, 32, 64, 16))


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `score_paths.<space>`; losses and their order are compared first.

    Raises:
        RuntimeError: a version and the float64 reference disagree.
    """
    rows = []
    with torch_threads(1), core_threads(1):
        for setting in QUICK_SETTINGS if budget.repeats <= _FEW_REPEATS else SETTINGS:
            rows += _compare(setting, min(budget.repeats, ROUNDS))
    return rows


class _Case:
    """The paths, the images, and a supernet in each version."""

    def __init__(self, setting: Setting) -> None:
        self.space = spaces.get(setting.space)
        generator = torch.Generator().manual_seed(SEED)
        shape = (setting.num_images, self.space.in_channels, setting.resolution, setting.resolution)
        self.images = torch.randn(shape, generator=generator)
        self.labels = torch.randint(self.space.num_classes, (setting.num_images,), generator=generator)
        self.paths = paths.propose(self.space.allowed, SEED, STREAM, 0, setting.num_paths)
        self.places = np.random.default_rng(SEED).choice(setting.num_paths, setting.num_compared, replace=False)
        self.num_timed = setting.num_timed
        self.nets = {name: version.prepare(self._net()) for name, version in VERSIONS.items()}

    def _net(self) -> Supernet:
        """An untrained supernet, but for a classifier whose logits are far enough apart to rank paths."""
        net = Supernet(self.space, SEED)
        with torch.no_grad():
            net.head.classifier.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(SEED))
        return net

    def shared(self) -> Losses:
        """Losses of all paths."""
        return score_paths(self.nets[FUSED], self.paths, self.images, self.labels, batch_size=len(self.labels)).loss

    def one_by_one(self, net: Supernet, images: Tensor) -> Losses:
        """Losses of the timed paths."""
        return self._loop(net, images, self.num_timed)

    def compared(self, version: str) -> Losses:
        """Losses of the compared paths, the timed ones first."""
        images = self.images.contiguous(memory_format=VERSIONS[version].memory_format)
        return self._loop(self.nets[version], images, len(self.places))

    def _loop(self, net: Supernet, images: Tensor, count: int) -> Losses:
        chosen = self.paths[self.places[:count]]
        return score_one_at_a_time(net, chosen, images, self.labels, batch_size=len(self.labels)).loss

    def wanted(self) -> Losses:
        """Losses of the timed paths by torch's layers in float64."""
        net = self._net().double()
        use_backend(net, "reference")
        return self.one_by_one(net, self.images.double())

    def share_of_calls(self) -> float:
        """Layers that are run for all paths, in units of those that the loop runs."""
        depths = range(1, self.paths.shape[1] + 1)
        nodes = sum(len(np.unique(self.paths[:, :depth], axis=0)) for depth in depths)
        return nodes / self.paths.size


def _compare(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    name, case = f"score_paths.{setting.space}", _Case(setting)
    runs: dict[str, Callable[[], Losses]] = {SHARED: case.shared}
    for version, net in case.nets.items():
        images = case.images.contiguous(memory_format=VERSIONS[version].memory_format)
        runs[ONE_BY_ONE + version] = partial(case.one_by_one, net, images)
    errors = _errors(name, case, runs)
    rates = alternate({provider: _counted(run) for provider, run in runs.items()}, repeats)
    peers = [provider for provider in runs if provider not in (SHARED, ONE_BY_ONE + FUSED)]
    best = fastest(rates, peers)
    note = f"{setting.num_images} images at {setting.resolution}"
    notes = {SHARED: f"{note}; runs {case.share_of_calls():.0%} of the loop's layers"}
    return [
        make_row(
            name,
            provider,
            torch_isa() if provider in peers else core_isa(),
            1,
            paths=setting.num_paths if provider == SHARED else setting.num_timed,
            max_error=errors[provider],
            note=notes.get(provider, f"{note}; timed on {setting.num_timed} of {setting.num_paths:,} paths"),
            **rate_values(rates, provider, best),
        )
        for provider in runs
    ]


def _counted(run: Callable[[], Losses]) -> Callable[[], int]:
    return lambda: len(run())


def _errors(name: str, case: _Case, runs: Mapping[str, Callable[[], Losses]]) -> dict[str, float]:
    """The largest relative error of a loss, of every version.

    Raises:
        RuntimeError: a loss is further than `TOLERANCE` from float64, or from torch's loop on the compared paths; or
            paths whose losses are further apart than twice that are in another order.
    """
    wanted = case.wanted()
    errors = {}
    for provider, run in runs.items():
        found = run()
        if provider == SHARED:
            found = found[case.places]
            _require_equal(name, provider, found, case.compared(REFERENCE_LAST), "torch's loop")
            found = found[: len(wanted)]
        errors[provider] = _require_equal(name, provider, found, wanted, "the float64 reference")
    return errors


def _require_equal(name: str, provider: str, found: Losses, wanted: Losses, source: str) -> float:
    """The largest relative error, unless losses or their order differ."""
    error = float(np.max(np.abs(found - wanted) / wanted))
    refuse(name, provider, error, TOLERANCE, source)
    if not same_order(found, wanted):
        raise RuntimeError(f"{name}: {provider} and {source} put the paths in another order")
    return error


def same_order(found: Losses, wanted: Losses) -> bool:
    """Whether all pairs are ordered alike, but for those that are closer than twice `TOLERANCE`, which are ties."""
    apart = wanted[:, None] - wanted[None]
    tied = np.abs(apart) <= 2 * TOLERANCE * np.maximum(wanted[:, None], wanted[None])
    return bool((tied | (np.sign(found[:, None] - found[None]) == np.sign(apart))).all())
