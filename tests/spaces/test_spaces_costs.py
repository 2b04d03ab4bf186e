"""Exact costs: published figures, the NAS-Bench-Macro table, and a scalar count made without the package."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spaces_oracle as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace

TABLE = Path(__file__).resolve().parents[3] / "shared" / "nas_bench_macro" / "nas-bench-macro_cifar10.json"
SPACES = {name: spaces.get(name) for name in spaces.names()}


def random_paths(space: SearchSpace, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, count) for n in space.num_ops], axis=1).astype(np.uint8)


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    if not TABLE.is_file():
        pytest.skip(f"the NAS-Bench-Macro table is not at {TABLE}")
    loaded: dict[str, Any] = json.loads(TABLE.read_text())
    return loaded


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("GreedyNAS-A", 6_503_082, 369_983_648),
        ("GreedyNAS-B", 5_207_804, 323_520_704),
        ("greedynas-c", 4_740_746, 284_284_064),
    ],
)
def test_published_architectures(name: str, params: int, macs: int) -> None:
    found = spaces.published(name)
    assert found.name.lower() == name.lower()
    assert found.space.name == "mb-se"
    path = found.space.parse(found.path_text)
    assert found.space.cost(path) == (params, macs)
    assert found.space.cost(path, resolution=224) == (params, macs)
    assert found.space.format(path) == found.path_text


def test_unknown_published_architecture() -> None:
    assert spaces.published_names() == ("GreedyNAS-A", "GreedyNAS-B", "GreedyNAS-C")
    with pytest.raises(InputError, match=r"GreedyNAS-D.*did you mean GreedyNAS-"):
        spaces.published("GreedyNAS-D")


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        ("mb-se", {}, "45.67"),
        ("mb-se-mix", {}, "60.30"),
        ("mb-se-mix-shuffle", {}, "61.24"),
        ("mb-se-mix-shuffle", {"shuffle_se": True}, "61.46"),
    ],
)
def test_supernet_sizes(name: str, options: dict[str, bool], millions: str) -> None:
    space = spaces.get(name, **options)
    assert f"{space.supernet_params() / 1e6:.2f}" == millions
    params, _ = space.op_costs()
    assert space.supernet_params() == space.fixed_cost().params + params.sum()


@pytest.mark.parametrize(
    ("reduction", "operation", "params_millions", "macs_millions"),
    [
        (None, "Res_K3_1x", "25.557", "4089.2"),
        (0, "ResNeXt_K3_1x", "25.029", "4230.5"),
        (8, "Res_K3_1x", "30.604", "4094.2"),
        (16, "ResNeXt_K3_1x", "27.560", "4233.0"),
    ],
)
def test_res_networks(reduction: int | None, operation: str, params_millions: str, macs_millions: str) -> None:
    space = spaces.get("res50-se", res_se_reduction=reduction)
    params, macs = space.cost(space.parse([operation] * 16))
    assert f"{params / 1e6:.3f}" == params_millions
    assert f"{macs / 1e6:.1f}" == macs_millions


def test_every_entry_of_nas_bench_macro(table: dict[str, Any]) -> None:
    space = SPACES["nas-bench-macro"]
    paths = np.stack([space.parse(key) for key in table])
    params, macs = space.costs(paths)
    assert len(paths) == 6561 == space.size
    np.testing.assert_array_equal(params, [entry["params"] for entry in table.values()])
    np.testing.assert_array_equal(macs, [entry["flops"] for entry in table.values()])


def test_equal_networks_of_nas_bench_macro_have_equal_results(table: dict[str, Any]) -> None:
    space = SPACES["nas-bench-macro"]
    classes = space.canonical(np.stack([space.parse(key) for key in table]))
    results: dict[bytes, set[tuple[float, int, int]]] = {}
    for row, entry in zip(classes, table.values(), strict=True):
        results.setdefault(row.tobytes(), set()).add((entry["mean_acc"], entry["params"], entry["flops"]))
    assert len(results) == 3969
    assert all(len(result) == 1 for result in results.values())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(spaces.names()))
def test_costs_against_scalar_count(data: st.DataObject, name: str) -> None:
    options: dict[str, Any] = {}
    oracle_options: dict[str, Any] = {}
    if name == "mb-se-mix-shuffle":
        options["shuffle_se"] = oracle_options["shuffle_se"] = data.draw(st.booleans())
    if name == "res50-se":
        options["res_se_reduction"] = oracle_options["res_se"] = data.draw(st.sampled_from([0, 4, 8, 16]))
    classes = data.draw(st.integers(1, 300))
    resolution = data.draw(st.integers(32, 97))
    space = spaces.get(name, num_classes=classes, resolution=resolution, **options)
    names = [data.draw(st.sampled_from(choices)) for choices in space.ops]
    expected = oracle.network(name, names, resolution, classes, **oracle_options)
    assert space.cost(space.parse(names)) == expected
    assert spaces.get(name, num_classes=classes, **options).cost(space.parse(names), resolution) == expected


@pytest.mark.parametrize("name", spaces.names())
def test_many_costs_equal_single_costs(name: str) -> None:
    space = SPACES[name]
    paths = random_paths(space, 7, seed=1)
    params, macs = space.costs(paths, resolution=64)
    assert params.dtype == macs.dtype == np.int64
    assert [(p, m) for p, m in zip(params.tolist(), macs.tolist(), strict=True)] == [
        tuple(space.cost(path, 64)) for path in paths
    ]
    empty_params, empty_macs = space.costs(np.empty((0, space.num_layers), dtype=np.uint8))
    assert empty_params.shape == empty_macs.shape == (0,)


def test_op_costs_are_copies() -> None:
    space = SPACES["sample"]
    params, macs = space.op_costs()
    assert params.shape == macs.shape == (6, 7)
    params[:] = 0
    macs[:] = 0
    assert (space.op_costs()[0][:, 0] > 0).all()
    assert (space.op_costs()[1][:, 0] > 0).all()


def test_shuffle_activation_costs_nothing() -> None:
    relu = spaces.get("mb-se-mix-shuffle")
    swish = spaces.get("mb-se-mix-shuffle", shuffle_activation="hard_swish")
    assert relu != swish
    np.testing.assert_array_equal(relu.op_costs(), swish.op_costs())


@pytest.mark.parametrize("resolution", [31, 0, -1, True, 224.0, "224"])
def test_bad_resolution(resolution: Any) -> None:
    space = SPACES["mb-se"]
    with pytest.raises(InputError, match="resolution"):
        space.cost(np.zeros(21, dtype=np.uint8), resolution)
    with pytest.raises(InputError, match="resolution"):
        spaces.get("mb-se", resolution=resolution)


@pytest.mark.parametrize("name", spaces.names())
def test_description(name: str) -> None:
    space = SPACES[name]
    plain = json.loads(json.dumps(space.describe()))
    assert plain["name"] == name
    assert plain["size"] == space.size
    assert plain["supernet_params"] == space.supernet_params()
    assert [tuple(layer["ops"]) for layer in plain["layers"]] == list(space.ops)
    params, macs = space.costs(random_paths(space, 500, seed=2))
    for key, values in (("params", params), ("macs", macs)):
        assert plain[key]["min"] <= values.min()
        assert values.max() <= plain[key]["max"]
        assert abs(values.mean() - plain[key]["mean"]) < 6 * values.std() / 500**0.5
    rows = plain["layers"]
    assert all(a["out_channels"] == b["in_channels"] for a, b in pairwise(rows))
    assert all(b["size"] == -(-a["size"] // a["stride"]) for a, b in pairwise(rows))
    assert space.describe(64)["macs"]["max"] == space.fixed_cost(64).macs + space.op_costs(64)[1].max(axis=1).sum()


def test_description_of_nas_bench_macro_is_exact(table: dict[str, Any]) -> None:
    macs = [entry["flops"] for entry in table.values()]
    plain = SPACES["nas-bench-macro"].describe()
    assert (plain["macs"]["min"], plain["macs"]["max"]) == (min(macs), max(macs))
    assert plain["macs"]["mean"] == pytest.approx(sum(macs) / len(macs), rel=1e-12)
