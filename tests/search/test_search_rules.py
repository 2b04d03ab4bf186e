"""What a search may never do: repeat itself, break the mask, the MAC limit or the filter, or miscount."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import run, separable, toy_space

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.search import Search, SearchConfig

SPACE = toy_space(7, 7, 7, 7, 7, 7)
METHODS = ("nsga2", "random")


def options(**values: Any) -> SearchConfig:
    return SearchConfig(**({"evaluations": 60, "population": 10} | values))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_rules_hold(method: Any, data: st.DataObject) -> None:
    seed, evaluations = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(1, 70))
    mask = SPACE.allowed
    for layer in range(SPACE.num_layers):
        removed = sorted(data.draw(st.sets(st.integers(0, 6), max_size=4)))
        mask[layer, removed] = False
    macs = SPACE.op_costs()[1]
    low = SPACE.fixed_cost().macs + np.where(mask, macs, 2**60).min(axis=1).sum()
    high = SPACE.fixed_cost().macs + np.where(mask, macs, 0).max(axis=1).sum()
    limit = float(low + data.draw(st.floats(0.2, 1)) * (high - low))

    def is_weak(paths: np.ndarray) -> np.ndarray:
        return paths.sum(axis=1) % 3 == 0

    config = options(
        method=method, evaluations=evaluations, population=data.draw(st.integers(2, 30)), max_macs=limit, seed=seed,
        when_rejected="stop", max_rounds=10,
    )  # fmt: skip
    search = Search(SPACE, config, mask, is_weak)
    asked = np.concatenate([np.empty((0, 6), np.uint8), *run(search, separable(SPACE))])
    assert len(np.unique(asked, axis=0)) == len(asked) <= evaluations
    assert mask[np.arange(6), asked].all()
    assert (SPACE.costs(asked)[1] <= limit).all()
    assert not is_weak(asked).any()
    assert search.counts.relaxed == 0
    assert [tuple(record.path) for record in search.records] == [tuple(path) for path in asked]
    assert [record.index for record in search.records] == list(range(len(asked)))
    if len(asked) < evaluations:
        everything = np.stack(np.meshgrid(*[np.flatnonzero(row) for row in mask], indexing="ij"), -1).reshape(-1, 6)
        fits = (SPACE.costs(everything)[1] <= limit) & ~is_weak(everything)
        assert len(asked) == np.count_nonzero(fits)
        assert search.stop_reason is not None
        assert "no new path" in search.stop_reason


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("evaluations", "sizes"), [(60, [10] * 6), (53, [10] * 5 + [3]), (4, [4]), (10, [10])])
def test_exact_number_of_evaluations(method: Any, evaluations: int, sizes: list[int]) -> None:
    search = Search(SPACE, options(method=method, evaluations=evaluations))
    assert not search.done
    assert [len(paths) for paths in run(search, separable(SPACE))] == sizes
    assert search.done
    assert search.stop_reason == f"all {evaluations} evaluations are done"
    assert search.ask().shape == (0, 6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objectives", ["accuracy", "accuracy-macs"])
def test_an_exhausted_space_ends_the_search(method: Any, objectives: Any) -> None:
    space = toy_space(3, 1, 4)
    search = Search(space, options(method=method, objectives=objectives, evaluations=500, population=5, max_rounds=2))
    asked = np.concatenate(run(search, separable(space)))
    assert len(np.unique(asked, axis=0)) == len(asked) == space.size
    assert search.stop_reason == "every path under the operation mask and the MAC limit is evaluated"


@pytest.mark.parametrize("method", METHODS)
def test_equal_networks_are_one_unless_told_otherwise(method: Any) -> None:
    space = toy_space(8, 8)  # the identity (7) may stand first or second
    for unique, expected in ((True, 64 - 7), (False, 64)):
        search = Search(space, options(method=method, evaluations=100, unique_networks=unique))
        asked = np.concatenate(run(search, separable(space)))
        assert len(asked) == expected
        assert len(np.unique(space.canonical(asked), axis=0)) == 57


@pytest.mark.parametrize("method", METHODS)
class TestFilter:
    def test_relax_fills_up_and_counts(self, method: Any) -> None:
        search = Search(SPACE, options(method=method, max_rounds=2), is_weak=lambda p: np.ones(len(p), bool))
        run(search, separable(SPACE))
        assert len(search.records) == search.counts.relaxed == 60
        assert search.counts.weak > 0

    def test_stop_ends_with_a_reason(self, method: Any) -> None:
        config = options(method=method, max_rounds=2, when_rejected="stop")
        search = Search(SPACE, config, is_weak=lambda p: np.ones(len(p), bool))
        assert run(search, separable(SPACE)) == []
        assert search.done
        assert search.stop_reason is not None
        assert "no new path was found within 2 rounds" in search.stop_reason
        with pytest.raises(InputError, match="no path has been evaluated"):
            search.best()

    def test_rare_good_paths_are_found(self, method: Any) -> None:
        space = spaces.get("mb-se")

        def is_weak(paths: np.ndarray) -> np.ndarray:
            return (paths.astype(np.int64) * np.arange(1, 22)).sum(axis=1) % 97 != 0  # 1 in 97 is accepted

        search = Search(space, options(method=method, population=50, evaluations=100), is_weak=is_weak)
        asked = np.concatenate(run(search, separable(space)))
        assert len(asked) == 100
        assert not is_weak(asked).any()

    def test_bad_answers(self, method: Any) -> None:
        for answer in (lambda p: np.zeros(len(p)), lambda p: np.zeros((len(p), 1), bool), lambda p: False):
            with pytest.raises(InputError, match="is_weak must give booleans"):
                Search(SPACE, options(method=method), is_weak=answer).ask()


@pytest.mark.parametrize("method", METHODS)
def test_a_tight_mac_limit_in_a_large_space(method: Any) -> None:
    space = spaces.get("mb-se")
    limit = 100e6  # the smallest path has 51 million MACs, a uniform one 440
    uniform = np.random.default_rng(0).integers(0, 13, (20_000, 21))
    assert (space.costs(uniform)[1] > limit).all()  # chance would never find one
    search = Search(space, options(method=method, max_macs=limit, max_rounds=3, population=20))
    asked = np.concatenate(run(search, separable(space)))
    assert len(asked) == 60
    assert (space.costs(asked)[1] <= limit).all()
    assert len(np.unique(asked, axis=0)) == 60


def test_an_impossible_mac_limit_names_the_smallest_macs() -> None:
    space = spaces.get("nas-bench-macro")
    mask = space.allowed
    mask[:, 0] = False  # without the identity, the smallest path is all MB3_K3
    smallest = space.cost([1] * 8).macs
    with pytest.raises(InputError, match=f"{smallest:,} MACs"):
        Search(space, options(max_macs=smallest - 1), mask)
    only = Search(space, options(max_macs=smallest), mask)
    assert run(only, separable(space))[0].tolist() == [[1] * 8]
    assert only.stop_reason == "every path under the operation mask and the MAC limit is evaluated"


@pytest.mark.parametrize("method", METHODS)
def test_initial_paths_come_first(method: Any) -> None:
    initial = [[0] * 6, [1] * 6, [0] * 6, [5] * 6]
    search = Search(SPACE, options(method=method), is_weak=lambda p: p[:, 0] == 5, initial=initial)
    first = search.ask()
    assert first[:2].tolist() == [[0] * 6, [1] * 6]
    assert len(first) == 10
    assert not (first[:, 0] == 5).any()
    with pytest.raises(InputError, match="layer 0"):
        Search(SPACE, options(), initial=[[7] * 6])


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"evaluations": 0}, "search.evaluations"),
        ({"population": 1}, "search.population"),
        ({"population": 2.5}, "search.population"),
        ({"method": "annealing"}, "search.method"),
        ({"objectives": "macs"}, "search.objectives"),
        ({"max_macs": 0}, "search.max_macs"),
        ({"max_macs": float("nan")}, "search.max_macs"),
        ({"crossover_probability": 1.1}, "search.crossover_probability"),
        ({"mutation_probability": -0.1}, "search.mutation_probability"),
        ({"crossover_probability": 0, "mutation_probability": 0}, "nothing would change"),
        ({"seed": -1}, "search.seed"),
        ({"seed": 2**64}, "search.seed"),
        ({"oversample": 0}, "search.oversample"),
        ({"max_rounds": 0}, "search.max_rounds"),
        ({"when_rejected": "raise"}, "search.when_rejected"),
    ],
)
def test_bad_configurations(values: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        SearchConfig(**values)


def test_bad_mask() -> None:
    mask = SPACE.allowed
    mask[2] = False
    with pytest.raises(InputError, match="layer 2 has no operation left"):
        Search(SPACE, options(), mask)


def test_pymoo_is_imported_late_and_prints_nothing() -> None:
    code = (
        "import sys; from greedynas_fast.search import Search, SearchConfig; from greedynas_fast import spaces\n"
        "space = spaces.get('nas-bench-macro'); Search(space, SearchConfig(method='random')).ask()\n"
        "assert not any(name.split('.')[0] in ('pymoo', 'scipy') for name in sys.modules)\n"
        "search = Search(space, SearchConfig(population=4)); search.tell(search.ask(), [1, 2, 3, 4]); search.ask()\n"
        "assert 'pymoo' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
