"""The parts of the command line: one file a group of commands, parsing and printing. `cli.py` dispatches.

A command is parsed, calls one function of another room, and says how its result reads; it computes nothing itself.
Command modules are imported when their command is called, so that `spaces` and `cost` never import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options

# name: (module with COMMANDS, what the command does)
REGISTRY: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "say what is installed, compiled and found on this machine"),
    "spaces": ("spaces", "list the search spaces, or describe one"),
    "cost": ("spaces", "parameters and multiply-accumulates of one path"),
    "train": ("stages", "train a supernet greedily with a path filter (Algorithm 1); starts or continues a run"),
    "search": ("stages", "search the trained supernet for the best path"),
    "retrain": ("stages", "train the best path from scratch"),
    "evaluate": ("stages", "measure the retrained network on the test images"),
    "export": ("stages", "write the retrained network as safetensors, ONNX, ..."),
    "report": ("stages", "write the run as one HTML page"),
    "run": ("stages", "train, search, retrain, evaluate, export and report in one go"),
    "experiment": ("experiment", "repeat one of the paper's tables"),
    "bench": ("bench", "measure the compiled parts against their peers"),
}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        arguments: adds the command's arguments and options.
        execute: runs it and returns plain values, the document of `--json`; `command_line` is the whole line as typed.
        show: the same result as text for people.
        resume: the arguments that continue the command after it was stopped; None if it just starts again.
    """

    arguments: Callable[[Options], None]
    execute: Callable[[Namespace], Any]
    show: Callable[[Any], str]
    resume: Callable[[Namespace], str] | None = None


def load(name: str) -> Command:
    """The command `name` of `REGISTRY`."""
    module = importlib.import_module(f"{__name__}.{REGISTRY[name][0]}")
    commands: Mapping[str, Command] = module.COMMANDS
    return commands[name]
