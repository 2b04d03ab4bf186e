"""NSGA-II over paths with pymoo's survival, ranking and tournament (Sec. 4.1; Deb et al., 2002).

Import this module only where a search with NSGA-II starts: it imports pymoo.

Note:
    Mating is our own, because pymoo's makes only as many children a round as are missing: with a filter that rejects
    99 of 100 it gives up long before a generation is full. Here each round makes several times as many and the screen
    judges them in one call.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.config import Config
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.problems.static import StaticProblem

from greedynas_fast.sampling.philox import generator
from greedynas_fast.sampling.protocol import Mask, Paths
from greedynas_fast.search.config import SearchConfig
from greedynas_fast.search.operators import Variation
from greedynas_fast.search.random_search import RandomProposals
from greedynas_fast.search.screen import Batch, Screen

NSGA2_STREAM = 0x5EA00004


class NSGA2Proposals:
    """Generations of NSGA-II: the first is random, the others are children of the fittest."""

    def __init__(self, allowed: Mask, config: SearchConfig, screen: Screen, random: RandomProposals, seed: int) -> None:
        self._allowed, self._config, self._random, self._seed = allowed, config, random, seed
        self._mating = _Mating(allowed, config, screen, random, seed)
        self._algorithm: Any = None
        self._asked: Any = None

    def propose(self, count: int) -> Paths:
        """The next generation: at most `count` new paths, uint8 [n, L]; none if no more can be found."""
        if self._algorithm is None:
            first = self._random.propose(count)
            if not len(first):
                return first
            self._algorithm = self._start(first)
        self._algorithm.n_offsprings = count
        self._asked = self._algorithm.ask()
        if self._asked is None:
            return np.empty((0, len(self._allowed)), dtype=np.uint8)
        paths: Paths = self._asked.get("X").astype(np.uint8)
        return paths

    def learn(self, objectives: npt.NDArray[np.float64]) -> None:
        """Take in the objectives of the last generation, in its order, to be minimised, float [n, k]."""
        Evaluator().eval(StaticProblem(self._algorithm.problem, F=objectives), self._asked)
        self._algorithm.tell(infills=self._asked)

    def _start(self, first: Paths) -> Any:
        Config.warnings["not_compiled"] = False  # it would print to standard output
        algorithm = NSGA2(
            pop_size=self._config.population,
            sampling=first,
            mating=self._mating,
            eliminate_duplicates=False,
            output=None,
        )
        num_objectives = 1 if self._config.objectives == "accuracy" else 2
        problem = Problem(n_var=len(self._allowed), n_obj=num_objectives, xl=0, xu=self._allowed.shape[1] - 1)
        algorithm.setup(problem, termination=NoTermination())
        algorithm.random_state = generator(self._seed, NSGA2_STREAM, 0)
        return algorithm


class _Mating:
    """Children of parents that won a tournament; takes the place of pymoo's `Mating`."""

    def __init__(self, allowed: Mask, config: SearchConfig, screen: Screen, random: RandomProposals, seed: int) -> None:
        self._config, self._screen, self._random, self._num_layers = config, screen, random, len(allowed)
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self._vary = Variation(allowed, config, seed)
        self._generation = 0

    def do(
        self, problem: Any, pop: Any, n_offsprings: int, *, algorithm: Any, random_state: np.random.Generator
    ) -> Any:
        """At most `n_offsprings` new individuals, random ones where breeding finds too few."""
        batch = Batch(n_offsprings, self._num_layers)
        paths: Paths = pop.get("X")
        bred = 0
        for _ in range(self._config.max_rounds):
            if not batch.missing:
                break
            pairs = math.ceil(batch.missing * self._config.oversample / 2)
            parents = self._selection.do(
                problem, pop, pairs, 2, to_pop=False, algorithm=algorithm, random_state=random_state
            )
            self._screen.take(self._vary(paths[parents], self._generation, bred), batch)
            bred += pairs
        self._generation += 1
        self._random.fill(batch)
        return Population.new(X=batch.paths)
