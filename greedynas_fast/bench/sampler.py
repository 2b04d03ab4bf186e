"""`bench sampler`: rejection sampling at q = 0.99 in MB-SE, where one proposal in a hundred is accepted.

The compiled sampler is compared with Algorithm 1 as it stands, which draws and judges one path at a time with a torch
module, and with the same in bulk. All look at the same sequence of proposals, so `accepted_per_s` is the proposals a
second times the acceptance that they share: the luck of a short run plays no part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from greedynas_fast import paths
from greedynas_fast.filter import FilterEngine, PathFilter
from greedynas_fast.filter.engine import PRECISIONS
from greedynas_fast.sampling import FilterSampler
from greedynas_fast.spaces import SearchSpace

from .peers import Floats, LiteralFilter, Paths, Score, in_chunks, network
from .timing import Budget, alternate, fastest, make_row, rate_values, thread_counts, torch_isa, torch_threads

Q = 0.99
SEED = 7
PROPOSALS, THRESHOLD = 3, 4  # streams
BAND = 1e-5  # of log Phi: this near to the threshold two correct float32 versions may decide differently
THRESHOLD_PATHS = 20_000  # of which 1 % is accepted
MIN_ACCEPTED = 50  # by the compiled sampler in a run: it is meant for many, and scores ahead in chunks
CHECKED = 40  # accepted paths that are compared, of about 4,000 proposals
BULK_CHUNK = 1024
LITERAL, BULK = "Algorithm 1, one path", "bulk loop, torch with table"
Draw = Callable[[int], tuple[Paths, int]]  # at least so many accepted paths -> those, and the proposals looked at


@dataclass(frozen=True)
class Setup:
    """The space, the network and the highest log Phi of an accepted path."""

    space: SearchSpace
    net: PathFilter
    threshold: float

    def propose(self, start: int, count: int) -> Paths:
        """Proposals `start` to `start + count`, the same for every version."""
        return paths.propose(self.space.allowed, SEED, PROPOSALS, start, count)

    def bulk_scores(self, batch: Paths) -> Floats:
        """Log Phi by torch."""
        scores: Floats = self.net.log_prob_weak(batch).numpy()
        return scores


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `sampler`, for one thread and for all.

    Raises:
        RuntimeError: a version accepts other paths than the bulk loop.
    """
    space, net = network()
    drawn = paths.propose(space.allowed, SEED, THRESHOLD, 0, THRESHOLD_PATHS)
    scores = FilterEngine(net).log_prob_weak(drawn).astype(np.float64)
    setup = Setup(space, net, float(np.quantile(scores, 1 - Q)))
    acceptance = float(np.mean(scores <= setup.threshold))
    rows = []
    for threads in thread_counts():
        with torch_threads(threads):
            rows += _measure_with(setup, acceptance, threads, budget)
    return rows


def _measure_with(setup: Setup, acceptance: float, threads: int, budget: Budget) -> list[dict[str, Any]]:
    draws: dict[str, Draw] = {}
    isa: dict[str, str] = {}
    for precision, screen in (*((precision, False) for precision in PRECISIONS), ("float32", True)):
        engine = FilterEngine(setup.net, device="cpu", precision=precision, num_threads=threads, screen=screen)
        name = f"FilterSampler, engine {precision}{', bf16 screen' if screen else ''}"
        # What bf16 scores are worth is for `bench filter` to say; here they must decide alike alone and in bulk.
        verify(name, _sampler(setup, engine), setup, engine.log_prob_weak if precision == "bf16" else setup.bulk_scores)
        draws[name], isa[name] = _sampler(setup, engine), engine.isa
    literal = in_chunks(LiteralFilter(setup.net), 1)
    verify(LITERAL, _loop(setup, literal, 1), setup, setup.bulk_scores, wanted=2)
    draws[LITERAL] = _loop(setup, literal, 1)
    draws[BULK] = _loop(setup, setup.bulk_scores, BULK_CHUNK)

    least = {name: 1 if name in (LITERAL, BULK) else MIN_ACCEPTED for name in draws}
    sizes = {name: _size(draw, least[name], acceptance, budget.call_s) for name, draw in draws.items()}
    rates = alternate({name: _run(draw, sizes[name]) for name, draw in draws.items()}, budget.repeats)
    best = fastest(rates, [LITERAL, BULK])
    rows = []
    for name in draws:
        values = rate_values(rates, name, best)
        own = name not in (LITERAL, BULK)
        rows.append(
            make_row(
                "sampler",
                name,
                isa[name] if own else torch_isa(),
                threads,
                paths=round(sizes[name] / acceptance),
                **values,
                accepted_per_s={key: rate * acceptance for key, rate in values["paths_per_s"].items()},
                ratio_to_literal=rate_values(rates, name, LITERAL)["ratio_to_best_peer"],
            )
        )
    return rows


def verify(name: str, draw: Draw, setup: Setup, score: Score, wanted: int = CHECKED) -> None:
    """Check that the first paths that a fresh `draw` accepts are those that a bulk loop with `score` accepts.

    Raises:
        RuntimeError: they differ by more than proposals within `BAND` of the threshold.
    """
    accepted, proposals = draw(wanted)
    batch = setup.propose(0, proposals)
    scores = np.asarray(score(batch), dtype=np.float64)
    possible = np.flatnonzero(scores <= setup.threshold + BAND)
    found = 0
    for index in possible:
        if found < len(accepted) and np.array_equal(accepted[found], batch[index]):
            found += 1
        elif scores[index] <= setup.threshold - BAND:
            found = -1
            break
    if found != len(accepted) or found < wanted:
        raise RuntimeError(f"sampler: {name} and the bulk loop disagree, so there is no figure to give")


def _sampler(setup: Setup, engine: FilterEngine) -> Draw:
    sampler = FilterSampler(setup.space, engine, threshold=setup.threshold, seed=SEED, stream=PROPOSALS)

    def draw(wanted: int) -> tuple[Paths, int]:
        batch = sampler.sample(wanted)
        return batch.paths, batch.proposals

    return draw


def _loop(setup: Setup, score: Score, chunk: int) -> Draw:
    """Propose `chunk` paths, score them, keep those at or below the threshold, until there are enough."""
    start = 0

    def draw(wanted: int) -> tuple[Paths, int]:
        nonlocal start
        first, accepted = start, 0
        kept = []
        while accepted < wanted:
            batch = setup.propose(start, chunk)
            kept.append(batch[np.asarray(score(batch), dtype=np.float64) <= setup.threshold])
            accepted += len(kept[-1])
            start += chunk
        return np.concatenate(kept), start - first

    return draw


def _size(draw: Draw, least: int, acceptance: float, call_s: float) -> int:
    """Accepted paths for a run of about `call_s` seconds."""
    wanted = least
    while True:
        start = time.perf_counter()
        _, proposals = draw(wanted)
        rate = proposals * acceptance / (time.perf_counter() - start)
        better = max(least, round(rate * call_s))
        if better <= 2 * wanted:
            return better
        wanted = better


def _run(draw: Draw, wanted: int) -> Callable[[], int]:
    return lambda: draw(wanted)[1]
