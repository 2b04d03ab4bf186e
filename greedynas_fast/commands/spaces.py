"""`spaces` and `cost`: numpy only, so they answer at once."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from greedynas_fast import spaces
from greedynas_fast.commands import Command
from greedynas_fast.commands.printing import table

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from greedynas_fast.commands.parsing import Options


def _space_arguments(options: Options) -> None:
    options.parser.add_argument(
        "name", type=str, nargs="?", help="a space or a YAML file that defines one; none lists all"
    )
    _size_arguments(options)


def _cost_arguments(options: Options) -> None:
    options.parser.add_argument("space", type=str, help="a space or a YAML file that defines one")
    options.parser.add_argument(
        "path",
        type=str,
        nargs="+",
        help="operation names separated by spaces, commas or |; or one digit or letter a layer; or @file; "
        "or a published network such as GreedyNAS-B",
    )
    _size_arguments(options)


def _size_arguments(options: Options) -> None:
    options.parser.add_argument("--resolution", type=int, help="height and width of the images in pixels")
    options.parser.add_argument("--num-classes", type=int, help="classes of the head")


def _spaces(arguments: Namespace) -> Any:
    name = arguments.get("name")
    if name is not None:
        described = spaces.get(name, **_sizes(arguments)).describe()
        return {**described, "next": f"greedynas-fast train --space.name {shlex.quote(name)}"}
    rows = []
    for known in spaces.names():
        space = spaces.get(known, **_sizes(arguments))
        rows.append(
            {
                "name": space.name,
                "num_layers": space.num_layers,
                "max_ops": space.max_ops,
                "size": space.size,
                "supernet_params": space.supernet_params(),
                "resolution": space.resolution,
                "num_classes": space.num_classes,
            }
        )
    return rows


def _show_spaces(result: Any) -> str:
    if isinstance(result, list):
        columns = ("space", "layers", "operations", "paths", "supernet parameters", "pixels", "classes")
        listed = [list({**row, "size": f"{row['size']:.2e}"}.values()) for row in result]
        return table(listed, columns) + "\n\nNext: greedynas-fast spaces NAME"
    title = (
        f"{result['name']}: {result['num_layers']} layers, {result['size']:.3e} paths, {result['resolution']} pixels, "
        f"{result['num_classes']} classes\nsupernet parameters {result['supernet_params']:,}; a path has "
        f"{result['params']['min']:,} to {result['params']['max']:,} parameters and "
        f"{result['macs']['min']:,} to {result['macs']['max']:,} MACs\n"
    )
    header = ("layer", "stage", "channels", "stride", "pixels", "operations")
    rows = [
        (
            layer["index"],
            layer["stage"],
            f"{layer['in_channels']} -> {layer['out_channels']}",
            layer["stride"],
            layer["size"],
            " ".join(layer["ops"]),
        )
        for layer in result["layers"]
    ]
    return f"{title}\n{table(rows, header)}\n\nNext: {result['next']}"


def _cost(arguments: Namespace) -> dict[str, Any]:
    space = spaces.get(arguments.space, **_sizes(arguments))
    path = space.parse(spaces.path_text(" ".join(arguments.path))[0])
    cost = space.cost(path)
    return {
        "path": space.format(path, "names"),
        "digits": space.format(path, "digits"),
        "space": space.name,
        "resolution": space.resolution,
        "num_classes": space.num_classes,
        "params": cost.params,
        "macs": cost.macs,
        "next": f"greedynas-fast retrain runs/path-1 --space.name {shlex.quote(arguments.space)} "
        f"--retrain.path {space.format(path, 'digits')}",
    }


def _show_cost(result: dict[str, Any]) -> str:
    return (
        f"{result['path']}\nparameters {result['params']:,}\nMACs       {result['macs']:,} "
        f"({result['resolution']} pixels, {result['num_classes']} classes)\n\n"
        f"Next: {result['next']}"
    )


def _sizes(arguments: Namespace) -> dict[str, Any]:
    sizes = {name: arguments.get(name) for name in ("resolution", "num_classes")}
    return {name: value for name, value in sizes.items() if value is not None}


COMMANDS = {
    "spaces": Command(_space_arguments, _spaces, _show_spaces),
    "cost": Command(_cost_arguments, _cost, _show_cost),
}
