"""`experiment`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from greedynas_fast.commands import Command
from greedynas_fast.commands.parsing import given
from greedynas_fast.dataclass_io import build, field_types, read_mapping
from greedynas_fast.experiments import table4

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options

FIELDS = tuple(field_types(table4.Table4Config))
NEXT = "greedynas-fast train --filter.loss rank"  # the loss that the table finds best


def _arguments(options: Options) -> None:
    options.parser.add_argument(
        "name", choices=("table4",), help="table4: the path filter on NAS-Bench-Macro (Sec. 5.3)"
    )
    options.add_fields(table4.Table4Config, FIELDS)


def _execute(namespace: Namespace) -> Any:
    asked = read_mapping(table4.Table4Config, given(namespace, FIELDS), "the command line")
    result = table4.run(build(table4.Table4Config, asked), lambda line: print(line, file=sys.stderr, flush=True))
    return {**result, "next": NEXT}


def _show(result: Any) -> str:
    return f"{table4.format_table(result)}\n\nNext: {result['next']}"


COMMANDS = {"experiment": Command(_arguments, _execute, _show)}
