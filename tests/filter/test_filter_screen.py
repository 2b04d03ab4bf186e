"""Rejection sampling with a bf16 screen accepts what float32 accepts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from greedynas_fast import _core
from greedynas_fast.filter import FilterEngine, PathFilter, RejectionRequest, cpu_backend

NUM_OPS = (13,) * 21
ALLOWED = np.ones((21, 13), dtype=np.bool_)


def network(seed: int, scale: float) -> PathFilter:
    net = PathFilter(NUM_OPS, 128, seed=seed, embedding_std=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale
    return net


def backend(engine: FilterEngine) -> cpu_backend.CpuBackend:
    assert isinstance(engine._backend, cpu_backend.CpuBackend)
    return engine._backend


@pytest.fixture
def fast_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever level was forced from outside, one at which a screen is used."""
    found = [level for level in cpu_backend.FAST_BF16 if _core.cpu_isa_available(level)]
    if not found:
        pytest.skip("this machine has neither AVX512-BF16 nor AMX")
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", found[-1])


@pytest.mark.usefixtures("fast_level")
@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_decisions_are_those_of_float32(q: float, scale: float) -> None:
    plain = FilterEngine(network(3, scale), num_threads=1)
    screened = FilterEngine(plain.net, num_threads=1, screen=True)
    sample = np.random.default_rng(0).integers(0, 13, (2000, 21)).astype(np.uint8)
    scores = plain.log_prob_weak(sample)
    np.testing.assert_array_equal(screened.log_prob_weak(sample), scores)
    models = backend(screened)._models
    assert models.screen is not None
    assert 0 < models.band < 0.2 * np.ptp(scores)  # or there would be nothing to gain
    threshold = float(np.quantile(scores.astype(np.float64), 1 - q))
    for wanted, limit in ((1, 1000), (30, 4000), (30, 60)):
        request = RejectionRequest(ALLOWED, 5, 0, 10, wanted, limit, threshold, want_fallbacks=True)
        expected, found = plain.reject(request), screened.reject(request)
        np.testing.assert_array_equal(found.accepted, expected.accepted)
        np.testing.assert_array_equal(found.fallbacks, expected.fallbacks)
        assert found.proposals == expected.proposals


@pytest.mark.usefixtures("fast_level")
def test_the_screen_follows_the_weights() -> None:
    engine = FilterEngine(network(0, 1.5), screen=True)
    before = backend(engine)._models
    with torch.no_grad():
        engine.net.lstm.weight_hh_l0 *= 1.5
    engine.log_prob_weak(np.zeros(21, dtype=np.uint8))
    after = backend(engine)._models
    assert after.screen is not before.screen
    assert after.band != before.band
    assert copy.deepcopy(engine).screen


def test_no_screen_where_bf16_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", "portable")
    models = backend(FilterEngine(network(0, 1.0), screen=True))._models
    assert (models.screen, models.band) == (None, 0.0)
