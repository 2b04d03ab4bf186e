"""Algorithm 1 move by move: which paths are trained, what an update decides, when it stops, how it goes on."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_runs import (
    CONFIG,
    GO_ON,
    QUIET,
    RUN,
    SPACE,
    STEPS,
    STEPS_PER_EPOCH,
    UPDATES,
    asked,
    moves,
    newest,
    opened,
    plain,
    rows,
)

from greedynas_fast.errors import InputError
from greedynas_fast.filter import Agreement, FilterEngine, PathFilter
from greedynas_fast.runtime import CheckpointStore
from greedynas_fast.sampling import UniformSampler
from greedynas_fast.stages import algorithm1, filter_update
from greedynas_fast.stages import context as context_module
from greedynas_fast.stages import train as train_module
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.choice import load_trained
from greedynas_fast.stages.context import open_run
from greedynas_fast.stages.retrain import retrain
from greedynas_fast.stages.search import search
from greedynas_fast.stages.train import build, train
from greedynas_fast.supernet import Supernet
from greedynas_fast.supernet.scoring import score_one_at_a_time

MOVES = STEPS + UPDATES


def queue(algorithm: Algorithm1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The paths up to the next update; drawn if they are not yet."""
    algorithm.next_paths()
    drawn: np.ndarray[Any, np.dtype[np.uint8]] = algorithm.state_dict()["queue"].numpy().copy()
    return drawn


def is_allowed(paths: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any]) -> bool:
    """Whether every operation is under the mask, one by one."""
    return all(allowed[layer][op] for path in paths for layer, op in enumerate(path))


def test_warm_up_is_uniform_and_unfiltered(config: Path, here: Path) -> None:
    with opened(config, train__warmup_epochs=400, train__epochs=400) as context:
        algorithm = build(context)
        paths = queue(algorithm)
        assert len(paths) == 400 * STEPS_PER_EPOCH
        assert algorithm.trained is algorithm.acceptance is algorithm.q is None
        codes, counts = np.unique(paths @ np.array([16, 4, 1]), return_counts=True)
    assert list(codes) == list(range(64))
    expected = len(paths) / 64
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    # 63 degrees of freedom: mean 63, standard deviation 11.
    assert 25 < chi2 < 110


def test_a_gradient_that_is_not_finite_stops_the_training(config: Path, here: Path) -> None:
    with opened(config, train__grad_clip=1.0) as context:
        algorithm = build(context)
        space = algorithm.space
        images, labels = torch.randn(8, space.in_channels, 16, 16), torch.arange(8) % space.num_classes
        before = algorithm.bank.data.clone()
        hook = algorithm.net.head.register_full_backward_hook(lambda module, grads, _: (grads[0] * torch.inf,))
        with pytest.raises(InputError, match=r"a gradient is not finite at step 1 \(epoch 0, path \d+\)"):
            algorithm.train_step(images, labels)
        hook.remove()
        assert torch.equal(algorithm.bank.data, before)
        assert algorithm.step == 0
        algorithm.train_step(images, labels)
        assert not torch.equal(algorithm.bank.data, before)


@pytest.mark.parametrize("max_proposals", [1000, 1])
def test_trained_paths_are_allowed_and_pass_the_filter(config: Path, here: Path, max_proposals: int) -> None:
    log: list[str] = []
    updates = fallbacks = 0
    with opened(config, train__max_proposals=max_proposals) as context:
        algorithm = build(context)
        for update in moves(context, algorithm, log):
            if update is None:
                continue
            updates += 1
            assert not update.trained.collapsed
            if algorithm.stop_reason is not None:
                break
            paths = queue(algorithm)
            assert len(paths) == STEPS_PER_EPOCH
            assert is_allowed(paths, update.allowed)
            weak = update.trained.net.log_prob_weak(paths).numpy() > update.trained.threshold
            assert weak.sum() == algorithm.fallbacks
            fallbacks += algorithm.fallbacks
            assert algorithm.acceptance is not None
            assert 0 <= algorithm.acceptance <= 1
            assert algorithm.q == update.row["q"]
    assert updates == UPDATES
    assert len(log) == STEPS
    # One draw a path is not enough for q of 0.5 and more; a thousand are.
    assert (fallbacks > 0) == (max_proposals == 1)


@pytest.mark.parametrize("in_training", [False, True])
def test_an_update_that_is_stopped_changes_nothing(
    config: Path, here: Path, monkeypatch: pytest.MonkeyPatch, in_training: bool
) -> None:
    """While paths are scored, or while the filter is trained."""
    training = False

    def train_filter(*args: Any, **options: Any) -> Any:
        nonlocal training
        training = True
        return trains(*args, **options)

    def poll() -> None:
        if training == in_training:
            raise KeyboardInterrupt

    trains = filter_update.train_filter
    monkeypatch.setattr(filter_update, "train_filter", train_filter)
    with opened(config) as context:
        algorithm = build(context)
        steps = moves(context, algorithm, [])
        while not algorithm.update_due:
            next(steps)
        before = plain(algorithm.state_dict())
        with pytest.raises(KeyboardInterrupt):
            algorithm.update_filter(poll)
        assert training == in_training
        assert plain(algorithm.state_dict()) == before
        assert algorithm.update_filter().row["update"] == 0


def test_a_screen_lets_the_same_paths_through(config: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screens: list[bool] = []

    def engine(net: PathFilter, *, screen: bool) -> FilterEngine:
        screens.append(screen)
        return FilterEngine(net, screen=screen)

    monkeypatch.setattr(algorithm1, "FilterEngine", engine)
    with opened(config, train__sampling_screen=True) as context:
        algorithm = build(context)
        next(update for update in moves(context, algorithm, []) if update is not None)
        screened = queue(algorithm)
        assert screens == [True]
        train = dataclasses.replace(algorithm.config.train, sampling_screen=False)
        algorithm.config = dataclasses.replace(algorithm.config, train=train)
        paths, _, _ = algorithm._draw(STEPS_PER_EPOCH)
        assert screens == [True]
    np.testing.assert_array_equal(screened, paths)


def test_strict_sampling_ends_with_a_named_error(config: Path, here: Path) -> None:
    source = asked(config, train__max_proposals=1, train__strict_sampling=True)
    with pytest.raises(InputError, match=r"train\.strict_sampling: the path filter accepted .* checkpoint is run/"):
        train(RUN, source, QUIET)
    assert newest(RUN, "train")["step"] == STEPS_PER_EPOCH


def test_removed_operations_never_come_back(finished: Path) -> None:
    state = newest(finished, "train")
    trained = (finished / "paths.txt").read_text().split()
    removed: dict[tuple[int, str], int] = {}
    metrics = rows(finished / "metrics.jsonl")
    for row in metrics:
        if row["kind"] == "update":
            for merge in row["merges"]:
                assert (merge["layer"], merge["removed"]) not in removed
                removed[merge["layer"], merge["removed"]] = row["step"]
            assert row["removed_total"] == len(removed)
            assert row["allowed_total"] == 12 - len(removed)
            stored = np.load(finished / "filter" / f"update-{row['update']:03d}.npz")["allowed"]
            assert int(stored.sum()) == row["allowed_total"]
    assert 2 <= len(removed) <= 9
    assert state["allowed"].sum() == 12 - len(removed)
    names = SPACE["operations"]
    for (layer, name), step in removed.items():
        assert not state["allowed"][layer][names.index(name)]
        assert str(names.index(name)) not in {path[layer] for path in trained[step:]}
        assert name not in {row["names"][layer] for row in rows(finished / "search.jsonl")}


def test_masks_only_shrink(config: Path, here: Path) -> None:
    with opened(config) as context:
        algorithm = build(context)
        before = algorithm.allowed.copy()
        for update in moves(context, algorithm, []):
            if update is not None:
                assert not (update.allowed & ~before).any()
                assert update.allowed.any(axis=1).all()
                assert len(update.merges) == (before & ~update.allowed).sum()
                before = update.allowed.copy()


class Forbidden:
    """Stands for the test images; whoever looks at them fails."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test images were used: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test images were counted")


@pytest.fixture
def without_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split raises on any use."""
    original = context_module.open_data
    monkeypatch.setattr(
        context_module,
        "open_data",
        lambda *args, **kwargs: dataclasses.replace(original(*args, **kwargs), test=Forbidden()),
    )


@pytest.mark.usefixtures("without_test")
def test_no_decision_sees_the_test_images(config: Path, here: Path, finished: Path) -> None:
    for stage in (train, search, retrain):
        stage(RUN, asked(config), QUIET)
    assert (RUN / "retrain" / "model.safetensors").read_bytes() == (
        finished / "retrain" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("bn", ["batch", "recalibrate"])
def test_updates_score_on_validation_images(config: Path, here: Path, monkeypatch: pytest.MonkeyPatch, bn: str) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    calibrated: list[torch.Tensor] = []
    original = train_module.score_paths

    def spy(net: Any, paths: Any, images: Any, labels: Any, **options: Any) -> Any:
        seen.append((images, labels))
        calibrated.extend(options["calibration"] or [])
        return original(net, paths, images, labels, **options)

    monkeypatch.setattr(train_module, "score_paths", spy)
    with opened(config, train__score_bn=bn, train__epochs=1) as context:
        list(moves(context, build(context), []))
        validation, labels = context.data.validation.tensors()
        known = {image.numpy().tobytes() for image in validation}
        training = {image.numpy().tobytes() for image in context.data.train.tensors()[0]}
    ((images, scored_labels),) = seen
    assert {image.numpy().tobytes() for image in images} == known
    assert sorted(scored_labels.tolist()) == sorted(labels.tolist())
    assert not known & training
    assert {image.numpy().tobytes() for batch in calibrated for image in batch} <= training
    assert bool(calibrated) == (bn == "recalibrate")


@pytest.mark.parametrize(("memory", "walk"), [(0, "paths"), (3, "paths"), (3, "layers")])
def test_what_scoring_may_hold(config: Path, here: Path, memory: int, walk: str) -> None:
    """Scores are those of any other memory, in batches of the size that is asked for; other bits layer by layer."""
    options = {"train__score_memory_mb": memory, "train__score_batch_size": 20, "train__score_walk": walk}
    with opened(config, **options) as context:
        algorithm = build(context)
        paths = UniformSampler(context.space, seed=1).sample(6).paths
        found = train_module.scorer(context.config, context.data, context.device, context.world)(algorithm.net, paths)
        part = context.data.validation.subset(context.config.train.score_images, context.config.seed)
        wanted = score_one_at_a_time(algorithm.net, paths, *part.tensors(), batch_size=20)
    np.testing.assert_allclose(found, wanted.loss, rtol=0 if walk == "paths" else 1e-5)


def test_a_collapsed_filter_decides_nothing(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = asked(config, filter__min_spread=1e9, train__stop_on="agreement", train__agreement_threshold=-1)
    figures = train(RUN, source, QUIET)
    assert "learned nothing" in capsys.readouterr().err
    assert figures["updates"] == UPDATES
    assert figures["steps"] == STEPS
    assert figures["removed_operations"] == 0
    metrics = rows(RUN / "metrics.jsonl")
    for row in metrics:
        if row["kind"] == "update":
            assert row["collapsed"]
            assert row["merges"] == []
            assert row["agreement"] is row["kappa"] is None
            assert not row["stop"]
        elif row["kind"] == "step":
            assert row["acceptance"] is None
            assert row["fallbacks"] == 0
    found = search(RUN, GO_ON, QUIET)
    assert "the search rejects no path" in capsys.readouterr().err
    assert found["evaluations"] == 12


def test_the_paths_of_a_collapsed_filter_are_those_of_no_filter(config: Path, here: Path) -> None:
    drawn = []
    for run, collapse in (("a", True), ("b", False)):
        with opened(config, Path(run), filter__min_spread=1e9 if collapse else 0.01) as context:
            algorithm = build(context)
            for update in moves(context, algorithm, []):
                if update is not None:
                    break
            if not collapse:
                algorithm.trained, algorithm.allowed = None, context.space.allowed
            drawn.append(queue(algorithm))
    assert np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("stop_on", "u", "kappa", "stops"),
    [
        ("agreement", 0.95, 0.1, True),
        ("agreement", 0.9, 1.0, False),
        ("kappa", 0.99, 0.9, False),
        ("kappa", 0.5, 0.91, True),
        ("never", 1.0, 1.0, False),
    ],
)
def test_stop_rule(
    config: Path, here: Path, monkeypatch: pytest.MonkeyPatch, stop_on: str, u: float, kappa: float, stops: bool
) -> None:
    compared = []

    def fake(old: object, new: object, paths: np.ndarray[Any, Any]) -> Agreement:
        compared.append((old, new, len(paths)))
        return Agreement(u, kappa)

    monkeypatch.setattr(filter_update, "agreement", fake)
    figures = train(RUN, asked(config, train__stop_on=stop_on), QUIET)
    # The first filter has none to be compared with, so the second update is the first that can stop.
    assert figures["updates"] == (2 if stops else UPDATES)
    assert figures["steps"] == (2 * STEPS_PER_EPOCH if stops else STEPS)
    assert len(compared) == figures["updates"] - 1
    assert all(first[1] is second[0] for first, second in itertools.pairwise(compared))
    assert {count for *_, count in compared} == {64}
    assert ("steady" in figures["stop_reason"]) == stops
    assert figures["kappa"] == kappa
    again = train(RUN, GO_ON, QUIET)
    assert again == figures


def test_inactive_operations_do_not_move(config: Path, here: Path) -> None:
    with opened(config) as context:
        algorithm = build(context)
        moved = 0
        progress = moves(context, algorithm, [])
        while algorithm.step < 2 * STEPS_PER_EPOCH:
            before = plain(algorithm.state_dict())
            old = algorithm.optimizer.momentum_buffer.clone()
            (path,), step = algorithm.next_paths(), algorithm.step
            if next(progress) is not None:
                # An update trains the filter and nothing of the supernet; merged operations leave it.
                left = plain(algorithm.state_dict())["supernet"]
                gone = before["supernet"].keys() - left.keys()
                assert {(int(layer), int(op)) for _, layer, op, *_ in (name.split(".") for name in gone)} == {
                    (layer, op) for layer, op in np.argwhere(context.space.allowed & ~algorithm.allowed)
                }
                assert left == {name: value for name, value in before["supernet"].items() if name not in gone}
                continue
            assert algorithm.step == step + 1
            after = algorithm.state_dict()
            for name, value in plain(after["supernet"]).items():
                parts = name.split(".")
                if parts[0] == "layers" and path[int(parts[1])] != int(parts[2]):
                    assert value == before["supernet"][name], name
                elif name.endswith("weight"):
                    moved += value != before["supernet"][name]
            active = torch.zeros_like(algorithm.bank.data, dtype=torch.bool)
            for block in algorithm.bank.active(path):
                active[block.start : block.end] = True
            momentum = algorithm.optimizer.momentum_buffer
            assert torch.equal(momentum[~active], old[~active])
            assert not torch.equal(momentum[active], old[active])
    assert moved > 0


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """Final state and path log of a training without interruption."""
    log: list[str] = []
    with opened(config, tmp_path_factory.mktemp("whole") / "run") as context:
        algorithm = build(context)
        assert len(list(moves(context, algorithm, log))) == MOVES
        return plain(algorithm.state_dict()), log


def go_on_from(config: Path, folder: Path, k: int, **overrides: object) -> tuple[Any, list[str]]:
    """Final state and path log of a training that is saved after `k` moves and gone on with by a new one."""
    log: list[str] = []
    with opened(config, folder / "run", **overrides) as context:
        algorithm = build(context)
        progress = moves(context, algorithm, log)
        for _ in range(k):
            next(progress)
        store = CheckpointStore(folder / "checkpoints")
        store.save(algorithm.step, algorithm.state_dict())
        loaded = store.load_latest()
        assert loaded is not None
        other = build(context)
        other.load_state_dict(loaded[1])
        assert plain(other.state_dict()) == plain(algorithm.state_dict())
        assert len(list(moves(context, other, log))) == MOVES - k
        return plain(other.state_dict()), log


# Six steps make an epoch: move 6 is the last before the first update, move 7 is that update.
@pytest.mark.parametrize("k", [0, 1, 5, 6, 7, 8, 14, 20, MOVES - 1, MOVES])
def test_going_on_from_any_move(config: Path, tmp_path: Path, whole: tuple[Any, list[str]], k: int) -> None:
    state, log = go_on_from(config, tmp_path, k)
    assert log == whole[1]
    assert state == whole[0]


@pytest.mark.parametrize(
    "options",
    [
        {"filter__warm_start": True, "filter__loss": "vpu", "train__grad_clip": 0.1},
        {"train__score_bn": "recalibrate", "filter__min_spread": 1e9},
        {"train__max_proposals": 1, "filter__average": 0.9},
        {"train__ema_decay": 0.5},
    ],
    ids=["warm start", "recalibrate", "fallbacks", "average"],
)
def test_going_on_with_other_options(config: Path, tmp_path: Path, options: dict[str, object]) -> None:
    ends = []
    for k in (0, 10, 14):
        (tmp_path / str(k)).mkdir()
        ends.append(go_on_from(config, tmp_path / str(k), k, **options))
    assert ends[0] == ends[1] == ends[2]


def test_the_average_is_what_is_scored(config: Path, tmp_path: Path) -> None:
    ends = {}
    for decay in (None, 0.75):
        with opened(config, tmp_path / str(decay) / "run", train__warmup_epochs=2, train__ema_decay=decay) as context:
            algorithm = build(context)
            steps, average = moves(context, algorithm, []), algorithm.bank.data.clone()
            for _ in range(2 * STEPS_PER_EPOCH):
                active = algorithm.optimizer.blocks(algorithm.next_paths())
                next(steps)
                for start, _, end in active:
                    average[start:end].lerp_(algorithm.bank.data[start:end], 0.25)
            weights, scored = algorithm.bank.data.clone(), []
            kept = algorithm._scorer

            def score(
                net: Supernet, paths: Any, poll: Any, kept: Any = kept, algorithm: Any = algorithm, to: Any = scored
            ) -> Any:
                to.append(algorithm.bank.data.clone())
                return kept(net, paths, poll)

            algorithm._scorer = score
            assert next(steps) is not None
            ends[decay] = weights, average, scored[0]
    # The average is no part of the training.
    assert torch.equal(ends[None][0], ends[0.75][0])
    assert torch.equal(ends[None][2], ends[None][0])
    torch.testing.assert_close(ends[0.75][2], ends[0.75][1])
    assert not torch.equal(ends[0.75][2], ends[0.75][0])


def test_later_stages_take_the_average(config: Path, here: Path) -> None:
    train(RUN, asked(config, train__ema_decay=0.9), QUIET)
    state = newest(RUN, "train")
    with open_run(RUN, GO_ON, QUIET) as context:
        trained = build(context)
        trained.load_state_dict(state)
        assert not torch.equal(trained.bank.data, state["optimizer"]["ema_buffer"])
        assert torch.equal(load_trained(context).bank.data, state["optimizer"]["ema_buffer"])


def test_the_stage_is_the_algorithm(finished: Path, whole: tuple[Any, list[str]]) -> None:
    assert (finished / "paths.txt").read_text().split() == whole[1]
    state = plain(newest(finished, "train"))
    del state["window"], state["data"]  # of the loop around it
    assert state == whole[0]


def test_no_warm_up(config: Path, here: Path) -> None:
    figures = train(RUN, asked(config, train__warmup_epochs=0, train__update_every_epochs=2), QUIET)
    assert figures["updates"] == 2
    steps = [row["step"] for row in rows(RUN / "metrics.jsonl") if row["kind"] == "update"]
    assert steps == [2 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH]


def test_uniform_sampling_trains_no_filter(config: Path, here: Path) -> None:
    figures = train(RUN, asked(config, train__sampler="uniform"), QUIET)
    assert (figures["updates"], figures["steps"], figures["removed_operations"]) == (0, STEPS, 0)
    assert not (RUN / "filter").exists()
    assert search(RUN, GO_ON, QUIET)["evaluations"] == CONFIG["search"]["evaluations"]
