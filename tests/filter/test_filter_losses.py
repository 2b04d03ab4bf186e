"""Losses against formulas in numpy, and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.filter import losses

PROBABILITIES = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12)


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(PROBABILITIES, PROBABILITIES)
def test_vpu_is_equation_6(phi_u: list[float], phi_p: list[float]) -> None:
    expected = np.log(np.mean(phi_u)) - np.mean(np.log(phi_p))
    assert float(losses.vpu(tensor(phi_u).log(), tensor(phi_p).log())) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(PROBABILITIES, PROBABILITIES, st.floats(1e-3, 1.0))
def test_vpu_does_not_see_the_scale_of_phi(phi_u: list[float], phi_p: list[float], scale: float) -> None:
    log_u, log_p = tensor(phi_u).log(), tensor(phi_p).log()
    scaled = losses.vpu(log_u + np.log(scale), log_p + np.log(scale))
    assert float(scaled) == pytest.approx(float(losses.vpu(log_u, log_p)), abs=1e-9)


def test_vpu_stays_finite_where_phi_underflows() -> None:
    assert float(losses.vpu(torch.full((4,), -500.0), torch.full((3,), -500.0))) == pytest.approx(0.0, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)), min_size=1, max_size=9), st.floats(0.0, 0.95))
def test_vpu_mixup(pairs: list[tuple[float, float]], gamma: float) -> None:
    mixed, unlabeled = np.array(pairs).T
    expected = np.mean((np.log(gamma * unlabeled + 1 - gamma) - np.log(mixed)) ** 2)
    actual = losses.vpu_mixup(torch.tensor(mixed).log(), torch.tensor(unlabeled).log(), gamma)
    assert float(actual) == pytest.approx(expected, abs=1e-9)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def numpy_risks(phi_u: list[float], phi_p: list[float], prior: float) -> tuple[float, float]:
    """Positive risk and estimated negative risk with l(z, y) = sigmoid(-y z), from the scores z."""
    u, p = (np.log(np.array(v) / (1 - np.array(v))) for v in (phi_u, phi_p))
    return prior * np.mean(sigmoid(-p)), np.mean(sigmoid(u)) - prior * np.mean(sigmoid(p))


@settings(max_examples=40, deadline=None)
@given(PROBABILITIES, PROBABILITIES, st.floats(0.05, 0.95))
def test_upu_is_equation_5_and_nnpu_clips_it(phi_u: list[float], phi_p: list[float], prior: float) -> None:
    positive, negative = numpy_risks(phi_u, phi_p, prior)
    assert float(losses.upu(tensor(phi_u), tensor(phi_p), prior)) == pytest.approx(positive + negative, abs=1e-9)
    clipped = positive + max(0.0, negative)
    assert float(losses.nnpu(tensor(phi_u), tensor(phi_p), prior)) == pytest.approx(clipped, abs=1e-9)


def test_nnpu_gradient_undoes_a_negative_risk() -> None:
    unlabeled = torch.tensor([0.1, 0.2], requires_grad=True)
    positive = torch.tensor([0.9, 0.8], requires_grad=True)
    losses.nnpu(unlabeled, positive, 0.9).backward()
    assert unlabeled.grad is not None
    assert positive.grad is not None
    torch.testing.assert_close(unlabeled.grad, torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(positive.grad, torch.tensor([0.45, 0.45]))


def test_pn_and_rank_closed_forms() -> None:
    phi_p, phi_n = np.array([0.9, 0.6]), np.array([0.2])
    expected = -0.7 * np.log(phi_p).mean() - 0.3 * np.log(1 - phi_n).mean()
    actual = losses.pn(torch.tensor(phi_p).log(), torch.tensor(1 - phi_n).log(), 0.7)
    assert float(actual) == pytest.approx(expected)
    rank = losses.rank(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.5]))
    assert float(rank) == pytest.approx((0.25 + 0.25) / 2)
