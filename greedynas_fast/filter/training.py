"""Training of the path filter from scored and unlabeled paths (Sec. 4.1; Alg. 1, lines 8-11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.errors import InputError

from . import losses
from ._random import Stream, generator
from .collapse import check_collapse
from .engine import FilterEngine
from .metrics import average_ranks
from .network import GOOD, WEAK, HasOperations, PathFilter, PathsLike, operation_counts
from .optimizer import FilterOptimizer
from .tensors import MAX_HIDDEN, MAX_WEIGHT
from .threshold import ThresholdRule, find_threshold
from .trained import FilterReport, TrainedFilter

# Multiplications of a step of the LSTM on one set of paths. Measured on two cores: with 2.1 million, 300 steps take
# 6.6 s on two threads and 2.1 s on one; with 34 million a quarter more on two, with 59 million a tenth less.
_FEW_PRODUCTS = 1 << 25

LossName: TypeAlias = Literal["vpu", "nnpu", "upu", "pn", "rank"]
ScheduleName: TypeAlias = Literal["constant", "cosine"]


@dataclass(frozen=True)
class FilterConfig:
    """How the path filter is trained. Defaults are the paper's (Sec. 5.1) where it gives a value.

    Note: the paper trains with weight decay 5e-3, with which Phi tends to collapse to a constant; here it is 0.

    Attributes:
        loss: `vpu` (Eq. 6), `nnpu`, `upu` (Eq. 5), `pn` (Eq. 2) or `rank` (beyond the paper).
        steps: optimizer steps.
        batch_size: paths drawn from P and from U in a step; a set that is not larger is used whole.
        lr: learning rate of Adam.
        schedule: `constant` (the paper's) or `cosine` to zero.
        weight_decay: L2 penalty of Adam.
        mixup_alpha: gamma ~ Beta(alpha, alpha), one a step (VPU).
        mixup_lambda: weight of VPU's MixUp term; 0 leaves it out.
        mixup_batch: pairs that are mixed in a step; None means `batch_size`.
        prior: share of weak paths for nnPU, uPU and PN; None takes q.
        threshold_rule: `quantile` or `max`.
        hidden: H, the width of embeddings, LSTM and classifier, up to 256.
        embedding_std: standard deviation of the initial embeddings. On NAS-Bench-Macro with 10 % of the data 0.1 gave
            VPU an AUROC of 0.977, 1.0 one of 0.922 (sweep of one seed): small embeddings start near a smooth function.
        average: decay of the exponential average of the weights that is used in the end; 0 takes the last weights.
        warm_start: start from the filter given as `initial` instead of new weights.
        holdout: share of the scored paths that only judge (AUROC). PU losses do not train on good scored paths, so for
            them all of these are held out, and this share of the weak ones.
        min_spread: a filter whose log Phi has a smaller standard deviation over U has collapsed.
        auroc_margin: a filter whose held-out AUROC is not above 0.5 by this much has collapsed.
    """

    loss: LossName = "vpu"
    steps: int = 3000
    batch_size: int = 1024
    lr: float = 1e-3
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    mixup_alpha: float = 0.3
    mixup_lambda: float = 0.03
    mixup_batch: int | None = None
    prior: float | None = None
    threshold_rule: ThresholdRule = "quantile"
    hidden: int = 128
    embedding_std: float = 0.1
    average: float = 0.0
    warm_start: bool = False
    holdout: float = 0.1
    min_spread: float = 0.01
    auroc_margin: float = 0.05

    def __post_init__(self) -> None:
        """Check every value."""
        choices = {"loss": LossName, "schedule": ScheduleName, "threshold_rule": ThresholdRule}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden > MAX_HIDDEN:
            raise InputError(f"hidden must be at most {MAX_HIDDEN}, got {self.hidden}")
        if self.mixup_batch is not None and self.mixup_batch < 1:
            raise InputError(f"mixup_batch must be at least 1, got {self.mixup_batch}")
        for name in ("lr", "mixup_alpha", "embedding_std"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "mixup_lambda", "min_spread", "auroc_margin"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("average", "holdout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.prior is not None and not 0.0 < self.prior < 1.0:
            raise InputError(f"prior must be between 0 and 1, got {self.prior}")


@dataclass(frozen=True)
class _Data:
    """Paths as int64 [*, L]; `percentile` [s] belongs to `scored`, the trained-on scored paths."""

    weak: Tensor
    good: Tensor
    scored: Tensor
    percentile: Tensor
    unlabeled: Tensor
    held_out: Tensor
    held_out_weak: npt.NDArray[np.bool_]


@dataclass
class _History:
    """Training losses, for the report."""

    values: list[float] = field(default_factory=list)

    def first(self) -> float | None:
        """The first one, or None if it is not finite."""
        return self.values[0] if math.isfinite(self.values[0]) else None

    def final(self) -> float | None:
        """Mean of the last tenth, or None if it is not finite."""
        mean = float(np.mean(self.values[-max(1, len(self.values) // 10) :]))
        return mean if math.isfinite(mean) else None


def train_filter(
    space_or_num_ops: HasOperations | Sequence[int],
    scored_paths: PathsLike,
    scored_losses: npt.ArrayLike,
    unlabeled: PathsLike,
    q: float,
    config: FilterConfig,
    seed: int,
    *,
    initial: TrainedFilter | None = None,
    device: torch.device | str = "cpu",
    poll: Callable[[], None] | None = None,
) -> TrainedFilter:
    """Train a path filter: P is the worst share q of the scored paths (Alg. 1, lines 10-11).

    The result is a pure function of the arguments on one machine.

    Args:
        space_or_num_ops: a search space, or the number of operations of each layer.
        scored_paths: uint8 [m, L], m >= 2.
        scored_losses: float [m], lower is better; a loss that is not finite counts as the worst.
        unlabeled: uint8 [u, L], uniform paths of the space, u >= 1.
        q: share of weak paths, 0 < q < 1.
        config: how to train.
        seed: 0 <= seed < 2**64; fixes weights, held-out paths and minibatches.
        initial: an earlier filter, used only with `config.warm_start`.
        device: where to train.
        poll: called before each step; what it raises ends the training.

    Returns:
        The filter; look at `.collapsed` before relying on it.

    Raises:
        InputError: for shapes that do not fit, q out of range, or if no loss is finite.
    """
    if not 0.0 < q < 1.0:
        raise InputError(f"q must be between 0 and 1, got {q}")
    net = _start(operation_counts(space_or_num_ops), config, seed, initial).to(device)
    data = _split(net, scored_paths, scored_losses, unlabeled, q, config, seed)
    prior = q if config.prior is None else config.prior
    optimizer = FilterOptimizer(net, config.lr, config.weight_decay, config.steps, config.schedule, config.average)
    history = _History()
    with _fewest_threads(config, net.embedding.device):
        for step in range(config.steps):
            if poll is not None:
                poll()
            loss = _loss(net, data, config, prior, generator(seed, Stream.BATCH, step))
            history.values.append(float(loss.detach()))
            optimizer.step(loss)
    optimizer.finish()
    net.requires_grad_(False)
    return _finish(net, data, q, config, history)


@contextmanager
def _fewest_threads(config: FilterConfig, device: torch.device) -> Iterator[None]:
    """One thread for small filters: their many small operations end sooner than threads that sleep are woken up."""
    before = torch.get_num_threads()
    if device.type == "cpu" and config.batch_size * 4 * config.hidden**2 <= _FEW_PRODUCTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(num_ops: tuple[int, ...], config: FilterConfig, seed: int, initial: TrainedFilter | None) -> PathFilter:
    """New weights, or a copy of the earlier filter's."""
    net = PathFilter(num_ops, config.hidden, seed=seed, embedding_std=config.embedding_std)
    if config.warm_start and initial is not None:
        if initial.net.num_ops != num_ops or initial.net.hidden != config.hidden:
            raise InputError("initial: the earlier filter has other layers, operations or width than the new one")
        net.load_state_dict(initial.net.state_dict())
    return net


def _split(
    net: PathFilter,
    scored_paths: PathsLike,
    scored_losses: npt.ArrayLike,
    unlabeled: PathsLike,
    q: float,
    config: FilterConfig,
    seed: int,
) -> _Data:
    """Check the inputs, label the worst share q as weak and hold out the paths that judge."""
    paths, others = net.check(scored_paths), net.check(unlabeled)
    values = np.asarray(scored_losses, dtype=np.float64)
    if values.shape != (len(paths),):
        raise InputError(f"scored_losses must hold one loss a scored path ({len(paths)}), got shape {values.shape}")
    if len(paths) < 2:
        raise InputError(f"scored_paths: at least 2 scored paths are needed, got {len(paths)}")
    if not len(others):
        raise InputError("unlabeled: at least one unlabeled path is needed, got none")
    if not np.isfinite(values).any():
        raise InputError("scored_losses: none of the losses is finite, so no path can be called weak or good")
    values = np.where(np.isfinite(values), values, np.inf)
    order = np.argsort(-values, kind="stable")  # worst first; equal losses in their given order
    num_weak = min(len(values) - 1, max(1, round(q * len(values))))
    weak, good = order[:num_weak], order[num_weak:]
    shuffle = generator(seed, Stream.HOLDOUT)
    weak, good = shuffle.permutation(weak), shuffle.permutation(good)
    keep_weak = _kept(len(weak), config.holdout)
    supervised = config.loss in ("pn", "rank")
    keep_good = _kept(len(good), config.holdout) if supervised else 0
    train = np.concatenate([weak[:keep_weak], good[:keep_good]])
    held = np.concatenate([weak[keep_weak:], good[keep_good:]])
    percentile = average_ranks(-values) / (len(values) - 1)
    return _Data(
        weak=paths[weak[:keep_weak]],
        good=paths[good[:keep_good]],
        scored=paths[train],
        percentile=torch.as_tensor(percentile[train], dtype=torch.float32, device=paths.device),
        unlabeled=others,
        held_out=paths[held],
        held_out_weak=np.arange(len(held)) < len(weak) - keep_weak,
    )


def _kept(count: int, holdout: float) -> int:
    """How many of `count` paths are trained on; at least one is, and with a positive share one may judge."""
    return max(1, count - round(holdout * count))


def _draw(paths: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Indices of `count` random rows with replacement, or of all rows if there are no more."""
    if len(paths) <= count:
        return torch.arange(len(paths), device=paths.device)
    return torch.from_numpy(rng.integers(0, len(paths), size=count)).to(paths.device)


def _loss(net: PathFilter, data: _Data, config: FilterConfig, prior: float, rng: np.random.Generator) -> Tensor:
    """Loss of one minibatch."""
    if config.loss == "rank":
        chosen = _draw(data.scored, config.batch_size, rng)
        return losses.rank(net(data.scored[chosen])[:, GOOD].exp(), data.percentile[chosen])
    tables = net.tables()
    weak = data.weak[_draw(data.weak, config.batch_size, rng)]
    if config.loss == "pn":
        good = data.good[_draw(data.good, config.batch_size, rng)]
        output = net(torch.cat([weak, good]), tables)
        return losses.pn(output[: len(weak), WEAK], output[len(weak) :, GOOD], prior)
    unlabeled = data.unlabeled[_draw(data.unlabeled, config.batch_size, rng)]
    log_weak = net(torch.cat([unlabeled, weak]), tables)[:, WEAK]
    log_weak_u, log_weak_p = log_weak[: len(unlabeled)], log_weak[len(unlabeled) :]
    if config.loss == "upu":
        return losses.upu(log_weak_u.exp(), log_weak_p.exp(), prior)
    if config.loss == "nnpu":
        return losses.nnpu(log_weak_u.exp(), log_weak_p.exp(), prior)
    loss = losses.vpu(log_weak_u, log_weak_p)
    if config.mixup_lambda == 0.0:
        return loss
    gamma = float(rng.beta(config.mixup_alpha, config.mixup_alpha))
    count = config.mixup_batch or config.batch_size
    first = torch.from_numpy(rng.integers(0, len(unlabeled), size=count)).to(weak.device)
    second = torch.from_numpy(rng.integers(0, len(weak), size=count)).to(weak.device)
    log_weak_mixed = net.forward_mixed(unlabeled[first], weak[second], gamma, tables)[:, WEAK]
    return loss + config.mixup_lambda * losses.vpu_mixup(log_weak_mixed, log_weak_u[first], gamma)


def _scorer(net: PathFilter) -> Callable[[Tensor], npt.NDArray[np.float32]]:
    """Log Phi by an engine as the one that will decide, so that the threshold is one of its values; NaN if diverged."""
    if all(bool((parameter.abs() <= MAX_WEIGHT).all()) for parameter in net.parameters()):
        return FilterEngine(net).log_prob_weak
    return lambda paths: np.full(len(paths), np.nan, dtype=np.float32)


def _finish(net: PathFilter, data: _Data, q: float, config: FilterConfig, history: _History) -> TrainedFilter:
    """Find the threshold on U, judge the filter and write the report."""
    score = _scorer(net)
    log_weak = score(data.unlabeled)
    verdict = check_collapse(
        log_weak,
        score(data.held_out),
        data.held_out_weak,
        min_spread=config.min_spread,
        auroc_margin=config.auroc_margin,
    )
    # A diverged network has no quantile; 0 is the largest log Phi, so nothing would be rejected.
    threshold = find_threshold(log_weak, q, config.threshold_rule) if np.isfinite(log_weak).all() else 0.0
    held_weak = int(data.held_out_weak.sum())
    report = FilterReport(
        loss=config.loss,
        q=q,
        steps=config.steps,
        num_scored=len(data.scored) + len(data.held_out),
        num_weak=len(data.weak),
        num_good=len(data.good),
        num_unlabeled=len(data.unlabeled),
        held_out_weak=held_weak,
        held_out_good=len(data.held_out) - held_weak,
        first_loss=history.first(),
        final_loss=history.final(),
        threshold=threshold,
        accepted_share=float(np.mean(log_weak <= np.float32(threshold))),
        spread=verdict.spread,
        auroc=verdict.auroc,
        auroc_bound=verdict.auroc_bound,
        collapsed=verdict.collapsed,
        reason=verdict.reason,
    )
    return TrainedFilter(net, threshold, report)
