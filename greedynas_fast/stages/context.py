"""What every stage works with: the run folder it owns, the resolved configuration, the space, the images."""

from __future__ import annotations

import copy
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from greedynas_fast import spaces
from greedynas_fast.config import ConfigSource, RunConfig, frozen_sections, resolve
from greedynas_fast.data import DataBundle, open_data
from greedynas_fast.data.images import num_skipped
from greedynas_fast.errors import InputError
from greedynas_fast.nn import what_runs
from greedynas_fast.runtime import (
    CheckpointStore,
    LineLog,
    MetricsLog,
    Progress,
    RunFolder,
    World,
    keep_freed_memory,
    local_size,
    make_deterministic,
    profiled,
    read_json,
    read_rows,
    resolve_device,
    set_threads,
    write_json,
)
from greedynas_fast.spaces import SearchSpace


@dataclass(frozen=True)
class Reporter:
    """How a stage talks to people.

    Attributes:
        quiet: keep standard output free (progress goes to standard error).
        command: the command line as typed, which the run folder records; None records nothing.
    """

    quiet: bool = False
    command: str | None = None


class StageContext:
    """An owned run folder and what its configuration stands for.

    Attributes:
        run: the run folder, locked.
        config: the resolved configuration.
        reporter: how to talk to people.
        device: where to compute.
        world: the processes that work on this run together.
    """

    def __init__(self, run: RunFolder, config: RunConfig, reporter: Reporter, world: World | None = None) -> None:
        self.run, self.config, self.reporter = run, config, reporter
        self._said: set[str] = set()
        self.world = world or World()
        self.device = self.world.device(resolve_device(config.device))
        set_threads(max(1, config.threads // local_size()))
        if self.device.type == "cpu":
            keep_freed_memory()
        make_deterministic()

    @cached_property
    def space(self) -> SearchSpace:
        """The search space: `space.json` of the run, written the first time from configuration and data."""
        stored = self._stored_space()
        if stored is not None:
            return stored
        space = _space_for(self.config, self.data)
        write_json(self.run.space, space.to_dict())
        return space

    @cached_property
    def data(self) -> DataBundle:
        """The images, at the resolution and with the channels of the space."""
        # The stored space first: a YAML file that defined it may have changed or gone since.
        space = self._stored_space() or _named_space(self.config)
        return self._open_data(space, space.resolution)

    def data_at(self, resolution: int) -> DataBundle:
        """The images at another resolution than the space's."""
        if resolution == self.space.resolution:
            return self.data
        return self._open_data(self.space, resolution)

    def _open_data(self, space: SearchSpace, resolution: int) -> DataBundle:
        return open_data(
            self.config.data,
            resolution=resolution,
            in_channels=space.in_channels,
            seed=self.config.seed,
            gpu=self.device.index or 0 if self.device.type == "cuda" else None,
        )

    def solo(self) -> StageContext:
        """The same run for this process alone: what it then does asks no other rank."""
        alone = copy.copy(self)
        alone.world = World()
        return alone

    def _stored_space(self) -> SearchSpace | None:
        return SearchSpace.from_dict(read_json(self.run.space)) if self.run.space.is_file() else None

    def progress(self, description: str, total: int, *, start: int = 0, unit_size: int | None = None) -> Progress:
        """A display of how far a stage is."""
        stream = None if self.world.is_main else _nowhere()
        return Progress(description, total, start=start, unit_size=unit_size, quiet=self.reporter.quiet, stream=stream)

    def metrics(self) -> MetricsLog:
        """The run's metrics, also for tensorboard."""
        events = self.run.events if self.world.is_main else None
        return MetricsLog(self.run.metrics, events, notify=self._say_once)

    def profile(self, stage: str, progress: Progress) -> AbstractContextManager[Callable[[], None]]:
        """The profile of the stage's steps that the configuration asks for; see `profiled`."""
        steps = self.config.profile if self.world.is_main else 0
        return profiled(self.run.profile(stage), steps, progress.message, cuda=self.device.type == "cuda")

    def command(self, stage: str, options: str = "") -> str:
        """The command line that works on this run folder; `train` and `run` take it as an option."""
        folder = shlex.quote(str(self.run.path))
        place = f"--run {folder}" if stage in ("train", "run") else folder
        return f"greedynas-fast {stage} {place}{options}"

    def model_facts(self, source: str) -> dict[str, Any]:
        """What a user of a model file has to know besides the network: where from, how images are normalised."""
        data = self.data
        return {
            "source": source,
            "mean": list(data.mean),
            "std": list(data.std),
            "class_names": list(data.class_names),
        }

    def load_checkpoint(self, stage: str, progress: Progress | None = None) -> dict[str, Any] | None:
        """The newest whole checkpoint of a stage, if any; damaged ones are passed over and said to be.

        Rank 0 reads it, the others get it from there.

        Raises:
            InputError: all checkpoints are damaged, or they belong to another search space.
        """
        return self.world.on_main(lambda: self._read_checkpoint(stage, progress))

    def _read_checkpoint(self, stage: str, progress: Progress | None) -> dict[str, Any] | None:
        store = CheckpointStore(self.run.checkpoints(stage))
        found = store.load_latest()
        for notice in store.notices:
            self.say(notice, progress)
        if found is None:
            return None
        step, state = found
        if state.get("space") != self.space.fingerprint():
            raise InputError(
                f"checkpoint {store.path(step)} is of another search space than this run's ({self.space.name}); "
                "it is left as it is."
            )
        return state

    def final_row(self, stage: str, step: int, summary: dict[str, Any]) -> None:
        """Log the end of a stage, once however often its command is given."""
        with self.metrics() as metrics:
            if not any(row["stage"] == stage and row["kind"] == "final" for row in metrics.read()):
                metrics.append({"stage": stage, "kind": "final", "step": step, **summary})

    def _say_once(self, text: str, progress: Progress | None = None) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text, progress)

    def say_notices(self, progress: Progress | None = None, data: DataBundle | None = None) -> None:
        """Show what has turned out on any rank about the data, e.g. files that are skipped; a collective.

        Args:
            progress: the display in use.
            data: which data; None for those at the space's resolution.

        Raises:
            InputError: the ranks together have skipped more files than `data.max_bad_files`.
        """
        notices = dict.fromkeys(chain.from_iterable(self.world.gather(list((data or self.data).notices))))
        for notice in notices:
            self._say_once(notice, progress)
        limit = self.config.data.max_bad_files
        if num_skipped(notices) > limit:
            raise self.world.same_error(f"More than data.max_bad_files = {limit} files are bad, over all ranks.")

    def say_backend(self, progress: Progress | None = None, data: DataBundle | None = None) -> None:
        """Show what reads the images."""
        self._say_once((data or self.data).backend, progress)

    def say_layers(self, progress: Progress | None = None) -> None:
        """Show what the blocks of networks run as here."""
        self._say_once(f"blocks: {what_runs(self.config.backend, self.device)}", progress)

    def say(self, text: str, progress: Progress | None = None) -> None:
        """Show one sentence."""
        if progress is None:
            with self.progress("", 1) as display:
                display.message(text)
        else:
            progress.message(text)


@contextmanager
def open_run(
    path: Path, source: ConfigSource, reporter: Reporter, *, create: bool = False, keep: bool = True
) -> Iterator[StageContext]:
    """Own a run folder for the time of a stage, with its configuration resolved, checked and stored.

    Of several processes rank 0 owns it. Each other one works in a scratch folder of its own that is thrown away, with
    the same configuration and space: they need not see rank 0's disk.

    Args:
        path: the run folder.
        source: what the command line asked for.
        reporter: how to talk to people.
        create: make the folder if there is none, or none yet in use.
        keep: what the command line asked for becomes part of the run. Options of a stage that then ends with an
            `InputError` before it has begun do not stay, so that the command works again without them.

    Raises:
        InputError: no such run, in use by another process, read-only, or a configuration that cannot be.
    """
    world = World.current()
    with ExitStack() as stack:
        opened: list[tuple[RunFolder, RunConfig]] = []

        def enter() -> tuple[dict[str, Any], Any]:
            run, config = stack.enter_context(_owned_run(path, source, reporter, create=create, keep=keep))
            opened.append((run, config))
            return config.to_dict(), read_json(run.space) if run.space.is_file() else None

        plain = world.on_main(enter)
        run, config = opened[0] if opened else stack.enter_context(_scratch_run(*plain))
        yield StageContext(run, config, reporter, world)


@contextmanager
def _owned_run(
    path: Path, source: ConfigSource, reporter: Reporter, *, create: bool, keep: bool
) -> Iterator[tuple[RunFolder, RunConfig]]:
    """What `open_run` does for the process that owns the folder."""
    folder = RunFolder.create(path) if create else RunFolder.open(path)
    with folder as run:
        stored = run.read_config() if run.has_config else None
        config = resolve(source, stored, frozen_sections(_started(run)))
        changed = stored is None or (keep and config.to_dict() != stored)
        if changed:
            run.write_config(config.to_dict())
        if reporter.command is not None:
            _record_command(run, reporter.command)
        try:
            yield run, config
        except InputError:
            if stored is not None and changed:
                begun = frozen_sections(_started(run))
                run.write_config({**config.to_dict(), **{k: v for k, v in stored.items() if k not in begun}})
            raise


@contextmanager
def _scratch_run(config: dict[str, Any], space: Any) -> Iterator[tuple[RunFolder, RunConfig]]:
    """A run folder for a process that is not to write, with what the real one begins with."""
    with tempfile.TemporaryDirectory(prefix="greedynas-rank-") as place, RunFolder.create(place) as run:
        run.write_config(config)
        if space is not None:
            write_json(run.space, space)
        yield run, resolve(ConfigSource(), config)


def unfinished_run(parent: Path, config: RunConfig, last_stage: str) -> Path | None:
    """The newest run of this preset if the same command began it and was stopped before its end.

    Args:
        parent: the folder of runs.
        config: what the command asks for.
        last_stage: the stage whose final row of metrics ends the command.

    Returns:
        The folder, or None if the newest run is finished, in use, or of another configuration.
    """
    newest = RunFolder.newest(parent, config.preset)
    if newest is None or not newest.has_config:
        return None
    try:
        with newest as run:
            same = resolve(ConfigSource(), run.read_config()) == config
            rows = read_rows(run.metrics)
    except InputError:  # in use, or not readable: begin another one
        return None
    finished = any(row.get("stage") == last_stage and row.get("kind") == "final" for row in rows)
    return newest.path if same and not finished else None


def _started(run: RunFolder) -> list[str]:
    """Stages whose results already depend on their part of the configuration."""
    marks = {
        "train": (run.checkpoints("train"), run.space),
        "search": (run.search,),
        "retrain": (run.checkpoints("retrain"),),
    }
    return [stage for stage, places in marks.items() if any(_has_content(place) for place in places)]


@cache
def _nowhere() -> TextIO:
    """Where ranks that are not to be heard write; opened once, for the life of the process."""
    return open(os.devnull, "w")


def _has_content(place: Path) -> bool:
    if place.is_dir():
        return any(place.iterdir())
    return place.is_file() and place.stat().st_size > 0


def _record_command(run: RunFolder, command: str) -> None:
    """Add to `commands.txt`; continuing with the same words adds nothing."""
    with LineLog(run.path / "commands.txt") as log:
        lines = log.read()
        if not lines or lines[-1] != command:
            log.append([command])


def _named_space(config: RunConfig, **sizes: int) -> SearchSpace:
    wanted = config.space
    return spaces.get(
        wanted.name,
        num_classes=sizes.get("num_classes", wanted.num_classes),
        resolution=wanted.resolution,
        in_channels=wanted.in_channels,
        shuffle_se=wanted.shuffle_se,
        shuffle_activation=wanted.shuffle_activation,
        res_se_reduction=wanted.res_se_reduction,
    )


def _space_for(config: RunConfig, data: DataBundle) -> SearchSpace:
    """The configured space with a head for the data's classes.

    Raises:
        InputError: the data has more classes than the head was asked to have.
    """
    asked = config.space.num_classes
    if asked is not None and asked < data.num_classes:
        raise InputError(
            f"space.num_classes: the head has {asked} classes, the images have {data.num_classes}; "
            "leave it out to take the number of the data."
        )
    return _named_space(config, num_classes=asked or data.num_classes)
