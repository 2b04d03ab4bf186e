"""`bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from greedynas_fast import bench
from greedynas_fast.commands import Command
from greedynas_fast.commands.printing import table

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options

BUSY = 0.1  # spread of the calibration loop above which single figures say little


def _arguments(options: Options) -> None:
    known = "; ".join(f"{name}: {what}" for name, what in bench.MEASUREMENTS.items())
    options.parser.add_argument("name", type=str, nargs="*", help=f"measurements ({known}); none runs all")
    options.parser.add_argument(
        "--quick", action="store_true", help="fewer sizes and repetitions, and no torch.compile"
    )


def _execute(namespace: Namespace) -> Any:
    result = bench.measure(namespace.get("name") or (), bool(namespace.get("quick")))
    return {**result, "next": "greedynas-fast doctor"}


def _show(result: Any) -> str:
    names = dict.fromkeys(row["name"].split(".")[0] for row in result["rows"])
    parts = [_table([row for row in result["rows"] if row["name"].split(".")[0] == name]) for name in names]
    machine, calibration = result["machine"], result["calibration"]
    busy = " The machine was busy: trust the ratios only." if calibration["spread"] > BUSY else ""
    parts.append(
        f"{machine['cpu']}, {machine['threads']} threads, CPU level {machine['isa']} (torch: {machine['torch_isa']}), "
        f"torch {machine['torch']}, numpy {machine['numpy']}.\n"
        f"Calibration loop: {calibration['before_ms']['p50']:.1f} ms before, {calibration['after_ms']['p50']:.1f} ms "
        f"after, spread {calibration['spread']:.0%}.{busy}"
    )
    return "\n\n".join([*parts, f"Next: {result['next']}"])


def _table(rows: Sequence[Any]) -> str:
    """The rows of one measurement; columns that are empty in all of them are left out."""
    done = [row for row in rows if row["skipped"] is None]
    columns = {name: [_cell(row, name) for row in done] for name in _COLUMNS}
    used = [name for name, cells in columns.items() if any(cell not in (None, "") for cell in cells)]
    text = table(list(zip(*(columns[name] for name in used), strict=True)), used)
    skipped = [f"{row['provider']} ({row['threads']}): skipped, {row['skipped']}." for row in rows if row["skipped"]]
    return "\n".join([text, *skipped])


_COLUMNS: dict[str, str | tuple[str, str]] = {
    "measurement": "name",
    "provider": "provider",
    "isa": "isa",
    "threads": "threads",
    "paths": "paths",
    "p20 k/s": ("paths_per_s", "p20"),
    "p50 k/s": ("paths_per_s", "p50"),
    "p80 k/s": ("paths_per_s", "p80"),
    "accepted/s": ("accepted_per_s", "p50"),
    "p50 ms": ("ms", "p50"),
    "GB/s": "gb_per_s",
    "of copy": "share_of_copy",
    "x peer": "ratio_to_best_peer",
    "peer": "peer",
    "x literal": "ratio_to_literal",
    "max error": "max_error",
    "same decision": "decision_agreement",
    "overlap": "accepted_overlap",
    "compared": "compared_paths",
    "data wait": "data_wait",
    "note": "note",
}


def _cell(row: Any, column: str) -> Any:
    key = _COLUMNS[column]
    if isinstance(key, str):
        return row.get(key)
    value = (row.get(key[0]) or {}).get(key[1])
    return value if value is None or not column.endswith("k/s") else value / 1e3


COMMANDS = {"bench": Command(_arguments, _execute, _show)}
