"""Scoring where memory runs out: fewer paths at a time, said once, and the same scores; and where it gives up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.supernet import MemoryBound, PathScores, Supernet, score_paths
from greedynas_fast.supernet.scoring import walk

POOL = np.array([[a, b, 2 * c % 4, b] for a in (0, 2, 5) for b in (1, 2) for c in (0, 1)], dtype=np.uint8)
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of .."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: .."),
    "other cpu": RuntimeError(
        "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 .."
    ),
    "core": MemoryError("std::bad_alloc"),
}


@pytest.fixture(scope="module")
def net(space) -> Supernet:
    return Supernet(space, seed=3).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def data(images, labels) -> tuple[Tensor, Tensor]:
    return images(7, seed=5), labels(7)


@pytest.fixture(scope="module")
def options(images) -> dict[str, dict[str, object]]:
    calibration = [images(4, seed=6), images(3, seed=7) * 2 + 1]
    return {
        "batch": {"batch_size": 4},
        "recalibrate": {"batch_size": 4, "bn": "recalibrate", "calibration": calibration},
    }


class SmallMemory:
    """In place of `PrefixTree`: fails at the `call`-th module that is run for more than `paths` paths at once.

    The module has then been run in part: its first batch norm has taken up what it saw.
    """

    def __init__(self, paths: int, error: Exception, call: int = 5) -> None:
        self.paths, self.error, self.call = paths, error, call
        self.failures = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        original, small = walk.PrefixTree.walk, self

        def spoilt(tree: walk.PrefixTree, x: Tensor, run: walk.Run, memory: int) -> Iterator[tuple[int, Tensor]]:
            calls = 0

            def counted(level: int, node: int, x: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                y = run(level, node, x)
                if calls == small.call and len(tree.paths) > small.paths:
                    small.failures += 1
                    raise type(small.error)(*small.error.args)  # a new one, that holds no earlier frames
                return y

            return original(tree, x, counted, memory)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walk.PrefixTree, "walk", spoilt)
            yield


def same(first: PathScores, second: PathScores) -> bool:
    return np.array_equal(first.loss, second.loss) and np.array_equal(first.accuracy, second.accuracy)


@pytest.mark.parametrize("bn", ["batch", "recalibrate"])
@pytest.mark.parametrize(
    ("error", "paths", "call"), [("cuda", 3, 5), ("cpu", 1, 9), ("other cpu", 6, 1), ("core", 5, 20)]
)
def test_scores_are_the_same_with_less_memory(net, data, options, bn, error, paths, call) -> None:
    wanted = score_paths(net, POOL, *data, **options[bn])
    said: list[str] = []
    bound = MemoryBound(1 << 20, said.append)
    small = SmallMemory(paths, ERRORS[error], call)
    with small():
        assert same(score_paths(net, POOL, *data, **options[bn], memory=bound), wanted)
        failures = small.failures
        assert failures >= 1
        assert bound.group is not None
        assert bound.group <= paths
        assert bound.num_bytes == (1 << 20) >> failures
        # The next call begins with what has been found to be enough.
        assert same(score_paths(net, POOL, *data, **options[bn], memory=bound), wanted)
        assert small.failures == failures
    assert len(said) == 1
    assert said[0].startswith("not enough memory to score 12 paths together; going on with half as many")


@pytest.mark.parametrize("bn", ["batch", "recalibrate"])
def test_gives_up_on_a_single_path(net, data, options, bn, capsys) -> None:
    state = {key: value.clone() for key, value in net.state_dict().items()}
    message = "batch_size: there is not enough memory to score one path on 4 images at once"
    with SmallMemory(0, ERRORS["cuda"], 2)(), pytest.raises(InputError, match=message):
        score_paths(net, POOL, *data, **options[bn])
    assert capsys.readouterr().err.startswith("not enough memory to score 12 paths together")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_other_errors_are_no_lack_of_memory(net, data, options) -> None:
    with SmallMemory(1, RuntimeError("shapes differ"))(), pytest.raises(RuntimeError, match="shapes differ"):
        score_paths(net, POOL, *data, **options["batch"])


def test_activations_of_the_failed_attempt_are_freed(net, data, options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next attempt begins, nothing of the last one may be held by its exception."""
    small, outputs, alive = SmallMemory(6, ERRORS["cpu"], 12), [], []
    forward = type(net.stem).forward

    def noted(self: torch.nn.Module, x: Tensor) -> Tensor:
        alive.append(sum(reference() is not None for reference in outputs))
        y = forward(self, x)
        outputs.append(weakref.ref(y))
        return y

    monkeypatch.setattr(type(net.stem), "forward", noted)
    gc.disable()
    try:
        with small():
            score_paths(net, POOL, *data, **options["batch"])
    finally:
        gc.enable()
    assert small.failures == 1
    assert len(outputs) > 2
    assert set(alive) == {0}
