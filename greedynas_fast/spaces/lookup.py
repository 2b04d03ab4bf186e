"""Spaces by name or file, with the options that change them."""

from __future__ import annotations

import dataclasses
import os.path
from pathlib import Path
from typing import Any, Literal

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.catalogue import CATALOGUE
from greedynas_fast.spaces.checks import suggestion
from greedynas_fast.spaces.definition import load
from greedynas_fast.spaces.operations import OperationOptions
from greedynas_fast.spaces.space import SearchSpace

# Spaces that ship as a YAML file in this folder and go through the same code as a user's file.
SHIPPED = {"sample": Path(__file__).parent / "sample.yaml"}
_DEFAULTS: OperationOptions = {"shuffle_se": False, "shuffle_activation": "relu", "res_se_reduction": 8}


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return (*CATALOGUE, *SHIPPED)


def get(
    name_or_yaml: str,
    *,
    num_classes: int | None = None,
    resolution: int | None = None,
    in_channels: int | None = None,
    shuffle_se: bool = False,
    shuffle_activation: Literal["relu", "hard_swish"] = "relu",
    res_se_reduction: int | None = 8,
) -> SearchSpace:
    """A search space by name, or from a YAML file that defines one.

    Args:
        name_or_yaml: one of `names()` in any case, or the path of a YAML file.
        num_classes: outputs of the classifier; None: the space's own.
        resolution: pixels a side of the images; None: the space's own.
        in_channels: channels of the images; None: the space's own.
        shuffle_se: whether Shuffle units have squeeze-and-excitation (`mb-se-mix-shuffle`).
        shuffle_activation: of Shuffle units (`mb-se-mix-shuffle`).
        res_se_reduction: of the squeeze-and-excitation on bottlenecks, None or 0 for none (`res50-se`).

    Raises:
        InputError: no such space, a file that does not define one, or an option that is wrong or changes nothing there.
    """
    if shuffle_activation not in ("relu", "hard_swish"):
        raise InputError(f"shuffle_activation: expected 'relu' or 'hard_swish', got {shuffle_activation!r}")
    options: OperationOptions = {
        "shuffle_se": shuffle_se,
        "shuffle_activation": shuffle_activation,
        "res_se_reduction": res_se_reduction,
    }
    space = _find(str(name_or_yaml), options)
    sizes: dict[str, Any] = {"num_classes": num_classes, "resolution": resolution, "in_channels": in_channels}
    changed = {key: value for key, value in sizes.items() if value is not None}
    return dataclasses.replace(space, **changed) if changed else space


def _find(name: str, options: OperationOptions) -> SearchSpace:
    """The space with its own sizes."""
    key = name.lower()
    if key in CATALOGUE:
        builder, operations, useful = CATALOGUE[key]
        _refuse_useless(key, options, useful)
        return builder(key, operations, options)
    if key in SHIPPED:
        _refuse_useless(key, options, ())
        return load(SHIPPED[key])
    path = Path(name)
    # os.path.isfile, unlike Path.is_file, is False for what cannot be a path at all.
    if path.suffix.lower() in (".yaml", ".yml") or os.path.isfile(name):
        _refuse_useless(name, options, ())
        space = load(path)
        if space.name.lower() in names() and space != get(space.name):
            raise InputError(f"{name}: name: {space.name!r} is a built-in space, choose another name")
        return space
    raise InputError(f"unknown space {name!r}; {suggestion(name, names())} (a file that defines one ends in .yaml)")


def _refuse_useless(name: str, options: OperationOptions, useful: tuple[str, ...]) -> None:
    """An option that would silently change nothing is a mistake."""
    defaults: dict[str, object] = dict(_DEFAULTS)
    for key, value in options.items():
        if key not in useful and value != defaults[key]:
            hint = " (a YAML file sets it under the same name)" if name not in CATALOGUE else ""
            raise InputError(f"{key}: has no meaning for the space {name}{hint}")
