"""The commands that work on a run folder: `train`, `run`, `search`, `retrain`, `evaluate`, `export`, `report`."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greedynas_fast import presets
from greedynas_fast.commands import Command
from greedynas_fast.commands.parsing import given
from greedynas_fast.commands.printing import lines
from greedynas_fast.config import STAGE_SECTIONS, ConfigSource, RunConfig, resolve
from greedynas_fast.dataclass_io import field_types
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import RunFolder, open_world
from greedynas_fast.stages.context import Reporter, unfinished_run

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options

RUNS = Path("runs")

# The function of each stage: module in `greedynas_fast.stages`, name.
FUNCTIONS = {
    "train": ("train", "train"),
    "search": ("search", "search"),
    "retrain": ("retrain", "retrain"),
    "evaluate": ("evaluate", "evaluate"),
    "export": ("export", "export_run"),
    "report": ("report", "report"),
    "run": ("run", "run"),
}
# The stage with which a command that makes a run ends.
LAST_STAGE = {"train": "train", "run": "evaluate"}
ALONE = ("export", "report")  # what several processes cannot share
ALL_FIELDS = tuple(name for name in field_types(RunConfig) if name != "preset")


def _starting(stage: str) -> Command:
    """A command that makes a run folder or goes on with one."""

    def arguments(options: Options) -> None:
        add = options.parser.add_argument
        add(
            "--run",
            "--run-dir",  # torchrun takes `--run` for an abbreviation of an option of its own
            type=str,
            help="run folder, new or to go on with; none goes on with runs/<preset>-<number> or makes it",
        )
        add("--preset", type=str, help=f"one of {', '.join(presets.names())}; its values replace the defaults below")
        add("--config", type=str, help="YAML file with a part of the configuration, laid over the preset")
        add("--print_config", action="store_true", help="print the configuration that would be used, and stop")
        options.add_fields(RunConfig, ALL_FIELDS)
        options.add_shorthand("--data", "--data.root", "DIR")
        options.add_shorthand("--data-backend", "--data.backend", "NAME")

    def execute(namespace: Namespace) -> Any:
        source = _source(namespace, ALL_FIELDS)
        with open_world() as world:
            found = world.on_main(lambda: _place(stage, source, namespace))
            if isinstance(found, RunConfig):
                return found
            namespace["run"] = str(found)
            result = _call(stage, found, source, namespace)
            return result if world.is_main else None

    def resume(namespace: Namespace) -> str:
        return f"--run {shlex.quote(namespace['run'])}" if namespace.get("run") else ""

    return Command(arguments, execute, _show, resume)


def _place(stage: str, source: ConfigSource, namespace: Namespace) -> Path | RunConfig:
    """The run folder to work in, or the configuration if that was all that was asked for."""
    run = Path(namespace["run"]) if namespace.get("run") else None
    stored = RunFolder(run).read_config() if run is not None and RunFolder(run).has_config else None
    config = resolve(source, stored)
    if namespace.get("print_config"):
        return config
    if run is not None:
        return run
    run = unfinished_run(RUNS, config, LAST_STAGE[stage])
    if run is not None:
        print(f"going on with {run}, which is not finished; --run DIR begins another", file=sys.stderr)
        return run
    # Only now, so that bad input leaves no empty folder behind.
    return RunFolder.next_free(RUNS, config.preset)


def _continuing(stage: str) -> Command:
    """A command that works on an existing run folder; `retrain` of a given network may also begin one."""
    begins = stage == "retrain"
    fields = ALL_FIELDS if begins else STAGE_SECTIONS.get(stage, ())

    def arguments(options: Options) -> None:
        options.parser.add_argument("run", type=str, help="run folder, as made by `greedynas-fast train`")
        if begins:
            options.parser.add_argument("--preset", type=str, help="for a new run that retrains a given network")
        if fields:
            options.parser.add_argument("--config", type=str, help="YAML file with a part of the configuration")
            options.add_fields(RunConfig, fields)
        if begins:
            options.add_shorthand("--data", "--data.root", "DIR")
            options.add_shorthand("--data-backend", "--data.backend", "NAME")
            options.add_shorthand("--model", "--retrain.model", "NAME")
            options.add_shorthand("--recipe", "--retrain.recipe", "NAME")
        if stage == "report":
            text = "also write figures for papers (PDF, PNG) into figures/ of the run folder; needs matplotlib"
            options.parser.add_argument("--figures", action="store_true", help=text)

    def execute(namespace: Namespace) -> Any:
        asked = {"figures": True} if namespace.get("figures") else {}
        run = Path(namespace["run"])
        with open_world() as world:
            if stage in ALONE and world.size > 1:
                raise InputError(f"torchrun: {stage} is the work of one process; run it without torchrun.")
            if not begins:
                world.on_main(lambda: RunFolder.open(run).has_config)
            result = _call(stage, run, _source(namespace, fields), namespace, **asked)
            return result if world.is_main else None

    def resume(namespace: Namespace) -> str:
        return shlex.quote(namespace["run"])

    return Command(arguments, execute, _show, resume)


def _source(namespace: Namespace, fields: tuple[str, ...]) -> ConfigSource:
    file = namespace.get("config")
    return ConfigSource(namespace.get("preset"), Path(file) if file else None, given(namespace, fields))


def _call(stage: str, run: Path, source: ConfigSource, namespace: Namespace, **asked: bool) -> Any:
    module, name = FUNCTIONS[stage]
    function: Callable[..., Any] = getattr(importlib.import_module(f"greedynas_fast.stages.{module}"), name)
    reporter = Reporter(quiet=bool(namespace.get("json")), command=namespace.get("command_line"))
    return function(run, source, reporter, **asked)


def _show(result: Any) -> str:
    return result.to_yaml().rstrip() if isinstance(result, RunConfig) else lines(result)


COMMANDS = {stage: (_starting if stage in ("train", "run") else _continuing)(stage) for stage in FUNCTIONS}
