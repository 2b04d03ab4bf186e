"""Losses of the path filter: VPU (Eq. 6) with MixUp, uPU (Eq. 5), nnPU, PN (Eq. 2) and the rank loss.

"Positive" means weak throughout, as in the paper; `log_weak` is log Phi and `log_good` is log (1 - Phi). All functions
return a scalar tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def vpu(log_weak_unlabeled: Tensor, log_weak_positive: Tensor) -> Tensor:
    """Variational PU loss, Eq. (6), in log space: log mean_U Phi - mean_P log Phi.

    It does not change when Phi is multiplied by a constant.

    Args:
        log_weak_unlabeled: log Phi of unlabeled paths, [u].
        log_weak_positive: log Phi of weak paths, [p].

    Returns:
        The loss.
    """
    log_mean = torch.logsumexp(log_weak_unlabeled, dim=0) - math.log(log_weak_unlabeled.numel())
    return log_mean - log_weak_positive.mean()


def vpu_mixup(log_weak_mixed: Tensor, log_weak_unlabeled: Tensor, gamma: float) -> Tensor:
    """MixUp consistency of VPU: mean (log target - log Phi(mix))^2, target = gamma Phi(u) + (1 - gamma).

    Args:
        log_weak_mixed: log Phi of the mixtures gamma u + (1 - gamma) p, [n].
        log_weak_unlabeled: log Phi of the unlabeled members u, [n].
        gamma: weight of the unlabeled member, 0..1.

    Returns:
        The loss.
    """
    target = gamma * log_weak_unlabeled.exp() + (1.0 - gamma)
    return (target.log() - log_weak_mixed).square().mean()


def upu(weak_unlabeled: Tensor, weak_positive: Tensor, prior: float) -> Tensor:
    """Unbiased PU risk, Eq. (5), with the sigmoid loss l(z, y) = sigmoid(-y z), so that l+ = 1 - Phi and l- = Phi.

    Args:
        weak_unlabeled: Phi of unlabeled paths, [u].
        weak_positive: Phi of weak paths, [p].
        prior: share of weak paths, the pi_P of the paper.

    Returns:
        The loss.
    """
    return prior * (1.0 - 2.0 * weak_positive).mean() + weak_unlabeled.mean()


def nnpu(weak_unlabeled: Tensor, weak_positive: Tensor, prior: float) -> Tensor:
    """Non-negative PU risk with the sigmoid loss: prior mean_P l+ + max(0, mean_U l- - prior mean_P l-).

    Where the estimated risk on good paths is below zero, the gradient is that of its negative, which undoes
    overfitting (Kiryo et al. 2017, Alg. 1 with beta = 0 and gamma = 1, https://arxiv.org/abs/1703.00593).

    Args:
        weak_unlabeled: Phi of unlabeled paths, [u].
        weak_positive: Phi of weak paths, [p].
        prior: share of weak paths.

    Returns:
        The loss; its value is the non-negative risk in both cases.
    """
    positive_risk = prior * (1.0 - weak_positive).mean()
    negative_risk = weak_unlabeled.mean() - prior * weak_positive.mean()
    if float(negative_risk.detach()) >= 0.0:
        return positive_risk + negative_risk
    # Value of the clipped risk, gradient of -negative_risk.
    return positive_risk.detach() + negative_risk.detach() - negative_risk


def pn(log_weak_positive: Tensor, log_good_negative: Tensor, prior: float) -> Tensor:
    """Supervised risk, Eq. (2), with the logistic loss: -prior mean_P log Phi - (1 - prior) mean_N log (1 - Phi).

    Args:
        log_weak_positive: log Phi of weak paths, [p].
        log_good_negative: log (1 - Phi) of good paths, [n].
        prior: share of weak paths.

    Returns:
        The loss.
    """
    return -prior * log_weak_positive.mean() - (1.0 - prior) * log_good_negative.mean()


def rank(good: Tensor, percentile: Tensor) -> Tensor:
    """Squared error between 1 - Phi and the percentile rank of a scored path.

    Note: not in the paper. PU learning throws the order of the scored paths away; this loss uses it.

    Args:
        good: 1 - Phi of scored paths, [n].
        percentile: their percentile ranks, 0 the worst and 1 the best, [n].

    Returns:
        The loss.
    """
    return (good - percentile).square().mean()
