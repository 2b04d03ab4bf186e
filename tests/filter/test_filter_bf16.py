"""The bf16 mode of the compiled engine at every CPU level: against the module, the portable kernel, and itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from greedynas_fast.filter import FilterEngine, PathFilter

Paths = npt.NDArray[np.uint8]
ROWS = (1, 5, 96, 97)  # a block of the kernels has 96
HIDDEN = (16, 48, 128, 256)
LAYERS = (1, 5, 21, 64)
# Of log Phi. Largest seen with these networks, at any level: 1.9e-4. (Trained filters: filter/engine.py.)
BAND = 1e-3
# Kernels differ in the order of sums and in how functions are approximated, so now and then a state is rounded to the
# other neighbour. Largest seen: 6.6e-5, also between kernels that differ in the order alone.
KERNELS_APART = 3e-4


def network(layers: int, hidden: int) -> PathFilter:
    """With weights that spread log Phi as training does."""
    net = PathFilter((13,) * layers, hidden, seed=layers + hidden, embedding_std=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 1.5
    return net


def random_paths(layers: int, count: int, seed: int = 0) -> Paths:
    return np.random.default_rng(seed).integers(0, 13, (count, layers)).astype(np.uint8)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layers", LAYERS)
def test_every_kernel_is_near_the_module_and_the_portable_one(
    layers: int, hidden: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(layers, hidden)
    engine = FilterEngine(net, precision="bf16", num_threads=1)
    assert engine.isa == level
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "portable")
    portable = FilterEngine(net, precision="bf16", num_threads=1)
    assert portable.isa == "portable"
    batch = random_paths(layers, max(ROWS))
    expected = net.log_prob_weak(batch).numpy()
    assert np.ptp(expected) > 10 * KERNELS_APART  # the comparison can fail
    for rows in ROWS:
        found = engine.log_prob_weak(batch[:rows])
        assert (found.shape, found.dtype) == ((rows,), np.float32)
        np.testing.assert_allclose(found, expected[:rows], rtol=0, atol=BAND)
        np.testing.assert_allclose(found, portable.log_prob_weak(batch[:rows]), rtol=0, atol=KERNELS_APART)


def test_shared_beginnings_change_no_bit(level: str) -> None:
    net = network(5, 48)
    batch = random_paths(5, 6000)
    fresh = FilterEngine(net, precision="bf16", num_threads=1)
    alone = np.concatenate([fresh.log_prob_weak(batch[i : i + 97]) for i in range(0, 970, 97)])
    fresh.log_prob_weak(batch)  # enough for the states after shared beginnings to be computed
    np.testing.assert_array_equal(fresh.log_prob_weak(batch)[:970], alone)
    np.testing.assert_array_equal(fresh.log_prob_weak(batch[:5]), alone[:5])


def test_decisions_are_those_of_float32_outside_the_band(level: str) -> None:
    net = network(21, 128)
    batch = random_paths(21, 3000)
    exact = FilterEngine(net, num_threads=1).log_prob_weak(batch).astype(np.float64)
    rounded = FilterEngine(net, precision="bf16", num_threads=1)
    for q in (0.5, 0.9, 0.99):
        threshold = float(np.quantile(exact, 1 - q))
        decisions = rounded.decide(batch, threshold, band=BAND)
        differs = decisions.accepted != (exact <= threshold)
        assert np.all(np.abs(exact[differs] - threshold) <= BAND)
        assert np.mean(differs) <= 0.01
