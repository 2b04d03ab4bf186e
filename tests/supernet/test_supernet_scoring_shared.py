"""Scoring over shared prefixes: equal to one path at a time, bit for bit, whatever else is scored."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from greedynas_fast import paths as path_keys
from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.nn import use_backend
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet import Supernet, extract, recalibrate, score_paths
from greedynas_fast.supernet.scoring import layers as layers_module
from greedynas_fast.supernet.scoring import score_one_at_a_time
from greedynas_fast.supernet.scoring.layers import STEM_RESULTS_PER_PATH
from greedynas_fast.supernet.scoring.walk import PrefixTree

POOL = np.array([[a, b, 2 * c % 4, b] for a in (0, 2, 5) for b in (1, 2) for c in (0, 1)], dtype=np.uint8)
MEMORY = (0, 3000, 20_000, 1 << 30)  # a share of four images holds 4 to 16 kB a level


@pytest.fixture(scope="module")
def net(space: SearchSpace) -> Supernet:
    """A supernet in channels-last, as it is trained, with weights of batch norm that tell operations apart."""
    net = Supernet(space, seed=3).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(generator=generator)
                part.running_mean.normal_(generator=generator)
    return net


@pytest.fixture(scope="module")
def data(images, labels) -> tuple[Tensor, Tensor]:
    return images(7, seed=5), labels(7)


@pytest.fixture(scope="module")
def calibration(images) -> list[Tensor]:
    return [images(4, seed=6), images(3, seed=7) * 2 + 1, images(4, seed=8)]


@pytest.fixture(scope="module")
def expected(net, data, calibration) -> dict[str, dict[bytes, float]]:
    """Losses of the pool, one path at a time."""
    found = {}
    for bn in ("batch", "recalibrate"):
        scores = score_one_at_a_time(net, POOL, *data, batch_size=4, bn=bn, calibration=calibration)
        found[bn] = {path.tobytes(): loss for path, loss in zip(POOL, scores.loss, strict=True)}
        assert len(set(scores.loss)) == len(POOL)
    return found


def state(net: nn.Module) -> tuple[dict[str, Tensor], list[object]]:
    flags = [(m.training, getattr(m, "track_running_stats", 0), getattr(m, "momentum", 0)) for m in net.modules()]
    return {key: value.clone() for key, value in net.state_dict().items()}, flags


def assert_same(net: nn.Module, before: tuple[dict[str, Tensor], list[object]]) -> None:
    tensors, flags = state(net)
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensors[key], value) for key, value in before[0].items())
    assert flags == before[1]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, len(POOL) - 1), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from(MEMORY),
    st.sampled_from(["batch", "recalibrate"]),
)
def test_a_score_depends_on_nothing_else(net, data, calibration, expected, rows, cuts, memory, bn) -> None:
    """Any paths in any order, duplicates included, in any chunks and under any memory limit."""
    chosen = POOL[rows]
    losses = []
    for chunk in np.split(chosen, sorted(min(cut, len(rows)) for cut in cuts)):
        scores = score_paths(net, chunk, *data, batch_size=4, bn=bn, calibration=calibration, memory=memory)
        losses += scores.loss.tolist()
    assert losses == [expected[bn][path.tobytes()] for path in chosen]


@pytest.fixture(scope="module")
def by_layers(net, data, expected) -> dict[bytes, float]:
    """Losses of the pool, each path alone through its layers: near those of plain modules."""
    losses = [score_paths(net, [path], *data, batch_size=4, walk="layers").loss[0] for path in POOL]
    np.testing.assert_allclose(losses, [expected["batch"][path.tobytes()] for path in POOL], rtol=2e-5)
    return {path.tobytes(): loss for path, loss in zip(POOL, losses, strict=True)}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, len(POOL) - 1), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
    st.sampled_from(MEMORY),
)
def test_a_score_by_layers_depends_on_nothing_else(net, data, by_layers, rows, cuts, memory) -> None:
    chosen = POOL[rows]
    losses = []
    for chunk in np.split(chosen, sorted(min(cut, len(rows)) for cut in cuts)):
        losses += score_paths(net, chunk, *data, batch_size=4, memory=memory, walk="layers").loss.tolist()
    assert losses == [by_layers[path.tobytes()] for path in chosen]


def test_a_layer_runs_once_for_all_paths(net, data, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[int]] = []
    original = layers_module.run_masked_layer

    def spy(operations, choices, x, layout):
        groups.append(choices)
        return original(operations, choices, x, layout)

    monkeypatch.setattr(layers_module, "run_masked_layer", spy)
    score_paths(net, POOL, *data, batch_size=7, walk="layers")
    nodes = [np.unique(POOL[:, :depth], axis=0)[:, -1].tolist() for depth in range(1, POOL.shape[1] + 1)]
    assert groups == nodes
    groups.clear()
    stem = net.stem(data[0])
    memory = 2 * STEM_RESULTS_PER_PATH * stem.numel() * 4  # of two paths
    score_paths(net, POOL, *data, batch_size=7, walk="layers", memory=memory)
    assert max(map(len, groups)) == 2


@pytest.mark.parametrize(("walk", "bn"), [("breadth", "batch"), ("layers", "recalibrate")])
def test_bad_walks(net, data, calibration, walk, bn) -> None:
    with pytest.raises(InputError, match=f"walk: expected paths, or layers with bn='batch', got '{walk}' with"):
        score_paths(net, POOL, *data, batch_size=4, bn=bn, calibration=calibration, walk=walk)


def first_layers(name: str) -> SearchSpace:
    """The first three layers of a space, with a head that fits."""
    space = spaces.get(name)
    layers = space.layers[:3]
    head = dataclasses.replace(space.head, in_channels=layers[-1].out_channels, channels=16)
    return dataclasses.replace(space, layers=layers, head=head, num_classes=5)


@pytest.mark.parametrize(
    ("name", "resolution", "backend"),
    [
        ("sample", 28, "auto"),
        ("sample", 28, "reference"),
        ("nas-bench-macro", 8, "auto"),
        ("mb-se-mix-shuffle", 32, "auto"),
        ("res50-se", 16, "auto"),
    ],
)
def test_every_space_equals_one_path_at_a_time(name, resolution, backend) -> None:
    space = first_layers(name)
    chosen = path_keys.propose(space.allowed, 1, 0, 0, 12)
    chosen[-3:, :2] = chosen[0, :2]
    net = Supernet(space)
    if backend == "auto":
        net.to(memory_format=torch.channels_last)
    use_backend(net, backend)
    x = torch.randn(4, space.in_channels, resolution, resolution, generator=torch.Generator().manual_seed(0))
    y = torch.arange(4)
    for bn in ("batch", "recalibrate"):
        options = {"batch_size": 2, "bn": bn, "calibration": [x[:3], x[1:]]}
        ours, plain = (score(net, chosen, x, y, **options) for score in (score_paths, score_one_at_a_time))
        assert np.array_equal(ours.loss, plain.loss)
        assert np.array_equal(ours.accuracy, plain.accuracy)
    together = score_paths(net, chosen, x, y, batch_size=2, walk="layers")
    one_by_one = score_one_at_a_time(net, chosen, x, y, batch_size=2)
    np.testing.assert_allclose(together.loss, one_by_one.loss, rtol=2e-5)


@pytest.mark.parametrize("memory", MEMORY)
def test_statistics_are_those_of_the_extracted_network(net, data, calibration, memory) -> None:
    """`batchnorm.recalibrate` itself is the oracle: every batch norm reads what it would have there."""
    seen: dict[str, list[Tensor]] = {}
    names = {id(part): name for name, part in net.named_modules()}

    def look(norm: nn.Module, args: object) -> None:
        if not norm.training:
            seen.setdefault(names[id(norm)], []).append(torch.stack((norm.running_mean, norm.running_var)).clone())

    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        score_paths(net, POOL, *data, batch_size=7, bn="recalibrate", calibration=calibration, memory=memory)
    finally:
        for hook in hooks:
            hook.remove()
    checked = 0
    for path in POOL:
        network = extract(net, path)
        use_backend(network, "reference")  # as hooks make the blocks of the supernet run
        recalibrate(network, calibration)
        for name, norm in network.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                _, layer, rest = name.split(".", 2) if name.startswith("blocks.") else (None, None, name)
                key = rest if layer is None else f"layers.{layer}.{path[int(layer)]}.{rest}"
                wanted = torch.stack((norm.running_mean, norm.running_var))
                assert any(torch.allclose(wanted, found, rtol=1e-5, atol=1e-6) for found in seen[key]), key
                checked += 1
    assert checked > 100


def test_shared_prefixes_and_equal_paths_run_once(net, data) -> None:
    runs: dict[str, int] = {}

    def count(module: nn.Module, args: object) -> None:
        runs[names[id(module)]] = runs.get(names[id(module)], 0) + 1

    names = {id(net.stem): "stem", id(net.head): "head"}
    names |= {id(op): f"{layer}.{index}" for layer, ops in enumerate(net.layers) for index, op in enumerate(ops)}
    modules = [net.stem, net.head, *(op for ops in net.layers for op in ops)]
    hooks = [module.register_forward_pre_hook(count) for module in modules]
    chosen = [(0, 1, 3, 0), (5, 1, 0, 0), (0, 1, 0, 0), (0, 1, 3, 0), (0, 2, 0, 0), (0, 1, 0, 4)]
    try:
        score_paths(net, chosen, *data, batch_size=7)
    finally:
        for hook in hooks:
            hook.remove()
    layers = {"0.0": 1, "0.5": 1, "1.1": 2, "1.2": 1, "2.0": 3, "2.3": 1, "3.0": 4, "3.4": 1}
    assert runs == {"stem": 1, "head": 5, **layers}


class Alive:
    """Which outputs of a function are alive, by weak references: an oracle that knows nothing of the walk."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def run(self, level: int, node: int, x: Tensor) -> Tensor:
        if node == 0 and level == 2:
            return x  # an identity
        self.references = [reference for reference in self.references if reference() is not None]
        alive = sum(reference().numel() * 4 for reference in self.references if reference() is not x)
        self.peak = max(self.peak, alive)
        y = x.repeat(2) if level == 1 else x + 1
        self.references.append(weakref.ref(y))
        return y


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 2)] * 5), min_size=1, max_size=30, unique=True),
    st.sampled_from([0, 4, 8, 16, 24, 1 << 20]),
)
def test_held_activations_are_bounded(rows, memory) -> None:
    """Beside input and output of the running module at most `memory` bytes live, and never more than the depth."""
    tree = PrefixTree(np.unique(np.array(rows, dtype=np.int64), axis=0))
    alive = Alive()
    outputs = []
    for row, out in tree.walk(torch.zeros(1), alive.run, memory):
        outputs.append((row, out.tolist()))
        del out
    assert [row for row, _ in outputs] == list(range(len(rows)))
    for row, out in outputs:
        assert out == [3 if tree.node[row, 2] == 0 else 4] * 2
    assert alive.peak <= min(memory, 4 + 4 * 8)


def test_without_memory_nothing_is_shared_and_with_it_everything(net, data) -> None:
    calls = {"n": 0}

    def poll() -> None:
        calls["n"] += 1

    score_paths(net, POOL, *data, batch_size=7, memory=0, poll=poll)
    assert calls["n"] == len(POOL) * 6
    calls["n"] = 0
    score_paths(net, POOL, *data, batch_size=7, poll=poll)
    assert calls["n"] == 1 + sum(len(np.unique(POOL[:, :depth], axis=0)) for depth in (1, 2, 3, 4)) + len(POOL)


@pytest.fixture
def stop() -> Iterator[Callable[[], None]]:
    left = iter(range(7))

    def poll() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return poll


@pytest.mark.parametrize("bn", ["batch", "recalibrate"])
@pytest.mark.parametrize("training", [False, True])
def test_an_interruption_leaves_the_supernet_as_it_was(net, data, calibration, stop, bn, training) -> None:
    net.train(training)
    net.layers[0][0].bn1.momentum = 0.3
    before = state(net)
    with pytest.raises(KeyboardInterrupt):
        score_paths(net, POOL, *data, batch_size=4, bn=bn, calibration=calibration, poll=stop)
    assert_same(net, before)
    score_paths(net, POOL, *data, batch_size=4, bn=bn, calibration=calibration)
    assert_same(net, before)
    net(data[0], POOL[0]).sum().backward()  # nothing of inference mode stays behind
    net.zero_grad()


def test_no_paths(net, data, calibration) -> None:
    for bn in ("batch", "recalibrate"):
        scores = score_paths(net, POOL[:0], *data, batch_size=4, bn=bn, calibration=calibration)
        assert scores.loss.shape == scores.accuracy.shape == (0,)


def test_a_negative_limit(net, data) -> None:
    with pytest.raises(InputError, match="memory: expected 0 bytes or more, got -1"):
        score_paths(net, POOL, *data, batch_size=4, memory=-1)
