"""`bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greedynas_fast import bench
from greedynas_fast.commands import Command
from greedynas_fast.commands.printing import table

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options


def _arguments(options: Options) -> None:
    known = ", ".join(bench.MEASUREMENTS)
    options.parser.add_argument("name", type=str, nargs="*", help=f"measurements ({known}); none runs all")
    options.parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")


def _execute(namespace: Namespace) -> Any:
    result = bench.measure(namespace.get("name") or (), bool(namespace.get("quick")))
    return {**result, "next": "greedynas-fast doctor"}


def _show(result: Any) -> str:
    header = ("measurement", "provider", "threads", "paths", "p20 M/s", "p50 M/s", "p80 M/s", "x best peer")
    rows = [
        (
            row["name"],
            row["provider"],
            row["threads"],
            row["paths"],
            *(value / 1e6 for value in row["paths_per_s"].values()),
            row["ratio_to_best_peer"],
        )
        for row in result["rows"]
    ]
    return f"{table(rows, header)}\n\nNext: {result['next']}"


COMMANDS = {"bench": Command(_arguments, _execute, _show)}
