"""Several processes that do one job, as torchrun starts them, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection, wait
from typing import Any

from greedynas_fast.runtime import World, open_world
from greedynas_fast.runtime.distributed import TIMEOUT_VARIABLE

LIMIT_S = 120.0


class Failed(Exception):
    """What a rank raised, in words."""


def free_port() -> int:
    """A TCP port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        TIMEOUT_VARIABLE: "60",
    }


def run_ranks(
    size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0, opened: bool = True
) -> list[Any]:
    """Call `function(world, *args)` on each of `size` ranks.

    Args:
        size: number of ranks.
        function: of a test module, so that the processes can import it.
        *args: picklable.
        timeout_s: after which a rank that does not answer counts as lost.
        opened: whether the ranks are in touch; if not, the function opens the world itself.

    Returns:
        What each rank returned, or a `Failed` with what it raised; None for one that ended without a word.
    """
    # A server that has imported torch once, from which a rank is forked in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "greedynas_fast.stages.run"])
    # Else it would look into the folder that the tests are run in first, and find the package's source.
    os.environ["PYTHONSAFEPATH"] = "1"
    port, receivers, processes = free_port(), [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        variables = {**environment(rank, size, port), TIMEOUT_VARIABLE: str(timeout_s)}
        process = context.Process(target=_one_rank, args=(variables, sender, opened, function, args), daemon=True)
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    try:
        return _results(receivers)
    finally:
        for process in processes:
            process.kill()
            process.join()


def successes(results: list[Any]) -> list[Any]:
    """The results, all of which must be some."""
    for result in results:
        if isinstance(result, Failed):
            raise AssertionError(str(result))
    assert not any(result is None for result in results), results
    return results


def _results(receivers: list[Connection]) -> list[Any]:
    results: list[Any] = [None] * len(receivers)
    waiting = {receiver: rank for rank, receiver in enumerate(receivers)}
    while waiting:
        ready = wait(list(waiting), LIMIT_S)
        assert ready, f"ranks {sorted(waiting.values())} do not end"
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = waiting.pop(receiver)
            try:
                results[rank] = pickle.loads(receiver.recv_bytes())
            except EOFError:
                results[rank] = None
    return results


def _one_rank(
    variables: dict[str, str], sender: Connection, opened: bool, function: Callable[..., Any], args: Any
) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    try:
        with open_world() if opened else nullcontext(World(rank, size, rank)) as world:
            result = function(world, *args)
    except BaseException as error:
        result = Failed(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    # Not by `send`, which would leave tensors in the memory of a process that ends.
    sender.send_bytes(pickle.dumps(result))
