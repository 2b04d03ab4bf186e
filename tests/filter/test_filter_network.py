"""The network against torch's own LSTM, its prefix sharing, and bad paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.errors import InputError
from greedynas_fast.filter.network import WEAK, PathFilter
from greedynas_fast.filter.prefixes import prefix_levels

NUM_OPS = (3, 2, 4, 3, 3)


def random_paths(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, ops, count) for ops in NUM_OPS], axis=1).astype(np.uint8)


def oracle(net: PathFilter, embedded: torch.Tensor) -> torch.Tensor:
    """The network as torch would write it, from embedded sequences [n, L, H]."""
    _, (hidden, _) = net.lstm(embedded)
    features = torch.cat([hidden[0], hidden[1]], dim=1)
    return torch.log_softmax(net.fc2(torch.relu(net.fc1(features))), dim=1)


def embed(net: PathFilter, paths: torch.Tensor) -> torch.Tensor:
    return net.embedding[torch.arange(len(NUM_OPS)), paths]


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_forward_and_gradients_match_torch_lstm(count: int) -> None:
    net = PathFilter(NUM_OPS, hidden=9, seed=3)
    paths = net.check(random_paths(count))
    weights = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    parameters = list(net.parameters())
    ours, theirs = net(paths), oracle(net, embed(net, paths))
    # A dozen float32 roundings a step over five steps, values of order one.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours_grad = torch.autograd.grad((ours * weights).sum(), parameters)
    theirs_grad = torch.autograd.grad((theirs * weights).sum(), parameters)
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mixed_forward_and_gradients_match_mixed_embeddings() -> None:
    net = PathFilter(NUM_OPS, hidden=8, seed=4)
    first, second = net.check(random_paths(40, 1)), net.check(random_paths(40, 2))
    mixed = 0.3 * embed(net, first) + 0.7 * embed(net, second)
    ours, theirs = net.forward_mixed(first, second, 0.3), oracle(net, mixed)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    parameters = list(net.parameters())
    for a, b in zip(
        torch.autograd.grad(ours[:, 0].sum(), parameters),
        torch.autograd.grad(theirs[:, 0].sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradcheck_in_double_precision() -> None:
    net = PathFilter((2, 3, 2), hidden=3, seed=1).double()
    paths = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 2, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1]])
    names, values = zip(*net.named_parameters(), strict=True)

    def run(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (paths,))

    assert torch.autograd.gradcheck(run, tuple(v.detach().requires_grad_() for v in values))


def test_log_prob_weak_in_chunks_is_a_log_probability() -> None:
    net = PathFilter(NUM_OPS, hidden=8)
    paths = random_paths(2500)
    values = net.log_prob_weak(paths)
    assert values.shape == (2500,)
    assert values.dtype == torch.float32
    assert not values.requires_grad
    assert bool((values < 0).all())
    with torch.no_grad():
        torch.testing.assert_close(values, oracle(net, embed(net, net.check(paths)))[:, WEAK], rtol=1e-5, atol=1e-6)
    assert net.log_prob_weak(np.zeros((0, 5), np.uint8)).shape == (0,)
    assert net.log_prob_weak(paths[0]).shape == (1,)


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a = PathFilter(NUM_OPS, hidden=8, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(8)
    b, c = PathFilter(NUM_OPS, hidden=8, seed=1), PathFilter(NUM_OPS, hidden=8, seed=2)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name])
        assert not torch.equal(value, c.state_dict()[name])
    assert a.embedding.shape == (5, 4, 8)
    assert not a.embedding[1, 2:].any()
    bound = 8**-0.5
    assert float(a.lstm.weight_hh_l0.detach().abs().max()) <= bound
    assert float(a.lstm.weight_hh_l0.detach().abs().max()) > 0.9 * bound


def test_accepts_anything_with_num_ops() -> None:
    class Space:
        num_ops = NUM_OPS

    assert PathFilter(Space(), hidden=4).num_ops == NUM_OPS


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (np.zeros((3, 4), np.uint8), r"paths must be \[n, 5\]"),
        (np.array([[0, 0, 0, 0, 0], [0, 2, 0, 0, 0]]), "path 1 has operation 2 at layer 1, which has 2"),
        (np.array([[0, 0, -1, 0, 0]]), "operation -1 at layer 2"),
    ],
)
def test_bad_paths(paths: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PathFilter(NUM_OPS, hidden=4).log_prob_weak(paths)


def test_bad_sizes() -> None:
    with pytest.raises(InputError, match="num_ops"):
        PathFilter([3, 0])
    with pytest.raises(InputError, match="num_ops"):
        PathFilter([])
    with pytest.raises(InputError, match="hidden"):
        PathFilter([3], hidden=0)
    with pytest.raises(InputError, match="seed"):
        PathFilter([3], seed=-1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_prefix_levels_rebuild_every_path(count: int, length: int, ops: int, seed: int) -> None:
    steps = torch.from_numpy(np.random.default_rng(seed).integers(0, ops, (length, count)))
    levels = prefix_levels(steps, [ops] * length)
    rows = torch.arange(count) if levels[-1].members is None else levels[-1].members
    for step in range(length - 1, -1, -1):
        level = levels[step]
        assert torch.equal(level.operations[rows], steps[step])
        rows = rows if level.parents is None else level.parents[rows]
