"""Ask, tell, replay: a search that was cut off anywhere goes on as if it had not been."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import run, separable, toy_space

from greedynas_fast.errors import InputError
from greedynas_fast.search import Search, SearchConfig

SPACE = toy_space(6, 7, 5, 7, 6)
SCORE = separable(SPACE, seed=3)


def is_weak(paths: np.ndarray) -> np.ndarray:
    return paths[:, 0] + paths[:, 1] > 8


def make(method: Any = "nsga2", objectives: Any = "accuracy", **values: Any) -> Search:
    config = SearchConfig(method=method, objectives=objectives, **({"evaluations": 45, "population": 10} | values))
    return Search(SPACE, config, None, is_weak, seed=11)


WHOLE = {}
for _method in ("nsga2", "random"):
    for _objectives in ("accuracy", "accuracy-macs"):
        _search = make(_method, _objectives)
        run(_search, SCORE)
        WHOLE[_method, _objectives] = _search


def pairs(search: Search) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(record.path.tolist()), record.accuracy) for record in search.records]


@settings(max_examples=40, deadline=None)
@given(key=st.sampled_from(sorted(WHOLE)), cut=st.integers(0, 45), shuffle=st.randoms(use_true_random=False))
def test_replay_from_any_cut(key: tuple[str, str], cut: int, shuffle: random.Random) -> None:
    whole = WHOLE[key]
    evaluated = pairs(whole)
    start = cut // 10 * 10
    generation = evaluated[start : start + 10]
    shuffle.shuffle(generation)  # a generation may be evaluated in any order
    search = make(*key)
    search.replay(evaluated[:start] + generation[: cut - start])
    assert len(search.records) == cut
    remaining = {path for path, _ in generation[cut - start :]}
    assert {tuple(path) for path in search.ask().tolist()} >= remaining
    run(search, SCORE)
    assert pairs(search) == evaluated
    assert search.stop_reason == whole.stop_reason
    assert search.counts == whole.counts
    assert [record.generation for record in search.records] == [record.generation for record in whole.records]


def test_one_by_one_in_any_order_is_the_same_as_all_at_once() -> None:
    search = make()
    while len(paths := search.ask()):
        search.tell(paths[-1], SCORE(paths[-1:])[0])
        assert len(search.ask()) in (len(paths) - 1, 10, 5, 0)
    assert pairs(search) == pairs(WHOLE["nsga2", "accuracy"])


def test_ask_repeats_itself_until_told() -> None:
    search = make()
    first = search.ask()
    np.testing.assert_array_equal(first, search.ask())
    first[:] = 0  # the caller's copy
    second = search.ask()
    assert second.any()
    search.tell(second[:4], SCORE(second[:4]))
    np.testing.assert_array_equal(search.ask(), second[4:])
    assert len(search.records) == 4
    assert search.best().accuracy == SCORE(second[:4]).max()


def test_depends_on_the_seed_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    again = make()
    run(again, SCORE)
    assert pairs(again) == pairs(WHOLE["nsga2", "accuracy"])
    other = Search(SPACE, again.config, None, is_weak, seed=12)
    assert (other.ask() != make().ask()).any()
    by_config = Search(SPACE, SearchConfig(evaluations=45, population=10, seed=11), None, is_weak)
    np.testing.assert_array_equal(by_config.ask(), make().ask())


def test_leaves_the_global_generators_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    expected = np.random.random(), random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    run(make(), SCORE)
    assert (np.random.random(), random.random()) == expected  # noqa: NPY002


def test_refuses_evaluations_of_another_search() -> None:
    evaluated = pairs(WHOLE["nsga2", "accuracy"])
    with pytest.raises(InputError, match=r"not of this search \(generation 0\)"):
        Search(SPACE, SearchConfig(population=10), None, is_weak, seed=12).replay(evaluated)
    changed = [*evaluated[:10], ((0, 0, 0, 0, 0), 0.5)]
    with pytest.raises(InputError, match=r"generation 1\).*00000 is not awaited"):
        make().replay(changed)
    with pytest.raises(InputError, match="not awaited"):
        make().replay([*evaluated[:3], evaluated[0]])
    with pytest.raises(InputError, match="5 evaluations more"):
        make(evaluations=40).replay(evaluated)
    used = make()
    used.ask()
    with pytest.raises(InputError, match="only a new search"):
        used.replay(evaluated)


def test_bad_answers_change_nothing() -> None:
    search = make()
    asked = search.ask()
    for paths, accuracy, word in [
        (asked, np.full(10, np.nan), "nan"),
        (asked, np.full(10, np.inf), "inf"),
        (asked, np.zeros(9), "shape"),
        (asked[[0, 0]], np.zeros(2), "not awaited"),
        ([[0, 0, 0, 0]], [0.5], "5 operations"),
    ]:
        with pytest.raises(InputError, match=word):
            search.tell(paths, accuracy)
    np.testing.assert_array_equal(search.ask(), asked)
    assert search.records == []
