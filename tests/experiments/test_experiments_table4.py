"""The benchmark file's checks, and Table 4 on a tiny budget."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greedynas_fast.errors import InputError
from greedynas_fast.experiments import table4
from greedynas_fast.experiments.benchmark import good_paths, load_benchmark
from greedynas_fast.experiments.parallel import map_cells
from greedynas_fast.experiments.table4_cell import Cell, draw_sample, run_cell
from greedynas_fast.filter import FilterConfig

REAL = Path(__file__).parents[2] / ".." / "shared" / "nas_bench_macro" / "nas-bench-macro_cifar10.json"
KEYS = ["".join(digits) for digits in itertools.product("012", repeat=8)]


def write(file: Path, content: Any) -> str:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def synthetic() -> dict[str, dict[str, Any]]:
    """A table in which accuracy grows with the number of parameters, equal for equal networks."""
    return {
        key: {"mean_acc": 80.0 + sum(map(int, key)) / 2, "params": 10 * sum(map(int, key)), "flops": 7, "std": 0.1}
        for key in reversed(KEYS)
    }


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("bench") / "bench.json", synthetic())


def test_load_orders_by_key(bench: str) -> None:
    table = load_benchmark(bench)
    assert table.paths.shape == (6561, 8)
    assert table.paths.dtype == np.uint8
    assert table.paths[1].tolist() == [0] * 7 + [1]
    assert table.accuracy.tolist() == (80 + table.paths.sum(axis=1) / 2).tolist()
    assert table.params.tolist() == (10 * table.paths.sum(axis=1, dtype=int)).tolist()
    assert set(table.macs.tolist()) == {7}


def test_bad_benchmark_files(tmp_path: Path) -> None:
    def broken(**change: Any) -> dict[str, Any]:
        content: dict[str, Any] = synthetic()
        content["00000000"] = {**content["00000000"], **change}
        return content

    without = synthetic()
    del without["22222222"]
    cases: list[tuple[Any, str]] = [
        ("{", "is not a JSON file"),
        ([1, 2], "JSON object of paths, got list"),
        ({}, "has 0 keys and lacks 6,561"),
        (without, "has 6,560 keys and lacks 1"),
        ({**without, "33333333": {}}, "lacks 1"),
        (broken(mean_acc="high"), "no number 'mean_acc' for path 00000000"),
        (broken(mean_acc=float("nan")), "no number 'mean_acc'"),
        (broken(params=None), "no number 'params'"),
        ({**synthetic(), "00000000": 3}, "no number"),
    ]
    for index, (content, words) in enumerate(cases):
        with pytest.raises(InputError, match=words):
            load_benchmark(write(tmp_path / f"{index}.json", content))
    with pytest.raises(InputError, match="cannot be read"):
        load_benchmark(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_benchmark(tmp_path)


def test_good_paths_are_the_best_tenth() -> None:
    accuracy = np.array([1.0, 5.0, 5.0, 2.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert np.flatnonzero(good_paths(accuracy, 0.2)).tolist() == [1, 2]


def test_samples_are_uniform_without_replacement_and_fixed_by_the_seed() -> None:
    first = draw_sample(6561, 0.1, 3)
    assert len(np.unique(first)) == 656
    assert first.tolist() == draw_sample(6561, 0.1, 3).tolist()
    assert first.tolist() != draw_sample(6561, 0.1, 4).tolist()
    assert draw_sample(6561, 1.0, 0).tolist() == list(range(6561))


TINY = FilterConfig(steps=25, batch_size=64, hidden=8, lr=0.02, holdout=0.0, mixup_batch=16)


def test_a_cell_judges_the_whole_table_and_the_unseen_networks(bench: str) -> None:
    record = run_cell(Cell(bench, 0.1, 0, replace(TINY, loss="rank"), canonical=False))
    assert (record["num_scored"], record["num_paths"], record["num_good"]) == (656, 6561, 656)
    # The quantile rule accepts as many as are good, so both numbers are one number.
    assert record["precision"] == pytest.approx(record["recall"], abs=0.01)
    assert record["auroc"] > 0.9
    assert 0 < record["unseen"]["num_paths"] < 6561 - 656
    assert record["unseen"]["auroc"] > 0.9
    whole = run_cell(Cell(bench, 1.0, 0, replace(TINY, steps=1), canonical=False))
    assert whole["unseen"] is None


def test_canonical_paths_give_equal_networks_one_score(bench: str) -> None:
    plain = run_cell(Cell(bench, 0.5, 0, TINY, canonical=False))
    normal = run_cell(Cell(bench, 0.5, 0, TINY, canonical=True))
    assert plain["auroc"] != normal["auroc"]


def test_results_do_not_depend_on_the_number_of_workers(bench: str) -> None:
    cells = [Cell(bench, 0.01, seed, replace(TINY, steps=3), canonical=False) for seed in range(2)]
    lines: list[str] = []
    one, two = map_cells(cells, 1, lines.append), map_cells(cells, 2, lines.append)
    for a, b in zip(one, two, strict=True):
        assert {**a, "elapsed_s": 0, "cpu_s": 0} == {**b, "elapsed_s": 0, "cpu_s": 0}
    assert [record["seed"] for record in two] == [0, 1]
    assert len(lines) == 4
    assert lines[0].startswith("[1/2] vpu 1 % seed 0: precision")


def test_the_document_and_its_text(bench: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table4, "filter_config", lambda loss, budget, fraction: replace(TINY, loss=loss, steps=2))
    config = table4.Table4Config(bench, losses=("vpu", "rank"), fractions=(0.01, 1.0), seeds=2, workers=1)
    result = table4.run(config)
    assert json.loads(json.dumps(result)) == result
    assert [(row["loss"], row["fraction"]) for row in result["rows"]] == [
        ("vpu", 0.01),
        ("vpu", 1.0),
        ("rank", 0.01),
        ("rank", 1.0),
    ]
    values = [cell["precision"] for cell in result["cells"][:2]]
    assert result["rows"][0]["precision"] == {
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values)),
    }
    assert result["baseline"]["precision"] == pytest.approx(0.9, abs=1e-4)
    assert result["settings"]["seeds"] == [0, 1]
    assert any("rank" in line for line in result["settings"]["differences_from_paper"])
    text = table4.format_table(result)
    assert "97.21/97.08" in text
    assert "everything is weak" in text
    assert all(len(line) <= 120 for line in text.splitlines()[:10])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", "endless"),
        ("seeds", 0),
        ("first_seed", -1),
        ("losses", ()),
        ("losses", ("bce",)),
        ("fractions", (0.0,)),
        ("fractions", (1.5,)),
        ("workers", 0),
    ],
)
def test_bad_configuration(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        table4.Table4Config("bench.json", **{field: value})  # type: ignore[arg-type]


def test_budgets() -> None:
    paper = table4.filter_config("vpu", "paper", 0.1)
    assert (paper.steps, paper.batch_size, paper.lr) == (3000, 1024, 1e-3)
    steps = [table4.filter_config("vpu", "trial", fraction).steps for fraction in (0.01, 0.1, 1.0)]
    assert steps == sorted(steps)
    assert steps[0] >= 100
    assert table4.filter_config("upu", "quick", 1.0).steps < 100


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/nas_bench_macro")
def test_real_benchmark_facts_and_a_short_rank_filter() -> None:
    table = load_benchmark(REAL)
    assert table.accuracy[0] == pytest.approx(45.363, abs=1e-3)
    assert table.accuracy.mean() == pytest.approx(90.247, abs=1e-3)
    assert table.accuracy.max() == pytest.approx(93.1267, abs=1e-4)
    assert table.accuracy[good_paths(table.accuracy)].min() == pytest.approx(92.353, abs=1e-3)
    record = run_cell(Cell(str(REAL), 0.1, 0, FilterConfig(loss="rank", steps=60, batch_size=128, holdout=0.0), False))
    # Far above the trivial 0.900 and 0.5 after a short training.
    assert record["precision"] > 0.95
    assert record["auroc"] > 0.95
