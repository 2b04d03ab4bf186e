"""The command line, `greedynas-fast COMMAND ...`: dispatch, errors and exit codes.

Exit codes:
- 0: done.
- 2: input that cannot be used, a full disk, a loss that is not finite: one or two sentences on standard error.
- 3: another process of a torchrun job has ended or does not answer.
- 130: stopped by Ctrl-C; 143: stopped by SIGTERM (pre-emption). Training and retraining have written a checkpoint, the
  search has every finished evaluation; the same command goes on.
- 1: a bug, with Python's traceback.
Standard output carries the result only; with `--json` one JSON document.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from greedynas_fast import __version__
from greedynas_fast.commands import REGISTRY, Command, load
from greedynas_fast.dataclass_io import nearest
from greedynas_fast.errors import EchoedError, InputError, LostRankError, Terminated

if TYPE_CHECKING:
    from jsonargparse import Namespace

BAD_INPUT, LOST_RANK = 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as a shell says it

# Optional packages by the name that an import fails with, and what installs them.
REMEDIES = {
    "onnx": "greedynas_fast[export]",
    "onnxscript": "greedynas_fast[export]",
    "onnxruntime": "greedynas_fast[export]",
    "matplotlib": "greedynas_fast[plot]",
    "tensorboard": "greedynas_fast[tensorboard]",
    "nvidia": "greedynas_fast[dali-cu12] or greedynas_fast[dali-cu13]",
}


def run_process() -> NoReturn:
    """The whole process of `greedynas-fast`: run the command of its arguments and leave with the exit code."""
    code = 1  # of an exception that `main` lets through

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a closed pipe or file
                stream.flush()
        os._exit(code)

    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of torch.distributed can abort a process that takes itself down, after its result is printed; torchrun
        # then restarts all ranks. What registers first runs last: everybody else's exit functions have run by then.
        atexit.register(leave)
    code = main()
    gc.freeze()  # torch leaves so many objects that the interpreter would search them for cycles for a second
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `greedynas-fast`; None takes the process's.

    Returns:
        The exit code.
    """
    # Read when torch is first imported. OpenMP threads that spin while they wait slow small operations down a
    # hundredfold where cores are shared; threads that sleep at once cost a fifth of a training step of small images.
    # Some microseconds of spinning (of GNU's runtime, which torch comes with) have nearly the best of both.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _dispatch(words)
    except EchoedError:  # rank 0 tells
        return BAD_INPUT
    except InputError as error:
        return _fail(str(error), debug)
    except LostRankError as error:
        return _fail(str(error), debug, LOST_RANK)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".", 1)[0]
        if package not in REMEDIES:
            raise
        return _fail(f"this needs the package {package}, which is missing. pip install '{REMEDIES[package]}'.", debug)
    except KeyboardInterrupt as stop:
        return _stopped(stop, "")
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; nothing is wrong, and Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}.", debug)


def _dispatch(words: list[str]) -> int:
    """Find the command, parse its arguments, run it, print its result."""
    from greedynas_fast.commands.parsing import Options

    if not words or words[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        print(f"greedynas-fast {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in REGISTRY:
        near = nearest(name, tuple(REGISTRY))
        raise InputError(
            f"unknown command {name!r}."
            + (f" Did you mean {near!r}?" if near else " `greedynas-fast --help` lists the commands.")
        )
    command = load(name)
    options = Options(name, REGISTRY[name][1])
    command.arguments(options)
    try:
        namespace = options.parse(rest)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    namespace["command_line"] = shlex.join(["greedynas-fast", *words])
    return _execute(name, command, namespace)


def _execute(name: str, command: Command, namespace: Namespace) -> int:
    as_json = bool(namespace.get("json"))
    try:
        # A library that prints must not break the one JSON document.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result: Any = command.execute(namespace)
    except KeyboardInterrupt as stop:
        resume = command.resume(namespace) if command.resume else None
        return _stopped(stop, f" Continue with: greedynas-fast {name} {resume}" if resume else "")
    if result is None:  # of a rank other than 0
        return 0
    if as_json:
        from greedynas_fast.commands.printing import to_json

        print(to_json(result), flush=True)
    else:
        print(command.show(result), flush=True)
    return 0


def _stopped(stop: KeyboardInterrupt, how_to_go_on: str) -> int:
    if os.environ.get("RANK", "0") == "0":  # which says it for all processes of a job
        print(f"Stopped.{how_to_go_on}", file=sys.stderr)
    return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def _fail(message: str, debug: bool, code: int = BAD_INPUT) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, REGISTRY))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in REGISTRY.items())
    return (
        "usage: greedynas-fast COMMAND [arguments and options]\n\n"
        "One-shot neural architecture search with a greedy path filter (GreedyNASv2).\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  -h, --help   of a command too: greedynas-fast COMMAND --help\n  --version\n\n"
        "Begin with: greedynas-fast run --preset sample"
    )
