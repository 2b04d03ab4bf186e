"""Several ranks in one run: what one rank would do, whatever their number; who writes; how they stop."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks, successes
from stages_runs import (
    EVALUATIONS,
    GO_ON,
    QUIET,
    RETRAIN_STEPS,
    RUN,
    STEPS,
    STEPS_PER_EPOCH,
    UPDATES,
    asked,
    files,
    newest,
    plain,
    rows,
)

from greedynas_fast.cli import main
from greedynas_fast.config import ConfigSource
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import World
from greedynas_fast.stages import evaluate as evaluate_module
from greedynas_fast.stages import search as search_module
from greedynas_fast.stages import train as train_module
from greedynas_fast.stages.algorithm1 import Algorithm1
from greedynas_fast.stages.choice import load_trained
from greedynas_fast.stages.context import open_run
from greedynas_fast.stages.evaluate import evaluate
from greedynas_fast.stages.recipe import Recipe
from greedynas_fast.stages.retrain import retrain
from greedynas_fast.stages.search import search
from greedynas_fast.stages.train import scorer, train

Options = dict[str, Any]
Paths = np.ndarray[Any, np.dtype[np.uint8]]


def _enter(world: World, folder: Path) -> None:
    """Only rank 0 has the run folder before it: the others work in empty folders, as on other machines."""
    place = folder if world.is_main else folder.with_name(f"{folder.name}-rank{world.rank}")
    place.mkdir(exist_ok=True)
    os.chdir(place)


def _left(world: World) -> list[str]:
    """What a rank other than 0 has written where it works."""
    return [] if world.is_main else sorted(os.listdir())


def _stop_at(step: int, rank: int, world: World) -> None:
    """Have one rank get a signal in the middle of a step."""
    original = Algorithm1.train_step

    def stopped(self: Algorithm1, *args: Any, **kwargs: Any) -> Any:
        if self.step == step and world.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    Algorithm1.train_step = stopped  # type: ignore[method-assign]


def _train(world: World, folder: Path, config: Path, options: Options, stop: tuple[int, int] | None = None) -> Any:
    """`train` as one rank does it: its result, or the name of what it raised, and what it wrote if it should not."""
    _enter(world, folder)
    kept = Algorithm1.train_step
    if stop is not None:
        _stop_at(*stop, world)
    try:
        result: Any = train(RUN, asked(config, **options), QUIET)
        del result["run"], result["next"]  # on ranks other than 0 they name a folder that is thrown away
    except (InputError, KeyboardInterrupt) as error:
        result = type(error).__name__, str(error)
    finally:
        Algorithm1.train_step = kept  # type: ignore[method-assign]
    return result, _left(world)


def train_on(size: int, folder: Path, config: Path, stop: tuple[int, int] | None = None, **options: Any) -> list[Any]:
    """Train on several ranks in `folder`; what each of them returned."""
    folder.mkdir(exist_ok=True)
    found = successes(run_ranks(size, _train, folder, config, options, stop))
    assert [left for _, left in found] == [[]] * size
    return [result for result, _ in found]


def ended(size: int, rank: int) -> list[tuple[str, str]]:
    """What ranks raise of which one got SIGTERM."""
    return [("Terminated" if one == rank else "KeyboardInterrupt", "") for one in range(size)]


def path_log(folder: Path) -> list[str]:
    return (folder / RUN / "paths.txt").read_text().splitlines()


def losses(folder: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Training losses of a run with one stage."""
    found = [row["loss"] for row in rows(folder / RUN / "metrics.jsonl") if row["kind"] == "step"]
    return np.array(found)


def measured(folder: Path) -> list[list[float]]:
    """Losses of the averaged and of the raw weights on the test images, while a network was retrained."""
    found = [row for row in rows(folder / RUN / "metrics.jsonl") if row["kind"] == "eval"]
    assert len(found) == 2
    return [[row["loss"], row["raw_loss"]] for row in found]


@pytest.fixture(scope="module")
def two_ranks(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on two ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("two")
    train_on(2, folder, config)
    return folder


@pytest.fixture(scope="module")
def uniform(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of uniform paths with synchronised batch norm, by one process."""
    folder = tmp_path_factory.mktemp("uniform")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(RUN, asked(config, train__sampler="uniform", train__sync_bn=True), QUIET)
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_ranks_trains_alike(config: Path, uniform: Path, tmp_path: Path, size: int) -> None:
    # 30 images a step: 7, 8, 7 and 8 on four ranks.
    found = train_on(size, tmp_path / "run", config, train__sampler="uniform", train__sync_bn=True)
    assert found == [found[0]] * size
    assert path_log(tmp_path / "run") == path_log(uniform)
    several, alone = losses(tmp_path / "run"), losses(uniform)
    assert len(several) == len(alone) == STEPS // 3
    # Rounding grows with the steps; measured up to 3e-7 in the first three, 1e-3 in the last.
    np.testing.assert_allclose(several[:2], alone[:2], rtol=1e-5)
    np.testing.assert_allclose(several, alone, rtol=1e-2)


def test_several_ranks_run_algorithm_1(config: Path, finished: Path, two_ranks: Path) -> None:
    run, log = two_ranks / RUN, path_log(two_ranks)
    assert len(log) == STEPS
    assert log[:STEPS_PER_EPOCH] == (finished / "paths.txt").read_text().splitlines()[:STEPS_PER_EPOCH]
    kinds = [row["kind"] for row in rows(run / "metrics.jsonl")]
    assert kinds.count("update") == UPDATES
    assert kinds.count("final") == 1
    assert set(files(run)) >= {"config.yaml", "space.json", "filter/update-003.json", "filter/update-003.npz"}
    state = newest(run, "train")
    assert state["step"] == STEPS
    assert state.keys() == newest(finished, "train").keys()


def test_the_same_number_of_ranks_gives_the_same_bytes(config: Path, two_ranks: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    # A signal to either rank: all stop at the same step, and the same command goes on.
    for rank, step in ((1, 4), (0, 14)):
        assert train_on(2, again, config, (step, rank)) == ended(2, rank)
        # A signal within step 4 (from 0) is told with the next one, after which all stop.
        assert newest(again / RUN, "train")["step"] == len(path_log(again)) == step + 2
    done, echoed = train_on(2, again, config)
    assert done == echoed
    assert plain(newest(again / RUN, "train")) == plain(newest(two_ranks / RUN, "train"))
    assert path_log(again) == path_log(two_ranks)
    assert rows(again / RUN / "metrics.jsonl") == rows(two_ranks / RUN / "metrics.jsonl")
    assert {name: digest for name, digest in files(again / RUN).items() if name.startswith("filter/")} == {
        name: digest for name, digest in files(two_ranks / RUN).items() if name.startswith("filter/")
    }


def test_a_changed_number_of_ranks_goes_on(config: Path, uniform: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = {"train__sampler": "uniform", "train__sync_bn": True}
    assert train_on(2, folder, config, (4, 1), **options) == ended(2, 1)
    assert train_on(3, folder, config, (12, 2), **options) == ended(3, 2)
    os.chdir(folder)
    train(RUN, GO_ON, QUIET)
    assert path_log(folder) == path_log(uniform)
    np.testing.assert_allclose(losses(folder), losses(uniform), rtol=1e-2)


def test_fair_groups(config: Path, here: Path) -> None:
    options = {"train__sampler": "fair", "train__sync_bn": True, "train__epochs": 1, "train__ema_decay": 0.5}
    for name in ("alone", "stopped"):
        (here / name).mkdir()
    os.chdir(here / "alone")
    train(RUN, asked(config, **options), QUIET)
    done = train_on(2, here / "two", config, **options)
    assert done == [done[0]] * 2
    assert path_log(here / "two") == path_log(here / "alone")
    np.testing.assert_allclose(losses(here / "two"), losses(here / "alone"), rtol=1e-4)
    states = [newest(here / name / RUN, "train") for name in ("alone", "two")]
    for find in (lambda state: state["optimizer"]["ema_buffer"], lambda state: state["optimizer"]["momentum_buffer"]):
        alone, two = map(find, states)
        assert float((two - alone).norm() / alone.norm()) < 1e-2
    # Stopped in the second step, after which the same command goes on.
    assert train_on(2, here / "stopped", config, (1, 1), **options) == ended(2, 1)
    assert len(path_log(here / "stopped")) == 3 * 4
    train_on(2, here / "stopped", config, **options)
    assert plain(newest(here / "stopped" / RUN, "train")) == plain(states[1])
    assert path_log(here / "stopped") == path_log(here / "two")


def test_fair_groups_a_layer_at_a_time(config: Path, tmp_path: Path) -> None:
    options = {"train__sampler": "fair", "train__epochs": 1}
    found = [train_on(2, tmp_path / walk, config, **options, train__fair_walk=walk) for walk in ("paths", "layers")]
    paths, layers = (newest(tmp_path / walk / RUN, "train") for walk in ("paths", "layers"))
    assert found[0][0]["steps"] == found[1][0]["steps"] == STEPS_PER_EPOCH
    assert path_log(tmp_path / "layers") == path_log(tmp_path / "paths")
    np.testing.assert_allclose(losses(tmp_path / "layers"), losses(tmp_path / "paths"), rtol=1e-4)
    momenta = [state["optimizer"]["momentum_buffer"] for state in (paths, layers)]
    assert float((momenta[1] - momenta[0]).norm() / momenta[0].norm()) < 1e-2


def test_a_micro_batch_is_as_good_as_a_rank(config: Path, here: Path) -> None:
    options = {"train__sampler": "uniform", "train__epochs": 1, "train__warmup_epochs": 0}
    (here / "alone").mkdir()
    os.chdir(here / "alone")
    train(RUN, asked(config, **options, train__micro_batch=15), QUIET)
    train_on(2, here / "two", config, **options)
    # Batch norm sees the same 15 images; only the order of sums differs.
    np.testing.assert_allclose(losses(here / "two"), losses(here / "alone"), rtol=1e-5)
    # Uneven parts: all ranks must make equally many passes, or they would wait for each other for ever.
    train_on(4, here / "four", config, **options, train__micro_batch=7, train__sync_bn=True)
    assert len(path_log(here / "four")) == STEPS_PER_EPOCH


def _score_and_search(world: World, folder: Path, paths: Paths) -> tuple[list[float], str, Any, list[str]]:
    """Scores of some paths; how a search ends whose last rank gets a signal in its second group; the rest of it."""
    _enter(world, folder)
    with open_run(RUN, GO_ON, QUIET) as context:
        algorithm = load_trained(context)
        losses = scorer(context.config, context.data, context.device, world)(algorithm.net, paths)
    kept, calls = search_module.score_paths, 0

    def signalled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return kept(*args, **kwargs)

    search_module.score_paths = signalled
    try:
        stopped = str(search(RUN, GO_ON, QUIET))
    except KeyboardInterrupt:
        stopped = "stopped"
    finally:
        search_module.score_paths = kept
    known = len(rows(RUN / "search.jsonl")) if world.is_main else 0
    world.barrier()
    return losses.tolist(), stopped, (known, search(RUN, GO_ON, QUIET)), _left(world)


@pytest.mark.parametrize("size", [2, 3])
def test_scores_and_search_are_those_of_one_rank(trained: Path, finished: Path, size: int) -> None:
    with open_run(RUN, GO_ON, QUIET) as context:
        algorithm = load_trained(context)
        generator = np.random.default_rng(0)
        choices = [np.flatnonzero(row) for row in algorithm.allowed]
        paths = np.array([[generator.choice(ops) for ops in choices] for _ in range(7)], dtype=np.uint8)
        wanted = scorer(context.config, context.data, context.device, World())(algorithm.net, paths)
    first, *others = successes(run_ranks(size, _score_and_search, trained.resolve().parent, paths))
    assert 0 < first[2][0] < EVALUATIONS
    for losses, stopped, (_, result), left in (first, *others):
        assert losses == wanted.tolist()
        assert stopped == "stopped"
        assert result == first[2][1]
        assert left == []
    for name in ("search.jsonl", "best.json"):
        assert (RUN / name).read_bytes() == (finished / name).read_bytes()


RETRAIN = {
    "retrain__path": "012",
    "retrain__optimizer": "sgd",
    "retrain__lr": 0.05,
    "retrain__ema_decay": 0.9,
    "retrain__eval_every_epochs": 1,
}
# Seven batches of the 60 test images, of which the last is smaller.
EVALUATE = ConfigSource(overrides={"evaluate.batch_size": 9})


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("images", "top1", "top5", "loss", "path", "macs", "weights", "split")}


def _retrain(world: World, folder: Path, config: Path) -> Any:
    """Retrain with synchronised batch norm; without; and again without, with a signal to rank 1 on the way.

    Returns where that stopped, what `evaluate` finds, and what a rank has written if it should not.
    """
    kept = Recipe.step

    def signalled(self: Recipe, step: int) -> None:
        kept(self, step)
        if step == 4 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    for name, options in (("sync", {"retrain__sync_bn": True}), ("apart", {}), ("stopped", {})):
        _enter(world, folder / name)
        Recipe.step = signalled if name == "stopped" else kept  # type: ignore[method-assign]
        try:
            retrain(RUN, asked(config, **RETRAIN, **options), QUIET)
        except KeyboardInterrupt:
            assert name == "stopped"
        finally:
            Recipe.step = kept  # type: ignore[method-assign]
        assert _left(world) == []
    stopped_at = world.on_main(lambda: newest(RUN, "retrain")["step"])
    retrain(RUN, GO_ON, QUIET)
    return stopped_at, _figures(evaluate(RUN, EVALUATE, QUIET)), _left(world)


def _measured(world: World, folder: Path, config: Path) -> Any:
    """Retrain with a signal to rank 1 in the midst of the first measurement; where that stopped; go on."""
    _enter(world, folder)
    kept, calls = evaluate_module.functional.cross_entropy, 0

    def signalled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if kwargs.get("reduction") == "sum":  # what measuring asks for, training does not
            calls += 1
            if calls == 2 and world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return kept(*args, **kwargs)

    evaluate_module.functional.cross_entropy = signalled
    try:
        retrain(RUN, asked(config, **RETRAIN, evaluate__batch_size=9), QUIET)
    except KeyboardInterrupt as error:
        ended = type(error).__name__
    finally:
        evaluate_module.functional.cross_entropy = kept
    stopped_at = world.on_main(lambda: newest(RUN, "retrain")["step"])
    retrain(RUN, GO_ON, QUIET)
    return ended, calls, stopped_at, _left(world)


def test_a_signal_to_one_rank_while_the_network_is_measured(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    # Of seven batches rank 0 has three, and measures them; rank 1 has four, and stops after its second.
    found = successes(run_ranks(2, _measured, folder, config))
    assert found == [("KeyboardInterrupt", 3, RETRAIN_STEPS // 2, []), ("Terminated", 2, RETRAIN_STEPS // 2, [])]
    assert len(measured(folder)) == 2


def test_retraining(config: Path, here: Path) -> None:
    for name, options in (("whole", {}), ("parts", {"retrain__micro_batch": 20})):
        (here / name).mkdir()
        os.chdir(here / name)
        retrain(RUN, asked(config, **RETRAIN, **options), QUIET)
    folder = here / "ranks"
    folder.mkdir()
    found = successes(run_ranks(2, _retrain, folder, config))
    os.chdir(folder / "stopped")
    assert found == [(6, _figures(evaluate(RUN, EVALUATE, QUIET)), [])] * 2
    # Only the order of sums differs.
    np.testing.assert_allclose(losses(folder / "sync"), losses(here / "whole"), rtol=1e-4)
    np.testing.assert_allclose(losses(folder / "apart"), losses(here / "parts"), rtol=1e-4)
    assert np.abs(losses(folder / "sync") - losses(folder / "apart")).max() > 4e-4
    # Measured on the images of both ranks, with the running statistics of rank 0.
    np.testing.assert_allclose(measured(folder / "sync"), measured(here / "whole"), rtol=1e-4)
    assert measured(folder / "stopped") == measured(folder / "apart")
    undisturbed, gone_on = (newest(folder / name / RUN, "retrain") for name in ("apart", "stopped"))
    assert undisturbed["step"] == RETRAIN_STEPS
    assert plain(gone_on) == plain(undisturbed)


def _train_wrongly(world: World, folder: Path, config: Path, all_options: list[Options]) -> list[tuple[str, str]]:
    found = []
    for options in all_options:
        world.on_main(lambda: shutil.rmtree(folder / RUN, ignore_errors=True))
        found.append(_train(world, folder, config, options)[0])
    return found


def test_every_rank_ends_with_the_error_of_rank_0(config: Path, tmp_path: Path) -> None:
    wrong: list[tuple[Options, str]] = [
        ({"train__batch_size": 4000}, "train.batch_size: 4000 is larger"),
        ({"train__batch_size": 2}, "train.batch_size: 2 images cannot be divided over 3 processes"),
        ({"train__max_proposals": 1, "train__strict_sampling": True}, "train.strict_sampling: the path filter"),
        ({"train__lr": 1e38}, "train: the loss is nan at step"),
    ]
    (tmp_path / "run").mkdir()
    first, *others = successes(run_ranks(3, _train_wrongly, tmp_path / "run", config, [one for one, _ in wrong]))
    for index, (_, message) in enumerate(wrong):
        kind, said = first[index]
        assert kind == "InputError"
        assert said.startswith(message)
        # They know that rank 0 tells, so the user reads it once.
        assert [other[index][0] for other in others] == ["EchoedError"] * 2


def _failing(world: World, folder: Path, config: Path, rank: int, num_batches: int) -> Any:
    """`_train` where one rank cannot make more than so many batches."""
    original = train_module.to_device

    def to_device(batches: Any, device: Any) -> Any:
        yield from itertools.islice(original(batches, device), num_batches if world.rank == rank else None)
        if world.rank == rank:
            raise InputError("image file gone.png cannot be used: it cannot be read.")

    train_module.to_device = to_device
    try:
        return _train(world, folder, config, {"train__sampler": "uniform"})
    finally:
        train_module.to_device = original


@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_that_one_rank_misses(config: Path, tmp_path: Path, rank: int) -> None:
    """All save what is trained, rank 0 tells; with the file back the training ends as if nothing had been."""
    folder, steps = tmp_path / "missed", 3
    folder.mkdir()
    found = successes(run_ranks(2, _failing, folder, config, rank, steps))
    (kind, said), (other, _) = (result for result, _ in found)
    assert (kind, other) == ("InputError", "EchoedError")
    assert said == f"rank {rank} of 2: image file gone.png cannot be used: it cannot be read."
    assert newest(folder / RUN, "train")["step"] == steps
    for place in (folder, tmp_path / "undisturbed"):
        train_on(2, place, config, train__sampler="uniform")
    assert plain(newest(folder / RUN, "train")) == plain(newest(tmp_path / "undisturbed" / RUN, "train"))


def _notice(world: World, folder: Path, config: Path) -> tuple[str, str]:
    _enter(world, folder)
    said = io.StringIO()
    source = asked(config, data__max_bad_files=2)
    with contextlib.redirect_stderr(said), open_run(RUN, source, QUIET, create=True) as context:
        names = [f"Skipped: image file {name}.png cannot be used: it is empty." for name in ("both", world.rank)]
        context.data.notices.append(names[0])
        context.say_notices()
        context.data.notices.append(names[1])
        try:
            context.say_notices()
        except InputError as error:
            return said.getvalue(), f"{type(error).__name__}: {error}"
    return said.getvalue(), ""


def test_files_that_any_rank_skips_are_named_and_counted(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (said, error), (nothing, echo) = successes(run_ranks(2, _notice, folder, config))
    assert [line.split()[3] for line in said.splitlines() if line.startswith("Skipped")] == [
        "both.png",
        "0.png",
        "1.png",
    ]
    assert error == "InputError: More than data.max_bad_files = 2 files are bad, over all ranks."
    assert nothing == ""
    assert echo.startswith("EchoedError")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision(config: Path, uniform: Path, tmp_path: Path, precision: str) -> None:
    options = {"train__sampler": "uniform", "train__sync_bn": True, "train__precision": precision}
    folder = tmp_path / "run"
    train_on(2, folder, config, (8, 1), **options)
    train_on(2, folder, config, **options)
    np.testing.assert_allclose(losses(folder), losses(uniform), rtol=0.1)
    assert np.abs(losses(folder) - losses(uniform)).max() > 1e-5
    scale = newest(folder / RUN, "train")["loss_scale"]
    assert (scale is None) == (precision == "bf16")


def _command(world: World, folder: Path, words: list[str]) -> tuple[int, str, str]:
    os.environ["RANK"] = str(world.rank)
    _enter(world, folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def test_rank_0_alone_talks(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    words = ["train", "--run", str(RUN), "--config", str(config), "--json"]
    first, second = successes(run_ranks(2, _command, folder, words, opened=False))
    assert first[0] == second[0] == 0
    assert json.loads(first[1])["steps"] == STEPS
    assert "blocks: " in first[2]
    assert second[1:] == ("", "")
    words += ["--train.lr", "0.5"]
    first, second = successes(run_ranks(2, _command, folder, words, opened=False))
    assert first[0] == second[0] == 2
    assert first[2].startswith("error: train.lr is 0.1 in this run")
    assert first[1] == second[1] == second[2] == ""


@pytest.mark.slow
def test_four_ranks_reach_the_accuracy_of_one(config: Path, tmp_path: Path) -> None:
    words = ["run", "--run", str(RUN), "--config", str(config), "--json"]
    words += ["--data.train_limit", "1600", "--data.test_limit", "1000", "--train.epochs", "2"]
    words += ["--train.sync_bn", "true", "--retrain.sync_bn", "true", "--retrain.epochs", "6"]
    found = []
    for size in (1, 4):
        folder = tmp_path / f"ranks-{size}"
        folder.mkdir()
        (code, printed, said), *_ = successes(run_ranks(size, _command, folder, words, opened=False))
        assert code == 0, said
        found.append(json.loads(printed)["top1"])
    one, four = found
    assert one > 0.35, "chance is 0.1"
    assert abs(four - one) < 0.03, "a standard deviation of the test images is 0.016"
