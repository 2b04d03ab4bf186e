"""Building, the forward pass by path, sub-network extraction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.supernet import Network, ParameterBank, Supernet, extract

PATHS = [(0, 0, 0, 0), (1, 2, 3, 4), (2, 1, 2, 5), (3, 4, 1, 2), (4, 5, 3, 3), (5, 3, 0, 1)]


def trained_a_little(space, images, seed: int = 0) -> Supernet:
    """A supernet whose running statistics and weights are no longer the starting ones."""
    net = Supernet(space, seed=seed)
    with torch.no_grad():
        for step, path in enumerate(PATHS):
            net(images(4, seed=step), path)
        generator = torch.Generator().manual_seed(1)
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [16, 13])
@pytest.mark.parametrize("banked", [False, True])
def test_extracted_network_is_bit_equal(space, images, path, size, banked) -> None:
    net = trained_a_little(space, images)
    if banked:
        ParameterBank(net)
    x = images(3, seed=9, size=size)
    net.eval()
    network = extract(net, path)
    assert not network.training
    assert torch.equal(network(x), net(x, path))

    net.train()
    network = extract(net, path)
    assert network.training
    assert all(part.training for part in network.modules())
    torch.manual_seed(0)  # the same dropout mask on both sides
    expected = net(x, path)
    torch.manual_seed(0)
    assert torch.equal(network(x), expected)
    for mine, theirs in zip(network.blocks, net.operations(path), strict=True):
        for key, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value), key  # also the running statistics of this step


@pytest.mark.parametrize("path", PATHS)
def test_gradients_equal_those_of_the_extracted_network(space, images, labels, path) -> None:
    net = trained_a_little(space, images)
    network = extract(net, path)
    bank = ParameterBank(net)
    bank.zero_grad(path)
    x, y = images(4, seed=3), labels(4)
    for forward in (lambda: net(x, path), lambda: network(x)):
        torch.manual_seed(0)
        functional.cross_entropy(forward(), y).backward()
    pairs = [
        (net.stem, network.stem),
        (net.head, network.head),
        *zip(net.operations(path), network.blocks, strict=True),
    ]
    for ours, theirs in pairs:
        for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name


def test_extraction_copies_and_leaves_the_supernet_alone(space, images) -> None:
    net = trained_a_little(space, images)
    bank = ParameterBank(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    network = extract(net, PATHS[1])
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.fill_(3)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    owned = sum(p.untyped_storage().nbytes() for p in network.parameters())
    assert owned == 4 * sum(p.numel() for p in network.parameters()), "a copy may not drag the bank along"
    bank.check()


def test_state_dict_keys(space) -> None:
    keys = set(Network(space, PATHS[0]).state_dict())
    assert {key.split(".")[0] for key in keys} == {"stem", "blocks", "head"}
    assert {"stem.conv.weight", "blocks.3.conv_pw.weight", "head.classifier.bias"} <= keys
    keys = set(Supernet(space).state_dict())
    assert {"stem.bn.running_mean", "layers.1.5.conv2.weight", "layers.0.2.conv.weight", "head.conv.weight"} <= keys


def test_a_network_loads_what_was_extracted(space, images) -> None:
    net = trained_a_little(space, images).eval()
    network = Network(space, PATHS[4], seed=7).eval()
    network.load_state_dict(extract(net, PATHS[4]).state_dict())
    x = images(2)
    assert torch.equal(network(x), net(x, PATHS[4]))


@pytest.mark.parametrize("kind", [Supernet, lambda space, seed: Network(space, PATHS[1], seed)])
def test_weights_depend_on_the_seed_alone(space, kind) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = kind(space, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    with torch.device("meta"):
        again = kind(space, seed=5).state_dict()
    other = kind(space, seed=6).state_dict()
    assert all(torch.equal(first[key], value) for key, value in again.items())
    assert not torch.equal(first["head.conv.weight"], other["head.conv.weight"])
    assert all(torch.isfinite(value).all() for value in first.values())


def test_paths_may_be_arrays_tensors_or_sequences(space, images) -> None:
    net = Supernet(space).eval()
    x = images(2)
    expected = net(x, PATHS[1])
    array = np.array(PATHS[1], dtype=np.uint8)
    for path in (array, list(PATHS[1]), torch.tensor(PATHS[1]), list(array)):
        assert torch.equal(net(x, path), expected)
    assert extract(net, array).path == PATHS[1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((0, 0, 0), "expected 4 operation indices, one a layer, got 3"),
        ((0, 0, 4, 0), "layer 2 has operations 0 to 3, got 4"),
        ((0, -1, 0, 0), "layer 1 has operations 0 to 5, got -1"),
        ((0, 0, 0, 1.0), "whole number for layer 3, got 1.0"),
        ((0, True, 0, 0), "whole number for layer 1, got True"),
        ("0000", "expected 4 operation indices"),
        (None, "expected 4 operation indices, one a layer, got NoneType"),
        (np.float32(1), "expected 4 operation indices"),
        (np.zeros((4, 4), dtype=np.uint8), "whole number for layer 0"),
    ],
)
def test_wrong_paths_are_refused_in_plain_words(space, images, path, message) -> None:
    net = Supernet(space)
    bank = ParameterBank(net)
    for call in (
        lambda: net(images(2), path),
        lambda: extract(net, path),
        lambda: Network(space, path),
    ):
        with pytest.raises(InputError, match=message):
            call()
    if not isinstance(path, np.ndarray):
        with pytest.raises(InputError, match=message):
            bank.zero_grad(path)


def macs_of(network: Network, space) -> int:
    x = torch.empty(1, space.in_channels, space.resolution, space.resolution, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta").eval()(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", spaces.names())
def test_whole_networks_cost_what_the_space_says(name) -> None:
    space = spaces.get(name)
    rng = np.random.default_rng(0)
    for _ in range(2):
        path = np.array([rng.integers(n) for n in space.num_ops], dtype=np.uint8)
        network = Network(space, path)
        assert space.cost(path) == (sum(p.numel() for p in network.parameters()), macs_of(network, space))


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("GreedyNAS-A", 6_503_082, 369_983_648),
        ("GreedyNAS-B", 5_207_804, 323_520_704),
        ("GreedyNAS-C", 4_740_746, 284_284_064),
    ],
)
def test_published_networks(name, params, macs) -> None:
    found = spaces.published(name)
    network = Network(found.space, found.space.parse(found.path_text))
    assert sum(p.numel() for p in network.parameters()) == params
    assert macs_of(network, found.space) == macs


@pytest.mark.parametrize(("name", "millions"), [("nas-bench-macro", None), ("sample", None), ("mb-se", 45.67)])
def test_supernet_parameters(name, millions) -> None:
    space = spaces.get(name)
    count = sum(p.numel() for p in Supernet(space).parameters())
    assert count == space.supernet_params()
    if millions is not None:
        assert round(count / 1e6, 2) == millions
