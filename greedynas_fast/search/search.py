"""Ask and tell: which paths to evaluate next, given the accuracies of those before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.sampling import check_mask
from greedynas_fast.sampling.protocol import Mask, Paths
from greedynas_fast.search.config import SearchConfig
from greedynas_fast.search.random_search import RandomProposals
from greedynas_fast.search.records import Record, pareto, rank_key
from greedynas_fast.search.screen import IsWeak, Screen, ScreenCounts
from greedynas_fast.spaces import SearchSpace


class Proposals(Protocol):
    """A method of search."""

    def propose(self, count: int) -> Paths:
        """At most `count` new paths, uint8 [n, L]; none ends the search."""
        ...

    def learn(self, objectives: npt.NDArray[np.float64]) -> None:
        """Objectives of the last proposals, in their order, to be minimised, float [n, k]."""
        ...


class Search:
    """Asks for paths generation by generation until `config.evaluations` of them are told.

    What it asks is a function of its arguments and of what it was told, so `replay` of recorded evaluations brings a
    new search to the very state of one that was cut off.

    ```python
    search = Search(space, SearchConfig(max_macs=330e6), allowed, trained_filter.is_weak)
    while len(paths := search.ask()):
        search.tell(paths, evaluate(paths))
    print(search.best(), search.stop_reason)
    ```

    Attributes:
        space: the search space.
        config: the options.
        allowed: the operation mask, bool [L, max_ops].
        stop_reason: why the search is over, in words; None while it is not.
        generation: number of the generation that is asked for or being evaluated, from 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: SearchConfig | None = None,
        allowed: npt.ArrayLike | None = None,
        is_weak: IsWeak | None = None,
        seed: int | None = None,
        *,
        initial: npt.ArrayLike | None = None,
    ) -> None:
        """Make a search that has asked for nothing.

        Args:
            space: the search space.
            config: options; None takes the defaults.
            allowed: operation mask, bool [L, max_ops]; None allows every operation.
            is_weak: path filter: uint8 paths [n, L] -> bool [n]; what it calls weak is not evaluated.
            seed: takes the place of `config.seed`.
            initial: paths [n, L] that should be in the first generation if they pass all checks (the pool of
                GreedyNAS, the winner of another search).

        Raises:
            InputError: a bad mask, an initial path that is none, or a MAC limit that no path meets.
        """
        self.space = space
        self.config = config if config is not None else SearchConfig()
        self.allowed = check_mask(space, allowed)
        self.stop_reason: str | None = None
        self.generation = 0
        start = None if initial is None else space.check(initial, self.allowed)
        seed = self.config.seed if seed is None else seed
        self._screen = Screen(space, self.allowed, self.config, is_weak)
        self._random = RandomProposals(space, self.allowed, self.config, self._screen, seed, first=start)
        self._method = _method(self.config, self.allowed, self._screen, self._random, seed)
        self._records: list[Record] = []
        self._asked: Paths = np.empty((0, space.num_layers), dtype=np.uint8)
        self._told = np.empty(0)  # accuracies of _asked, NaN where still awaited

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked."""
        return self.stop_reason is not None

    @property
    def records(self) -> list[Record]:
        """All evaluations so far in the order of asking, those of an unfinished generation included."""
        return self._records + self._told_records()

    @property
    def counts(self) -> ScreenCounts:
        """What became of the proposals so far."""
        return self._screen.counts

    def ask(self) -> Paths:
        """Paths to evaluate: a new generation, or what is not yet told of the current one.

        Returns:
            uint8 [n, L], never a path that was told; n = 0 when the search is over, see `stop_reason`.
        """
        if not len(self._asked) and not self.done:
            count = min(self.config.population, self.config.evaluations - len(self._records))
            self._asked = self._method.propose(count)
            self._told = np.full(len(self._asked), np.nan)
            self._screen.remember(self._asked)
            if not len(self._asked):
                self.stop_reason = self._why_empty()
        return self._asked[np.isnan(self._told)]

    def tell(self, paths: npt.ArrayLike, accuracy: npt.ArrayLike) -> None:
        """Take in evaluations, of a whole generation or a part of it, in any order.

        Args:
            paths: paths that were asked for and not yet told, [n, L].
            accuracy: higher is better, finite floats [n].

        Raises:
            InputError: a path that is not awaited, or an accuracy that is not finite; nothing is taken in.
        """
        batch = self.space.check(paths)
        values = np.atleast_1d(np.asarray(accuracy, dtype=np.float64))
        if values.shape != (len(batch),):
            raise InputError(f"tell: {len(batch)} paths, but accuracy has shape {list(values.shape)}.")
        awaited = {row.tobytes(): index for index, row in enumerate(self._asked) if np.isnan(self._told[index])}
        places: list[int] = []
        for path, value in zip(batch, values, strict=True):
            place = awaited.pop(path.tobytes(), None)
            if place is None:
                raise InputError(f"tell: path {self.space.format(path, 'digits')} is not awaited by this search.")
            if not np.isfinite(value):
                raise InputError(f"tell: accuracy of {self.space.format(path, 'digits')} is {value}.")
            places.append(place)
        self._told[places] = values
        if len(self._asked) and not np.isnan(self._told).any():
            self._finish_generation()

    def replay(self, evaluations: Iterable[tuple[npt.ArrayLike, float]]) -> None:
        """Tell recorded evaluations to a new search, so that it goes on where the recorded one stopped.

        Args:
            evaluations: (path [L], accuracy), generations in their order, within a generation in any; the last
                generation may be incomplete.

        Raises:
            InputError: the search was used already, or the records are not of a search with these arguments.
        """
        if self._records or len(self._asked):
            raise InputError("replay: only a new search can take in recorded evaluations.")
        left = list(evaluations)
        while left:
            expected = len(self.ask())
            if not expected:
                raise InputError(f"replay: {len(left)} evaluations more than this search asks for.")
            head, left = left[:expected], left[expected:]
            try:
                self.tell(np.stack([np.asarray(path) for path, _ in head]), [accuracy for _, accuracy in head])
            except InputError as error:
                raise InputError(
                    f"replay: the recorded evaluations are not of this search (generation {self.generation}): {error}"
                ) from None

    def best(self) -> Record:
        """The record with the highest accuracy; of equal ones that with fewer MACs, then the earlier.

        Raises:
            InputError: nothing was evaluated yet.
        """
        if not (records := self.records):
            raise InputError("best: no path has been evaluated yet.")
        return min(records, key=rank_key)

    def pareto(self) -> list[Record]:
        """Records that no other beats in both accuracy and MACs, fewest MACs first."""
        return pareto(self.records)

    def _told_records(self) -> list[Record]:
        told = np.flatnonzero(~np.isnan(self._told))
        macs = self.space.costs(self._asked[told])[1] if len(told) else ()
        return [
            Record(len(self._records) + int(i), self.generation, self._asked[i].copy(), float(self._told[i]), int(cost))
            for i, cost in zip(told, macs, strict=True)
        ]

    def _finish_generation(self) -> None:
        finished = self._told_records()
        self._method.learn(_objectives(finished, self.config))
        self._records += finished
        self._asked, self._told = self._asked[:0], self._told[:0]
        self.generation += 1
        if len(self._records) >= self.config.evaluations:
            self.stop_reason = f"all {self.config.evaluations} evaluations are done"

    def _why_empty(self) -> str:
        if self._random.sees_everything and not (self._screen.filters and self.config.when_rejected == "stop"):
            return "every path under the operation mask and the MAC limit is evaluated"
        counts = self.counts
        return (
            f"no new path was found within {self.config.max_rounds} rounds; of {counts.proposals} proposals so far, "
            f"{counts.duplicates} were known, {counts.over_limit} over the MAC limit, {counts.weak} weak to the filter"
        )


def _objectives(records: Sequence[Record], config: SearchConfig) -> npt.NDArray[np.float64]:
    """What is minimised, float [n, k]."""
    accuracy = [-record.accuracy for record in records]
    if config.objectives == "accuracy":
        return np.array(accuracy)[:, None]
    return np.array([accuracy, [float(record.macs) for record in records]]).T


def _method(config: SearchConfig, allowed: Mask, screen: Screen, random: RandomProposals, seed: int) -> Proposals:
    if config.method == "random":
        return random
    try:
        from greedynas_fast.search.nsga2 import NSGA2Proposals
    except ModuleNotFoundError as error:
        raise InputError(f"search.method nsga2 needs {error.name}: pip install pymoo") from error
    return NSGA2Proposals(allowed, config, screen, random, seed)
