"""`bench filter`: paths scored a second by the compiled engine, beside the same network in torch and numpy.

The space is MB-SE (21 layers, 13 operations), the network PathFilter(space, hidden=128, seed=0), paths are random.
Every version is first compared with the network in float64; the threshold of the decisions is that of q = 0.99, which
accepts the 1 % of the paths with the lowest log Phi.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from greedynas_fast import paths
from greedynas_fast.filter import FilterEngine, PathFilter

from .peers import Floats, LiteralFilter, NumpyFilter, Paths, Score, TableFilter, in_chunks, network
from .timing import Budget, alternate, fastest, make_row, rate_values, thread_counts, torch_isa, torch_threads

Precision = Literal["float32", "bf16"]
Module = Callable[[torch.Tensor], torch.Tensor]

Q = 0.99
MAX_ERROR = {"float32": 1e-5, "bf16": 2e-2}  # of log Phi
MIN_AGREEMENT = 0.99  # of bf16 decisions; rejecting everything reaches it too, hence:
MIN_OVERLAP = 0.5  # of the paths that either accepts, where there are at least
_MIN_ACCEPTED = 20
CHUNKS = (64, 256, 1024, 4096)
BULK = 1024  # fewest paths of a run, for what chunks by itself; the chunk of torch.compile
MAX_PATHS = 65_536  # of one run
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_MIN_CHECK = 256
_FEW = 64
_RATE_S = 0.05
_CHUNK_ROUNDS = 3
_SPLIT = 4  # rounds for one of the budget's, each as much shorter: some machines change their speed within a second


@dataclass(frozen=True)
class Version:
    """One way to score paths.

    Attributes:
        name: the provider of its row.
        precision: of its products.
        family: who computes.
        isa: with what.
        score: uint8 [n, L] -> log Phi [n].
        chunk: paths that it handles together; a run is a multiple of it.
        rate: paths a second, roughly.
        note: for the row.
    """

    name: str
    precision: Precision
    family: Literal["engine", "torch", "numpy"]
    isa: str
    score: Score
    chunk: int = 1
    rate: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A version that is not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """How far a version is from the reference.

    Attributes:
        max_error: largest difference of log Phi.
        decision_agreement: share of equal decisions.
        accepted_overlap: paths that both accept, as a share of those that either accepts.
        compared_paths: how many paths this was found on.
    """

    max_error: float
    decision_agreement: float
    accepted_overlap: float
    compared_paths: int


@dataclass(frozen=True)
class Setup:
    """The network, random paths uint8 [n, L], and for the first of them log Phi in float64 with its threshold."""

    net: PathFilter
    paths: Paths
    reference: npt.NDArray[np.float64]
    threshold: float


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `filter`, for one thread and for all.

    Raises:
        RuntimeError: a version is further from the reference than `MAX_ERROR`, or decides otherwise.
    """
    setup = make_setup(budget.check_paths)
    rows = []
    for threads in thread_counts():
        with torch_threads(threads):
            rows += _measure_with(setup, threads, budget)
    return rows


def make_setup(check_paths: int) -> Setup:
    """The network and its float64 reference on `check_paths` paths."""
    space, net = network()
    drawn = paths.propose(space.allowed, seed=1, stream=0, start=0, count=MAX_PATHS)
    reference = in_chunks(LiteralFilter(net, torch.float64), 256)(drawn[:check_paths]).astype(np.float64)
    return Setup(net, drawn, reference, float(np.quantile(reference, 1 - Q)))


def _measure_with(setup: Setup, threads: int, budget: Budget) -> list[dict[str, Any]]:
    versions: list[Version] = []
    skipped: list[Skipped] = []
    for made in _versions(setup, threads, budget):
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            versions.append(made if made.rate else replace(made, rate=_rate(made.score, setup.paths)))
    accuracies = {version.name: check(version, setup, budget.check_s) for version in versions}
    counts = {version.name: _count(version, budget.call_s / _SPLIT) for version in versions}
    runs = {version.name: _run(version.score, setup.paths[: counts[version.name]]) for version in versions}
    rates = alternate(runs, _SPLIT * budget.repeats)
    peers = [version for version in versions if version.family != "engine"]
    best = {
        "float32": fastest(
            rates, [peer.name for peer in peers if (peer.family, peer.precision) == ("torch", "float32")]
        ),
        "bf16": fastest(rates, [peer.name for peer in peers]),
    }
    rows = [
        make_row(
            "filter",
            version.name,
            version.isa,
            threads,
            paths=counts[version.name],
            note=version.note,
            **rate_values(rates, version.name, best[version.precision]),
            **vars(accuracies[version.name]),
        )
        for version in versions
    ]
    return rows + [make_row("filter", each.name, "-", threads, skipped=each.reason) for each in skipped]


def _versions(setup: Setup, threads: int, budget: Budget) -> list[Version | Skipped]:
    """Everything that is measured with this number of threads; torch is already held to it."""
    net, literal = setup.net, LiteralFilter(setup.net)
    engines: dict[Precision, FilterEngine] = {
        "float32": FilterEngine(net, device="cpu", precision="float32", num_threads=threads),
        "bf16": FilterEngine(net, device="cpu", precision="bf16", num_threads=threads),
    }
    found: list[Version | Skipped] = [
        Version(f"engine {name}", name, "engine", engine.isa, engine.log_prob_weak, BULK)
        for name, engine in engines.items()
    ]
    float32 = best_chunk("nn.LSTM float32", "float32", literal, setup.paths, budget.chunk_s)
    bf16 = best_chunk("nn.LSTM bf16", "bf16", LiteralFilter(net, torch.bfloat16), setup.paths, budget.chunk_s)
    found += [
        Version("nn.LSTM float32, one path", "float32", "torch", torch_isa(), in_chunks(literal, 1)),
        float32,
        bf16,
        Version(
            "PathFilter, torch with table",
            "float32",
            "torch",
            torch_isa(),
            lambda batch: net.log_prob_weak(batch).numpy(),
            BULK,
        ),
    ]
    if threads == 1:  # its threads cannot be changed while it runs
        found.append(Version("numpy with table", "float32", "numpy", "-", NumpyFilter(net), BULK, note="chunks of 256"))
    if budget.compile:
        found.append(_compiled(setup, "float32"))
        name = "torch.compile bf16"
        slow = bf16.rate < float32.rate
        found.append(Skipped(name, "bf16 is slower than float32 in torch here") if slow else _compiled(setup, "bf16"))
    else:
        found.append(Skipped("torch.compile", "not with --quick"))
    return found


def best_chunk(name: str, precision: Precision, module: Module, batch: Paths, limit_s: float) -> Version:
    """A torch module in its fastest chunk size, of those that take less than about `limit_s` seconds."""
    rough: dict[int, float] = {}
    for chunk in CHUNKS:
        if rough and chunk / max(rough.values()) > limit_s:
            break
        rough[chunk] = _rate(in_chunks(module, chunk), batch[:chunk])
    runs = {}
    for chunk, rate in rough.items():
        count = chunk * max(1, round(rate * 2 * _RATE_S / chunk))
        runs[str(chunk)] = _run(in_chunks(module, chunk), batch[:count])
    timed = alternate(runs, _CHUNK_ROUNDS)  # a choice by single runs often falls on the wrong one
    rates = {chunk: float(np.median(timed[str(chunk)])) for chunk in rough}
    best = max(rates, key=lambda chunk: rates[chunk])
    note = f"chunks of {best}, the best of {' '.join(map(str, rates))}"
    return Version(f"{name}, chunks", precision, "torch", torch_isa(), in_chunks(module, best), best, rates[best], note)


def _compiled(setup: Setup, precision: Precision) -> Version | Skipped:
    """The network with its table under torch.compile, or why that does not work."""
    name = f"torch.compile {precision}"
    module = torch.compile(TableFilter(setup.net, _DTYPES[precision]), dynamic=False)
    score = in_chunks(module, BULK)
    try:
        score(setup.paths[:BULK])
    except Exception as error:  # no compiler, or one that torch cannot use: any exception of torch's
        return Skipped(name, f"torch.compile does not work here ({type(error).__name__})")
    return Version(name, precision, "torch", torch_isa(), score, BULK, note=f"chunks of {BULK}, with table")


def check(version: Version, setup: Setup, limit_s: float) -> Accuracy:
    """Compare a version with the reference, a slow one on as many paths as it scores in about `limit_s` seconds.

    Raises:
        RuntimeError: they disagree.
    """
    wanted = max(_MIN_CHECK, int(version.rate * limit_s), version.chunk)
    count = min(len(setup.reference), -(-wanted // version.chunk) * version.chunk)
    reference = setup.reference[:count]
    scores = np.asarray(version.score(setup.paths[:count]), dtype=np.float64)
    accuracy = compare(scores, reference, setup.threshold)
    good = accuracy.max_error <= MAX_ERROR[version.precision]  # False for NaN
    if version.precision == "bf16":
        good = good and accuracy.decision_agreement >= MIN_AGREEMENT
        judged = np.count_nonzero(reference <= setup.threshold) >= _MIN_ACCEPTED
        good = good and (accuracy.accepted_overlap >= MIN_OVERLAP or not judged)
    if not good:
        raise RuntimeError(
            f"filter: {version.name} and the float64 reference disagree (log Phi by up to {accuracy.max_error:.2g}, "
            f"{accuracy.decision_agreement:.2%} of the decisions and {accuracy.accepted_overlap:.0%} of the accepted "
            "paths alike), so there is no figure to give"
        )
    return accuracy


def compare(scores: Floats, reference: Floats, threshold: float) -> Accuracy:
    """Largest error and how alike the decisions are; both [n]."""
    accepted, truly = scores <= threshold, reference <= threshold
    either = int(np.count_nonzero(accepted | truly))
    overlap = np.count_nonzero(accepted & truly) / either if either else 1.0
    return Accuracy(
        float(np.abs(scores - reference).max()), float(np.mean(accepted == truly)), float(overlap), len(scores)
    )


def _rate(score: Score, batch: Paths) -> float:
    """Paths a second, roughly: from a few paths first, then from as many as 50 ms take."""
    rate, count = 0.0, _FEW
    while True:
        score(batch[:count])
        start = time.perf_counter()
        score(batch[:count])
        rate = max(rate, count / (time.perf_counter() - start))
        wanted = min(int(rate * _RATE_S), len(batch))
        if wanted <= 2 * count:
            return rate
        count = wanted


def _count(version: Version, call_s: float) -> int:
    """Paths for a run of about `call_s` seconds, in whole chunks."""
    chunks = max(1, round(version.rate * call_s / version.chunk))
    return min(chunks * version.chunk, MAX_PATHS)


def _run(score: Score, batch: Paths) -> Callable[[], int]:
    def run() -> int:
        score(batch)
        return len(batch)

    return run
