"""The processes that do one job together: who they are, and the few ways in which they talk.

`torchrun` starts them and says by the environment who is who. Objects travel over gloo, from CPU to CPU; tensors of
other rooms' own exchanges over the back end of their device (NCCL for CUDA, gloo for the CPU). Alone, nothing here
touches `torch.distributed`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from greedynas_fast.errors import EchoedError, InputError, LostRankError

T = TypeVar("T")

TIMEOUT_VARIABLE = "GREEDYNAS_RANK_TIMEOUT_S"
# The longest that one rank may work alone while the others wait: rank 0 trains a filter in minutes.
DEFAULT_TIMEOUT_S = 1800.0
# Between two looks at the store while a rank waits for rank 0: short beside a start of Python.
POLL_S = 0.02


@dataclass(frozen=True)
class World:
    """The processes of a job; made without arguments, this one alone.

    What is called a collective must be called by all ranks, in the same order. It raises `LostRankError` where a rank
    has died, or has not come within the timeout.

    Attributes:
        rank: of this process, 0 .. size - 1.
        size: number of processes.
        local_rank: of this process among those of its machine; the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which owns all files and talks to people."""
        return self.rank == 0

    @classmethod
    def current(cls) -> World:
        """The world of the `open_world` that is open, else this process alone."""
        return _open[-1] if _open else cls()

    def on_main(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 alone; a collective.

        Args:
            function: its result must be picklable.

        Returns:
            The result, on all ranks.

        Raises:
            InputError: what it raised, on all ranks: an `EchoedError` on those that only hear of it.
            KeyboardInterrupt: as well.
            LostRankError: any other error, on the ranks that only hear of it.
        """
        if self.size == 1:
            return function()
        if self.rank != 0:
            answer: tuple[T, BaseException | str | None] = self._exchange(None)
            return _result(*answer)
        try:
            result = function()
        except BaseException as error:
            self._exchange((None, error if isinstance(error, (InputError, KeyboardInterrupt)) else repr(error)))
            raise
        self._exchange((result, None))
        return result

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on all ranks; a collective. What the others give is not looked at."""
        if self.size == 1:
            return value
        received: T = self._exchange(value)
        return value if self.rank == 0 else received

    def gather(self, value: T) -> list[T]:
        """The values of all ranks in their order, on all ranks; a collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have come here; a collective."""
        self.gather(None)

    def share(self, total: int) -> slice:
        """This rank's part of `total` things: contiguous, all ranks' parts in order are the whole."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def same_error(self, message: str) -> InputError:
        """An error that all ranks raise alike: to be told by rank 0 alone."""
        return InputError(message) if self.is_main else EchoedError(message)

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank where the run's is `device`: each rank of a machine has a GPU of its own.

        Raises:
            InputError: there are fewer GPUs than ranks on this machine.
        """
        if self.size == 1 or device.type != "cuda":
            return device
        if local_size() > torch.cuda.device_count():
            raise InputError(
                f"torchrun: {local_size()} processes on a machine with {torch.cuda.device_count()} GPUs; start at most "
                "one for each, or use --device cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def _exchange(self, value: Any) -> Any:
        values = [value if self.rank == 0 else None]
        with lost_ranks():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


_open: list[World] = []


def all_reduce(tensor: Tensor) -> _Work:
    """Begin to add up a tensor over all ranks, in place; a collective.

    Args:
        tensor: contiguous, of one shape and dtype on all ranks, on the device of the run.

    Returns:
        Its `wait()` returns when the sum is there.
    """
    with lost_ranks():
        return _Work(dist.all_reduce(tensor, async_op=True))


class _Work:
    """A collective under way."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> None:
        """Wait until it is done; on a GPU, have the current stream wait."""
        with lost_ranks():
            self._work.wait()


def _result(value: T, error: BaseException | str | None) -> T:
    """What rank 0's function gave, as another rank hears of it."""
    if isinstance(error, str):
        raise LostRankError(f"rank 0 has failed: {error}")
    if isinstance(error, InputError):
        raise EchoedError(*error.args)
    if error is not None:
        raise error
    return value


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Within the context an error of a collective is a `LostRankError` that says what it means."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LostRankError(
            f"another process of this job has ended or has not answered for {_timeout_s():g} s ({reason}). "
            "Its own message tells why; the same command goes on from the last checkpoint."
        ) from error


@contextmanager
def open_world() -> Iterator[World]:
    """The world that the environment names: `torchrun`'s, or else this process alone.

    Within the context torch's default process group has gloo for CPU tensors and, where there is a GPU, NCCL for CUDA
    tensors. A rank that does not answer for 30 minutes (`GREEDYNAS_RANK_TIMEOUT_S`) counts as lost.

    Raises:
        InputError: the environment is torchrun's only in part, or the ranks do not find one another.
    """
    size, rank = _whole_number("WORLD_SIZE", 1), _whole_number("RANK", 0)
    if size <= 1:
        yield World()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} is not set. Start several processes with torchrun, or "
            "unset WORLD_SIZE."
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    timeout = timedelta(seconds=_timeout_s())
    try:
        dist.init_process_group(backend, store=_store(rank, size, timeout), rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"rank {rank} of {size} does not find the others at {place} ({error}).") from error
    try:
        _open.append(World(rank, size, _whole_number("LOCAL_RANK", 0)))
        yield _open[-1]
    finally:
        _open.pop()
        dist.destroy_process_group()


def _store(rank: int, size: int, timeout: timedelta) -> Any:
    """Where the ranks find one another.

    Note: torch's own way takes the same names again after torchrun has restarted the ranks, and a rank that reads the
    address of a dead one fails or hangs. Here each start has names of its own.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not there in every build

    host, port = os.environ["MASTER_ADDR"], _whole_number("MASTER_PORT", 0)
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has one running
    store = PrefixStore("greedynas", TCPStore(host, port, size, is_master=serves, timeout=timeout))
    return PrefixStore(agreed_name(store, rank, size, timeout), store)


def agreed_name(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """A name for this start of the ranks: the same on all of them, and never used before; a collective.

    torchrun's environment has none. The address of its store and what lies there outlive a start, and its count of
    restarts is each machine's own: one that restarts only because another did does not count. So rank 0 makes up a
    name and puts it where all look. A rank that looks too early finds the name of an earlier start; therefore it signs
    in under what it finds with a word of its own making, and takes the name only once that word is answered. Until
    then it looks for a newer name.

    No earlier start can interfere, however many ranks it had and wherever in this function they died, for torchrun
    ends all ranks of one start before it begins the next. An answer to a word was written after the word, thus by this
    start's rank 0, which answers under no name but its own. What rank 0 answers was written under a name that it has
    just made up, thus by this start's ranks. (Ranks on a machine that is out of reach may live on: at worst one takes
    another's place here, and the start fails after the timeout.)

    Args:
        store: a `torch.distributed.Store`; all keys are below `name`, but for the key `name` itself.
        rank: of this process.
        size: number of ranks.
        timeout: the longest wait for another rank.

    Raises:
        RuntimeError: a rank has not come within the timeout.
    """
    if rank == 0:
        new = uuid4().hex
        store.set("name", new)
        for other in range(1, size):
            store.set(f"{new}/answered/{store.get(f'{new}/signed/{other}').decode()}", "")
        return new
    word, signed, limit = uuid4().hex, "", time.monotonic() + timeout.total_seconds()
    while True:
        name: str = store.get("name").decode()
        if name != signed:
            store.set(f"{name}/signed/{rank}", word)
            signed = name
        if store.check([f"{name}/answered/{word}"]):
            return name
        if time.monotonic() > limit:
            raise RuntimeError(f"rank 0 has not answered for {timeout.total_seconds():g} s")
        time.sleep(POLL_S)


def local_size() -> int:
    """Processes of this job on this machine, by torchrun's environment."""
    return max(1, _whole_number("LOCAL_WORLD_SIZE", 1))


def _timeout_s() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text or DEFAULT_TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InputError(f"{TIMEOUT_VARIABLE}: expected seconds above 0, got {text!r}.")
    return seconds


def _whole_number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{variable}: expected a whole number, as torchrun sets it, got {text!r}.")
    return int(text)
