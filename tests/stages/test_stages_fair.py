"""Strictly fair training: one update on the summed gradients of a group of paths, against plain torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_runs import CONFIG, GO_ON, QUIET, RUN, STEPS, STEPS_PER_EPOCH, asked, moves, newest, opened, plain, rows
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.nn import use_backend
from greedynas_fast.runtime import seed_for
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.search import search
from greedynas_fast.stages.train import build, train

GROUP = 4  # operations in each layer of the tiny space
BATCH = CONFIG["train"]["batch_size"]
WALKS = pytest.mark.parametrize("walk", ["paths", "layers"])


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 1, 14, 14, generator=generator), torch.arange(BATCH) % 10


def flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


class TorchTwin:
    """The same supernet as torch's own modules, optimizer and loop over the paths of a group."""

    def __init__(self, algorithm: Algorithm1) -> None:
        self.config = algorithm.config
        self.net = copy.deepcopy(algorithm.net)
        use_backend(self.net, "reference")
        for parameter in self.net.parameters():
            parameter.data, parameter.grad = parameter.data.clone(), None
        parameters = list(self.net.parameters())
        train = self.config.train
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)
        self.averages = [p.detach().clone() for p in parameters]
        self.start = flat(parameters)
        self.norms: list[float] = []

    def step(self, step: int, paths: Any, images: Tensor, labels: Tensor, lr: float) -> float:
        train = self.config.train
        self.optimizer.zero_grad()
        losses = []
        num_parts = -(-BATCH // (train.micro_batch or BATCH))
        for index, path in enumerate(paths.tolist()):
            torch.manual_seed(seed_for(self.config.seed, "dropout", GROUP * step + index))
            for some, their in zip(images.chunk(num_parts), labels.chunk(num_parts), strict=True):
                loss = functional.cross_entropy(self.net(some, path), their, label_smoothing=train.label_smoothing)
                (loss * len(their) / BATCH).backward()
                losses.append(loss.item())
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), train.grad_clip or torch.inf)
        self.norms.append(float(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if train.ema_decay is not None:
            for average, parameter in zip(self.averages, self.net.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - train.ema_decay)
        return sum(losses) / len(losses)


def test_state_of_another_sampler_is_refused(config: Path, here: Path) -> None:
    with opened(config, train__sampler="fair") as context:
        state = build(context).state_dict()
    with opened(config, Path("runs/other"), train__sampler="uniform") as context:
        algorithm = build(context)
        before = algorithm.bank.data.clone()
        with pytest.raises(InputError, match=r"train\.sampler fair, this one has uniform"):
            algorithm.load_state_dict(state)
        assert torch.equal(algorithm.bank.data, before)
        assert algorithm.step == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train__momentum": 0.0, "train__weight_decay": 0.1},
        {"train__grad_clip": 0.1, "train__ema_decay": 0.75},
        {"train__micro_batch": 15},
        {"train__fair_walk": "layers"},
        {"train__fair_walk": "layers", "train__micro_batch": 15},
    ],
    ids=["default", "plain", "clip and average", "micro-batch", "layers", "layers, micro-batch"],
)
def test_a_step_is_torchs_on_the_sum_of_the_gradients(config: Path, here: Path, options: dict[str, object]) -> None:
    with opened(config, train__sampler="fair", **options) as context:
        algorithm = build(context)
        if "train__micro_batch" in options:  # the mask of a part of a batch is another test's concern
            algorithm.net.head.dropout.p = 0.0
        twin = TorchTwin(algorithm)
        for step in range(3):
            paths, (images, labels) = algorithm.next_paths().copy(), batch(step)
            assert paths.shape == (GROUP, 3)
            result = algorithm.train_step(images, labels)
            loss = twin.step(step, paths, images, labels, algorithm.schedule.lr(step))
            assert result.loss.item() == pytest.approx(loss, rel=1e-4)
            assert result.images == BATCH
            assert not algorithm.bank.grad.any()
        if "train__grad_clip" in options:
            assert min(twin.norms) > 0.1
        # Every weight has moved as far as the twin's, to a thousandth of the way.
        moved = flat(algorithm.net.parameters()) - twin.start
        wanted = flat(twin.net.parameters()) - twin.start
        assert float((moved - wanted).norm() / wanted.norm()) < 1e-3
        assert float(wanted.norm()) > 1e-3
        if "train__fair_walk" not in options:  # else running statistics are left alone, or come in another order
            buffers = dict(twin.net.named_buffers())
            for name, buffer in algorithm.net.named_buffers():
                torch.testing.assert_close(buffer, buffers[name], rtol=1e-4, atol=1e-5)
        if "train__ema_decay" in options:
            with algorithm.optimizer.averaged():
                averaged = flat(algorithm.net.parameters()) - twin.start
            wanted = torch.cat([average.flatten() for average in twin.averages]) - twin.start
            assert float((averaged - wanted).norm() / wanted.norm()) < 1e-3


@WALKS
def test_figures_are_means_over_the_paths(config: Path, here: Path, walk: str) -> None:
    with opened(config, train__sampler="fair", train__fair_walk=walk) as context:
        algorithm, (images, labels) = build(context), batch(0)
        logits: list[Tensor] = []
        hook = algorithm.net.head.register_forward_hook(lambda module, given, out: logits.append(out.detach()))
        result = algorithm.train_step(images, labels)
        hook.remove()
    assert len(logits) == GROUP
    right = [int((one.argmax(dim=1) == labels).sum()) for one in logits]
    assert len(set(right)) > 1
    assert float(result.correct) == sum(right) / GROUP
    losses = [functional.cross_entropy(one, labels, label_smoothing=0.1).item() for one in logits]
    assert result.loss.item() == pytest.approx(sum(losses) / GROUP, rel=1e-6)


@WALKS
def test_each_path_of_a_group_has_a_dropout_of_its_own(config: Path, here: Path, walk: str) -> None:
    kept: list[Tensor] = []
    with opened(config, train__sampler="fair", train__fair_walk=walk) as context:
        algorithm = build(context)
        dropout = algorithm.net.head.dropout
        dropout.register_forward_pre_hook(lambda module, given: torch.ones_like(given[0]))
        dropout.register_forward_hook(lambda module, given, out: kept.append(out > 0))
        for step in range(2):
            algorithm.train_step(*batch(step))
    assert len(kept) == 2 * GROUP
    assert all(0.8 < float(mask.float().mean()) < 0.99 for mask in kept)
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(kept, 2))


def test_a_group_uses_each_operation_once_and_no_filter_is_trained(config: Path, here: Path) -> None:
    figures = train(RUN, asked(config, train__sampler="fair"), QUIET)
    assert (figures["updates"], figures["steps"], figures["removed_operations"]) == (0, STEPS, 0)
    assert not (RUN / "filter").exists()
    drawn = np.array([[int(op) for op in line] for line in (RUN / "paths.txt").read_text().split()])
    groups = drawn.reshape(STEPS, GROUP, 3)
    assert (np.sort(groups, axis=1) == np.arange(GROUP)[:, None]).all()
    assert len({group.tobytes() for group in groups}) == STEPS
    steps = [row for row in rows(RUN / "metrics.jsonl") if row["kind"] == "step"]
    assert len(steps) == STEPS // 3
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(row["acceptance"] is row["q"] is None for row in steps)
    assert search(RUN, GO_ON, QUIET)["evaluations"] == CONFIG["search"]["evaluations"]


def test_removed_operations_are_in_no_group(config: Path, here: Path) -> None:
    mask = np.array([[1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 0]], dtype=np.bool_)
    with opened(config, train__sampler="fair") as context:
        algorithm = build(context)
        algorithm._compact(mask)
        algorithm.allowed = mask
        assert algorithm.paths_per_step == 3
        for step in range(STEPS_PER_EPOCH + 1):
            group = algorithm.next_paths()
            for layer, allowed in enumerate(mask):
                counts = np.bincount(group[:, layer], minlength=GROUP)
                assert not counts[~allowed].any()
                assert sorted(counts[allowed]) == ([1, 2] if layer == 0 else [1, 1, 1])
            algorithm.train_step(*batch(step))
        state = algorithm.state_dict()
        other = build(context)
        other.load_state_dict(state)
        for one in (algorithm, other):
            for step in range(STEPS_PER_EPOCH):
                one.train_step(*batch(step))
        assert plain(other.state_dict()) == plain(algorithm.state_dict())


def at_head(algorithm: Algorithm1, call: int, what: Callable[[Tensor], Tensor], *, backward: bool) -> Any:
    """Let the head give (or take, in the backward pass) something else the `call`-th time."""
    calls = itertools.count(1)
    head = algorithm.net.head
    if backward:
        return head.register_full_backward_hook(lambda m, grads, _: (what(grads[0]),) if next(calls) == call else None)
    return head.register_forward_hook(lambda m, given, out: what(out) if next(calls) == call else None)


@WALKS
@pytest.mark.parametrize("call", [1, 3])
def test_a_loss_that_is_not_finite_changes_nothing(config: Path, here: Path, call: int, walk: str) -> None:
    with opened(config, train__sampler="fair", train__fair_walk=walk) as context:
        algorithm = build(context)
        before, first = algorithm.bank.data.clone(), context.space.format(algorithm.next_paths()[0], "digits")
        hook = at_head(algorithm, call, lambda out: out * torch.inf, backward=False)
        with pytest.raises(
            InputError, match=rf"loss is nan at step 1 \(epoch 0, a group of 4 paths, the first {first}"
        ):
            algorithm.train_step(*batch(0))
        hook.remove()
        assert torch.equal(algorithm.bank.data, before)
        assert not algorithm.bank.grad.any()
        assert algorithm.step == 0


@WALKS
@pytest.mark.parametrize("call", [1, GROUP])
def test_a_gradient_that_is_not_finite_skips_the_whole_group_in_fp16(
    config: Path, here: Path, call: int, walk: str
) -> None:
    options = {"train__precision": "fp16", "train__ema_decay": 0.5, "train__fair_walk": walk}
    with opened(config, train__sampler="fair", **options) as context:
        algorithm = build(context)
        algorithm.train_step(*batch(0))
        optimizer = algorithm.optimizer
        flats = (algorithm.bank.data, optimizer.momentum_buffer, optimizer.ema_buffer)
        before = [flat.clone() for flat in flats]
        scale = algorithm.state_dict()["loss_scale"]["value"]
        hook = at_head(algorithm, call, lambda grad: grad * torch.inf, backward=True)
        algorithm.train_step(*batch(1))
        hook.remove()
        assert all(torch.equal(flat, old) for flat, old in zip(flats, before, strict=True))
        assert not algorithm.bank.grad.any()
        assert algorithm.state_dict()["loss_scale"]["value"] == scale / 2
        assert algorithm.step == 2
        algorithm.train_step(*batch(2))
        assert not torch.equal(algorithm.bank.data, before[0])


@pytest.mark.parametrize(
    "options",
    [
        {"train__grad_clip": 1.0, "train__ema_decay": 0.5},
        {"train__precision": "fp16", "train__micro_batch": 15},
        {"train__precision": "bf16", "train__fair_walk": "layers"},
    ],
    ids=["clip and average", "fp16", "layers"],
)
def test_going_on_from_any_step(config: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with opened(config, tmp_path / "run", train__sampler="fair", train__epochs=2, **options) as context:
        algorithm, log = build(context), []
        states = [copy.deepcopy(algorithm.state_dict())]
        states += [copy.deepcopy(algorithm.state_dict()) for _ in moves(context, algorithm, log)]
        assert len(states) == 2 * STEPS_PER_EPOCH + 1
        for k in (0, 1, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH):
            other, rest = build(context), []
            other.load_state_dict(states[k])
            assert len(list(moves(context, other, rest))) == 2 * STEPS_PER_EPOCH - k
            assert rest == log[GROUP * k :]
            assert plain(other.state_dict()) == plain(algorithm.state_dict())


class Killed(BaseException):
    """Ends a training where it is, as SIGKILL does."""


def test_a_killed_training_ends_with_the_same_bytes(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, asked(config, train__sampler="fair"), QUIET)
    kept = Algorithm1.train_step
    for step in (2, 6, 15):  # checkpoints are at 4, 8, 12: what came after them is logged and lost

        def dying(self: Algorithm1, *args: Any, step: int = step, **kwargs: Any) -> Any:
            if self.step == step:
                raise Killed
            return kept(self, *args, **kwargs)

        monkeypatch.setattr(Algorithm1, "train_step", dying)
        with pytest.raises(Killed):
            train(killed, asked(config, train__sampler="fair"), QUIET)
        assert len((killed / "paths.txt").read_text().split()) == GROUP * step
    monkeypatch.setattr(Algorithm1, "train_step", kept)
    with pytest.raises(InputError, match=r"train\.sampler is 'fair' in this run and its stage has started"):
        train(killed, asked(config, train__sampler="uniform"), QUIET)
    train(killed, GO_ON, QUIET)
    assert (killed / "paths.txt").read_bytes() == (whole / "paths.txt").read_bytes()
    assert rows(killed / "metrics.jsonl") == rows(whole / "metrics.jsonl")
    assert plain(newest(killed, "train")) == plain(newest(whole, "train"))
