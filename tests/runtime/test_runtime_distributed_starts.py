"""Ranks that are started again over a store that outlives them, as torchrun's does: they find one another each time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from ranks import Failed, run_ranks, successes

from greedynas_fast.runtime import World, open_world
from greedynas_fast.runtime.distributed import TIMEOUT_VARIABLE, agreed_name

PATIENT_S, IMPATIENT_S = 20.0, 0.15


class Killed(Exception):
    """Stands for SIGKILL."""


class Mortal:
    """A store whose process dies before its use number `life`."""

    def __init__(self, store: dist.TCPStore, life: int) -> None:
        self._store, self._life = store, life

    def __getattr__(self, name: str) -> Any:
        self._life -= 1
        if self._life < 0:
            raise Killed
        return getattr(self._store, name)


@pytest.fixture(scope="module")
def agent() -> dist.TCPStore:
    """The store of torchrun's agent, one for all tests: whatever one leaves lies there when the next begins."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(scope="module")
def clients(agent: dist.TCPStore) -> list[dist.TCPStore]:
    """A connection for each rank; all starts share them, for to connect may take seconds of name service."""
    return [dist.TCPStore("127.0.0.1", agent.port, timeout=timedelta(seconds=PATIENT_S)) for _ in range(4)]


def start(
    clients: list[dist.TCPStore],
    size: int,
    *,
    missing: Sequence[int] = (),
    lives: dict[int, int] | None = None,
    late: dict[int, float] | None = None,
    timeout_s: float = PATIENT_S,
) -> dict[int, str | type[BaseException]]:
    """One start of all ranks but the `missing`: what each takes for the name of it, or the error that it ends by.

    `lives`: rank to how often it uses the store before it is killed. `late`: rank to how many seconds it comes late.
    """

    def one_rank(rank: int) -> str | type[BaseException]:
        time.sleep((late or {}).get(rank, 0.0))
        try:
            return agreed_name(stores[rank], rank, size, timedelta(seconds=timeout_s))
        except (Killed, RuntimeError) as error:
            return type(error)

    ranks = [rank for rank in range(size) if rank not in missing]
    stores: dict[int, Any] = {rank: clients[rank] for rank in ranks}
    for rank in ranks:
        clients[rank].set_timeout(timedelta(seconds=timeout_s))
        if lives and rank in lives:
            stores[rank] = Mortal(clients[rank], lives[rank])
    with ThreadPoolExecutor(size) as threads:
        return dict(zip(ranks, threads.map(one_rank, ranks), strict=True))


def good_name(names: dict[int, str | type[BaseException]]) -> str:
    """The name that all agree on."""
    (name,) = set(names.values())
    assert isinstance(name, str)
    return name


def test_each_start_has_a_name_of_its_own(clients: list[dist.TCPStore]) -> None:
    # Rank 0 comes last: the others find what the start before has left, perhaps one of another size.
    names = [good_name(start(clients, size, late={0: 0.1})) for size in (3, 3, 2, 4, 1, 2, 3)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("late", [{}, {0: 0.05}, {1: 0.05}], ids=["together", "rank 0 late", "rank 1 late"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_killed_at_any_moment_leaves_nothing_that_misleads(
    clients: list[dist.TCPStore], victim: int, late: dict[int, float]
) -> None:
    seen = set()
    for life in range(6):
        broken = start(clients, 3, lives={victim: life}, late=late, timeout_s=IMPATIENT_S)
        survivors = {end for end in broken.values() if isinstance(end, str)}
        assert len(survivors) <= 1  # those that had done with it
        # The others come first, so that they find what the dead have left.
        name = good_name(start(clients, 3, late={0: 0.03}))
        assert name not in seen | survivors
        seen |= survivors | {name}


def test_starts_that_fail_in_many_ways_in_a_row(clients: list[dist.TCPStore]) -> None:
    chance = random.Random(0)
    seen: set[str] = set()
    for _ in range(12):
        for _ in range(chance.randint(1, 2)):
            size = chance.randint(2, 4)
            missing = chance.sample(range(size), chance.randint(0, size - 1))
            lives = {rank: chance.randint(0, 6) for rank in range(size) if chance.random() < 0.5}
            broken = start(clients, size, missing=missing, lives=lives, timeout_s=0.05)
            names = {end for end in broken.values() if isinstance(end, str)}
            assert not names & seen
            seen |= names
        size = chance.randint(2, 4)
        name = good_name(start(clients, size, late={rank: 0.03 * chance.random() for rank in range(size)}))
        assert name not in seen
        seen.add(name)


def _open(world: World, port: int, counts: list[int], deaths: list[int]) -> list[Any]:
    # As torchrun of several machines: one store for all starts, and on each machine a count of its own.
    os.environ.update(
        MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=str(counts[world.rank])
    )
    found = []
    for _ in range(2):  # a second one in the same process as well
        with open_world() as opened:
            found.append(opened.gather((opened.rank, opened.size)))
            if world.rank in deaths:
                os._exit(1)
            opened.barrier()
    return found


def test_machines_that_count_restarts_differently_find_one_another(agent: dist.TCPStore) -> None:
    results = run_ranks(2, _open, agent.port, [0, 0], [1], opened=False)
    assert isinstance(results[0], Failed)
    assert results[1] is None
    for counts in ([0, 1], [0, 1], [3, 0]):
        everybody = [(0, 2), (1, 2)]
        assert successes(run_ranks(2, _open, agent.port, counts, [], opened=False)) == [[everybody] * 2] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_never_come(agent: dist.TCPStore, rank: int) -> None:
    for _ in range(2):  # the second time over what the first has left
        results = run_ranks(2, _open_alone, agent.port, 1 - rank, opened=False)
        assert results[1 - rank] is None
        assert isinstance(results[rank], Failed)
        message = f"InputError: rank {rank} of 2 does not find the others at 127.0.0.1:{agent.port} ("
        assert str(results[rank]).startswith(message)


def _open_alone(world: World, port: int, missing: int) -> None:
    if world.rank == missing:
        os._exit(1)
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True", **{TIMEOUT_VARIABLE: "0.5"})
    with open_world():
        pass
