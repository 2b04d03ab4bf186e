"""The processes of a job: what they tell one another, errors included, and what becomes of them if one dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import Failed, environment, free_port, run_ranks, successes

from greedynas_fast.errors import EchoedError, InputError
from greedynas_fast.runtime import World, open_world
from greedynas_fast.runtime.distributed import TIMEOUT_VARIABLE


def never_called() -> None:
    raise AssertionError("called on a rank other than 0")


def _talk(world: World) -> dict[str, Any]:
    called = []

    def work() -> list[int]:
        called.append(world.rank)
        return [1, 2, 3]

    world.barrier()
    return {
        "place": (world.rank, world.size, world.local_rank, world.is_main),
        "on_main": world.on_main(work),
        "called": called,
        "broadcast": world.broadcast({"rank": world.rank}),
        "gather": world.gather(f"rank {world.rank}"),
        "share": [list(range(total))[world.share(total)] for total in (0, 1, 3, 7)],
    }


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_talk(size: int) -> None:
    said = successes(run_ranks(size, _talk))
    assert [one["place"] for one in said] == [(rank, size, rank, rank == 0) for rank in range(size)]
    assert [one["called"] for one in said] == [[0], *[[]] * (size - 1)]
    for one in said:
        assert one["on_main"] == [1, 2, 3]
        assert one["broadcast"] == {"rank": 0}
        assert one["gather"] == [f"rank {rank}" for rank in range(size)]
    for index, total in enumerate((0, 1, 3, 7)):
        parts = [one["share"][index] for one in said]
        assert [item for part in parts for item in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _fail_on_main(world: World, kind: str) -> tuple[str, str, list[int]]:
    def work() -> None:
        if kind == "bad input":
            raise InputError("data: no such folder.")
        if kind == "stopped":
            raise KeyboardInterrupt
        raise ZeroDivisionError("a bug")

    try:
        world.on_main(work if world.is_main else never_called)
    except BaseException as error:
        # They are still together after it.
        return type(error).__name__, str(error), world.gather(world.rank)
    return "nothing", "", []


def test_an_error_of_rank_0_reaches_all() -> None:
    assert issubclass(EchoedError, InputError)
    assert successes(run_ranks(2, _fail_on_main, "bad input")) == [
        ("InputError", "data: no such folder.", [0, 1]),
        ("EchoedError", "data: no such folder.", [0, 1]),
    ]
    assert successes(run_ranks(2, _fail_on_main, "stopped")) == [("KeyboardInterrupt", "", [0, 1])] * 2
    assert successes(run_ranks(2, _fail_on_main, "bug")) == [
        ("ZeroDivisionError", "a bug", [0, 1]),
        ("LostRankError", "rank 0 has failed: ZeroDivisionError('a bug')", [0, 1]),
    ]


def _die(world: World, victim: int) -> None:
    world.barrier()
    if world.rank == victim:
        os._exit(1)
    world.gather(world.rank)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_fail_when_a_rank_dies(victim: int) -> None:
    results = run_ranks(3, _die, victim)
    assert results[victim] is None
    for result in results[:victim] + results[victim + 1 :]:
        assert isinstance(result, Failed)
        assert str(result).startswith("LostRankError: another process of this job has ended")


def _hang(world: World) -> list[int]:
    if world.rank == 1:
        time.sleep(5)
    return world.gather(world.rank)


def test_a_rank_that_does_not_answer_counts_as_lost() -> None:
    for result in run_ranks(2, _hang, timeout_s=1.0):
        assert isinstance(result, Failed)
        assert "LostRankError: another process of this job has ended or has not answered for 1 s" in str(result)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in environment(0, 1, 1):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone_nothing_is_asked_of_torch(clean_environment: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    for size in (None, "1"):
        if size is not None:
            clean_environment.setenv("WORLD_SIZE", size)
        with open_world() as world:
            assert world == World(0, 1, 0)
            assert not dist.is_initialized()
            assert world.on_main(lambda: 5) == 5
            value = object()
            assert world.broadcast(value) is value
            assert world.gather(value) == [value]
            assert world.share(7) == slice(0, 7)
            world.barrier()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK and MASTER_ADDR and MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got 'two'"),
        ({**environment(1, 2, 1), TIMEOUT_VARIABLE: "soon"}, "expected seconds above 0, got 'soon'"),
        ({**environment(1, 2, free_port()), TIMEOUT_VARIABLE: "1"}, "rank 1 of 2 does not find the others at 127"),
    ],
)
def test_an_environment_that_cannot_be(
    clean_environment: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        clean_environment.setenv(name, value)
    with pytest.raises(InputError, match=message), open_world():
        pass


SCRIPT = """
from greedynas_fast.runtime import World, open_world
with open_world() as world:
    assert World.current() == world
    found = world.gather((world.rank, world.local_rank))
    if world.is_main:
        print(found)
assert World.current() == World()
"""


def test_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[(0, 0), (1, 1)]\n"
