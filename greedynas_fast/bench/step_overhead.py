"""`bench step_overhead`: what a training step costs beside its forward and backward pass, on one thread, in float32.

For three supernets of 21 layers, with 13, 17 and 21 operations a layer:

- update: the optimizer's step with its block list and the reset of the gradients, on a random path each round, beside
  `torch.optim.SGD(foreach=True)` with `zero_grad(set_to_none=True)` and beside a copy (memmove) of as many bytes as the
  update must move: parameters, gradients and momentum read and written once each. All start with cold caches.
  A copy may also read what it overwrites, so the update can be faster.
- bookkeeping: everything that does not stream parameters. Of this project drawing the path and listing its blocks
  (gradients are reset by the update); with a path filter also finding an acceptable path. Of torch drawing the same
  path, `zero_grad(set_to_none=True)`, and a step() in which no parameter has a gradient.
- DDP: forward and backward pass of two images at 32 x 32 under DistributedDataParallel (gloo, a single process, so
  nothing is sent) with find_unused_parameters, which single-path training needs, beside the same without.
"""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from greedynas_fast import paths, spaces
from greedynas_fast.filter import FilterEngine, PathFilter
from greedynas_fast.nn import use_backend
from greedynas_fast.sampling import FilterSampler, UniformSampler
from greedynas_fast.sampling.protocol import Sampler
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet import BankSGD, ParameterBank, Supernet

from .codec import core_threads
from .timing import Budget, core_isa, make_row, quantiles, torch_isa, torch_threads

SPACES = ("mb-se", "mb-se-mix", "mb-se-mix-shuffle")
CORE, TORCH, COPY = "core", "torch SGD foreach + zero_grad", "copy"
SEED, STREAM, THRESHOLD = 0, 0, 1
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 4e-5
MOVED_BYTES = 24  # a parameter: its value, its gradient and its momentum are read and written
EVICT_FLOATS = 1 << 25  # 128 MB, more than most caches
ROUNDS = 3  # times the repeats of the budget: a step is short
DRAWN = 512  # paths that a sampler draws at once; training draws all up to the next filter update
QS = (0.5, 0.9)  # weak-path priors: one of two and one of ten proposals is accepted
THRESHOLD_PATHS, HIDDEN = 2000, 128
TOLERANCE = 1e-5  # of the largest parameter, after all rounds
DDP_IMAGES, DDP_SIZE = 2, 32

Paths = npt.NDArray[np.uint8]  # [n, L]


class _Version(NamedTuple):
    """What is timed in a round; `prepare` goes before it and is not."""

    prepare: Callable[[int], object]
    run: Callable[[int], object]
    steps: int = 1


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `step_overhead.<space>`: `ms` a step, and `share_of_copy`, the copy's time in proportion.

    Raises:
        RuntimeError: the two updates disagree.
    """
    rows = []
    with torch_threads(1), core_threads(1):
        for name in SPACES[:1] if budget.repeats <= 3 else SPACES:
            space = spaces.get(name)
            batch = paths.propose(space.allowed, SEED, STREAM, 0, ROUNDS * budget.repeats)
            ours, theirs = _Ours(space, batch), _Torch(space, batch)
            rows += _update_rows(space, batch, ours, theirs)
            rows += _bookkeeping_rows(space, budget.repeats, ours, theirs)
            del ours, theirs  # some hundred MB
            rows += _ddp_rows(space, batch[: budget.repeats])
    return rows


class _Trained:
    """A supernet and gradients for the paths of all rounds, the same values in every version."""

    def __init__(self, space: SearchSpace, batch: Paths) -> None:
        self.net = Supernet(space, SEED)
        self.batch = batch
        largest = max(parameter.numel() for parameter in self.net.parameters())
        self._noise = torch.randn(largest, generator=torch.Generator().manual_seed(SEED))

    def gradients(self, index: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The parameters of the path of a round, each with a gradient."""
        net = self.net
        for module in (net.stem, *net.operations(self.batch[index]), net.head):
            for parameter in module.parameters():
                yield parameter, self._noise[: parameter.numel()].view(parameter.shape)


class _Ours(_Trained):
    def __init__(self, space: SearchSpace, batch: Paths) -> None:
        super().__init__(space, batch)
        self.optimizer = BankSGD(ParameterBank(self.net), MOMENTUM, WEIGHT_DECAY)

    def prepare(self, index: int) -> None:
        """As a backward pass would."""
        with torch.no_grad():
            for parameter, gradient in self.gradients(index):
                assert parameter.grad is not None  # a view of the bank
                parameter.grad.copy_(gradient)

    def step(self, index: int) -> None:
        self.optimizer.step(self.batch[index], LR)

    def active(self, index: int) -> int:
        """Floats that a step of this round moves."""
        blocks = self.optimizer.blocks(self.batch[index])
        return int((blocks[:, 2] - blocks[:, 0]).sum())


class _Torch(_Trained):
    def __init__(self, space: SearchSpace, batch: Paths) -> None:
        super().__init__(space, batch)
        parameters = list(self.net.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, foreach=True)
        for parameter in parameters:  # or new operations would take a slower way, as in the first epochs
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def prepare(self, index: int) -> None:
        """As a backward pass would."""
        for parameter, gradient in self.gradients(index):
            parameter.grad = gradient.clone()

    def step(self, index: int) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def bookkeeping(self, sampler: Sampler) -> None:
        sampler.sample(1)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()


def _time(versions: Mapping[str, _Version], rounds: int, between: Callable[[], object]) -> dict[str, list[float]]:
    """Milliseconds a step of each version; they take turns, and `between` runs before each of them."""
    times: dict[str, list[float]] = {name: [] for name in versions}
    for index in range(rounds):
        for name, version in versions.items():
            version.prepare(index)
            between()
            start = time.perf_counter()
            version.run(index)
            times[name].append((time.perf_counter() - start) * 1e3 / version.steps)
    return times


def _nothing(*_: object) -> None:
    pass


def _update_rows(space: SearchSpace, batch: Paths, ours: _Ours, theirs: _Torch) -> list[dict[str, Any]]:
    active = [ours.active(index) for index in range(len(batch))]
    source = torch.randn(3 * max(active), generator=torch.Generator().manual_seed(SEED))
    target, evict = source.clone(), torch.ones(EVICT_FLOATS)

    def copy(index: int) -> None:
        ctypes.memmove(target.data_ptr(), source.data_ptr(), active[index] * MOVED_BYTES // 2)

    versions = {
        CORE: _Version(ours.prepare, ours.step),
        TORCH: _Version(theirs.prepare, theirs.step),
        COPY: _Version(_nothing, copy),
    }
    _time(versions, len(batch), _nothing)  # untouched momentum is not mapped yet
    times = _time(versions, len(batch), evict.sum)
    error = _disagreement(ours, theirs)
    if not error <= TOLERANCE:
        raise RuntimeError(f"step_overhead.{space.name}: the update and torch's disagree by {error:.2g}")
    total = sum(parameter.numel() for parameter in ours.net.parameters())
    note = f"update, {np.median(active) / 1e6:.1f} M of {total / 1e6:.1f} M parameters"
    rows = _rows(space, note, times, TORCH, {CORE: error})
    for row in rows:
        share = np.array(times[COPY]) / np.array(times[row["provider"]])
        rate = np.array(active) * MOVED_BYTES / np.array(times[row["provider"]]) / 1e6
        row |= {"share_of_copy": float(np.median(share)), "gb_per_s": float(np.median(rate))}
    return rows


def _disagreement(ours: _Ours, theirs: _Torch) -> float:
    """The largest difference of two parameters, relative to the largest parameter."""
    pairs = list(zip(ours.net.parameters(), theirs.net.parameters(), strict=True))
    largest = max(float(b.detach().abs().max()) for _, b in pairs)
    differences = [float((a.detach() - b.detach()).abs().max()) / largest for a, b in pairs]
    return float(np.max(differences))  # keeps NaN


def _bookkeeping_rows(space: SearchSpace, rounds: int, ours: _Ours, theirs: _Torch) -> list[dict[str, Any]]:
    uniform, peer = UniformSampler(space, seed=SEED), "torch, uniform paths"
    samplers: dict[str, Sampler] = {f"{CORE}, uniform paths": uniform}
    net = PathFilter(space, HIDDEN, seed=SEED).eval()
    engines = {"": FilterEngine(net), ", bf16 screen": FilterEngine(net, screen=True)}
    scores = engines[""].log_prob_weak(paths.propose(space.allowed, SEED, THRESHOLD, 0, THRESHOLD_PATHS))
    for q in QS:
        threshold = float(np.quantile(scores.astype(np.float64), 1 - q))
        for suffix, engine in engines.items():
            name = f"{CORE}, path filter at q = {q}{suffix}"
            samplers[name] = FilterSampler(space, engine, threshold=threshold, seed=SEED)

    def list_blocks(sampler: Sampler, _: int) -> None:
        for path in sampler.sample(DRAWN).paths:
            ours.optimizer.blocks(tuple(map(int, path)))

    versions = {
        name: _Version(_nothing, partial(list_blocks, sampler), steps=DRAWN) for name, sampler in samplers.items()
    }
    versions[peer] = _Version(theirs.prepare, lambda _: theirs.bookkeeping(uniform))
    rows = _rows(space, "bookkeeping", _time(versions, rounds, _nothing), peer, {})
    for row in rows:
        if "filter" in row["provider"]:  # does more than the peer
            row |= {"ratio_to_best_peer": None, "peer": None}
    return rows


def _ddp_rows(space: SearchSpace, batch: Paths) -> list[dict[str, Any]]:
    plain, note = "plain", f"forward + backward, {DDP_IMAGES} images of {DDP_SIZE} x {DDP_SIZE}"
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(DDP_IMAGES, space.in_channels, DDP_SIZE, DDP_SIZE, generator=generator)
    labels = torch.arange(DDP_IMAGES) % space.num_classes
    name = "DDP, find_unused_parameters"
    net = Supernet(space, SEED).train()
    use_backend(net, "reference")  # torch's own parts throughout
    try:
        with _process_group(), warnings.catch_warnings():
            # The gradients of 1x1 and depthwise weights: equal layouts, but strides of dimensions of one differ.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)

            def step(module: nn.Module, index: int) -> None:
                torch.autograd.backward(F.cross_entropy(module(images, batch[index]), labels))

            def reset(_: int) -> None:
                net.zero_grad(set_to_none=True)

            versions = {plain: _Version(reset, partial(step, net)), name: _Version(reset, partial(step, wrapped))}
            _time(versions, 1, _nothing)  # the first step sets up more
            times = _time(versions, len(batch), _nothing)
            del wrapped
    except RuntimeError as error:
        reason = f"torch.distributed does not work here ({str(error).splitlines()[0]})"
        return [make_row(f"step_overhead.{space.name}", name, "-", 1, note=note, skipped=reason)]
    return _rows(space, note, times, plain, {})


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """This process as a group of one."""
    if not dist.is_available():
        raise RuntimeError("torch was built without it")
    if dist.is_initialized():
        raise RuntimeError("a process group exists already")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _rows(
    space: SearchSpace, note: str, times: Mapping[str, Sequence[float]], peer: str, errors: Mapping[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for name, own in times.items():
        ratio = float(np.median(np.array(times[peer]) / np.array(own)))
        isa = core_isa() if name.startswith(CORE) else "-" if name == COPY else torch_isa()
        values = {"repeats": len(own), "ms": quantiles(own), "ratio_to_best_peer": ratio, "peer": peer, "note": note}
        rows.append(make_row(f"step_overhead.{space.name}", name, isa, 1, max_error=errors.get(name), **values))
    return rows
