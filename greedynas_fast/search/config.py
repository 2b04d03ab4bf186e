"""What a search is told by the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from greedynas_fast.dataclass_io import check_range, check_types
from greedynas_fast.errors import InputError


@dataclass(frozen=True)
class SearchConfig:
    """Options of a search; the defaults are the paper's (Sec. 5.1: NSGA-II, 500 evaluations, 50 a generation).

    Attributes:
        method: `nsga2`, or `random` for the uniform baseline (under the same mask, limit and filter).
        evaluations: paths to evaluate in all.
        population: paths a generation.
        objectives: `accuracy` under the MAC limit, or `accuracy-macs` for a front of both.
        max_macs: paths with more multiply-accumulates are never evaluated; None sets no limit.
        crossover_probability: of mixing two parents; otherwise a child starts as a copy of one parent.
        mutation_probability: of changing the operation of a layer, each layer by itself.
        unique_networks: never evaluate two paths that are the same network (they may differ in inherited weights).
        oversample: proposals made at once for each path that is still missing; the filter judges them in bulk.
        max_rounds: rounds of proposals before a way of proposing is given up for this generation.
        when_rejected: when the filter leaves too few new paths, `relax` fills the generation without asking it (those
            are counted); `stop` makes do with fewer, and ends the search when there is none.
        seed: of everything random.
    """

    method: Literal["nsga2", "random"] = "nsga2"
    evaluations: int = 500
    population: int = 50
    objectives: Literal["accuracy", "accuracy-macs"] = "accuracy"
    max_macs: float | None = None
    crossover_probability: float = 0.9
    mutation_probability: float = 0.1
    unique_networks: bool = True
    oversample: int = 4
    max_rounds: int = 100
    when_rejected: Literal["relax", "stop"] = "relax"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value of the wrong type or out of its range.
        """
        check_types(self, "search")
        check_range(self, "search", "evaluations", "oversample", "max_rounds", low=1)
        check_range(self, "search", "population", low=2)
        check_range(self, "search", "max_macs", low=0, open_low=True)
        check_range(self, "search", "crossover_probability", "mutation_probability", low=0, high=1)
        check_range(self, "search", "seed", low=0)
        if self.seed >= 2**64:
            raise InputError(f"search.seed must be below 2**64, got {self.seed}.")
        if self.crossover_probability == 0 and self.mutation_probability == 0 and self.method == "nsga2":
            raise InputError("search: crossover_probability and mutation_probability are both 0, nothing would change.")
