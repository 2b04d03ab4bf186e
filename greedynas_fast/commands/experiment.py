"""`experiment`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from greedynas_fast.commands import Command
from greedynas_fast.commands.parsing import given
from greedynas_fast.dataclass_io import build, field_types, read_mapping
from greedynas_fast.errors import InputError
from greedynas_fast.experiments import table3, table4

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options

FIELDS = tuple(field_types(table4.Table4Config))
NEXT = {
    "table3": "greedynas-fast retrain runs/resnet50 --preset imagenet-resnet --model resnet50 --data DIR",
    "table4": "greedynas-fast train --filter.loss rank",  # the loss that the table finds best
}


def _arguments(options: Options) -> None:
    text = (
        "table3: networks on ImageNet, costs and accuracies beside the paper's (Sec. 5.2); "
        "table4: the path filter on NAS-Bench-Macro (Sec. 5.3)"
    )
    options.parser.add_argument("name", choices=tuple(NEXT), help=text)
    options.parser.add_argument("--runs", nargs="+", type=str, metavar="DIR", help="table3: run folders to read")
    options.add_fields(table4.Table4Config, FIELDS)


def _execute(namespace: Namespace) -> Any:
    name, asked = namespace["name"], given(namespace, FIELDS)
    return {**(_table3 if name == "table3" else _table4)(namespace, asked), "next": NEXT[name]}


def _table3(namespace: Namespace, asked: dict[str, object]) -> dict[str, Any]:
    if asked:
        raise InputError(f"--{next(iter(asked))} is an option of table4, not of table3.")
    return table3.run(table3.Table3Config(tuple(namespace.get("runs") or ())))


def _table4(namespace: Namespace, asked: dict[str, object]) -> dict[str, Any]:
    if namespace.get("runs"):
        raise InputError("--runs is an option of table3, not of table4.")
    config = build(table4.Table4Config, read_mapping(table4.Table4Config, asked, "the command line"))
    return table4.run(config, lambda line: print(line, file=sys.stderr, flush=True))


def _show(result: Any) -> str:
    shown = table3 if result["experiment"] == "table3" else table4
    return f"{shown.format_table(result)}\n\nNext: {result['next']}"


COMMANDS = {"experiment": Command(_arguments, _execute, _show)}
