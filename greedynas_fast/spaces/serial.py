"""Specifications as plain dictionaries and back, for checkpoints, `config.json` and fingerprints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.specs import (
    BottleneckSpec,
    HeadSpec,
    IdentitySpec,
    InvertedResidualSpec,
    LayerSpec,
    OperationSpec,
    ShuffleUnitSpec,
    SqueezeExciteSpec,
    StemSpec,
)

_KINDS: dict[str, type[OperationSpec]] = {
    "identity": IdentitySpec,
    "inverted_residual": InvertedResidualSpec,
    "shuffle_unit": ShuffleUnitSpec,
    "bottleneck": BottleneckSpec,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}

Spec = TypeVar("Spec")


def operation_to_dict(spec: OperationSpec) -> dict[str, Any]:
    """Fields of an operation and, under `kind`, which one it is."""
    fields = dataclasses.asdict(spec)
    if isinstance(spec, InvertedResidualSpec):
        fields["kernel_sizes"] = list(spec.kernel_sizes)
    return {"kind": _KIND_OF[type(spec)], **fields}


def operation_from_dict(data: Mapping[str, Any]) -> OperationSpec:
    """Inverse of `operation_to_dict`.

    Raises:
        InputError: an unknown kind, or a field that is missing, unknown or of the wrong shape.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise InputError(f"operation: expected kind to be one of {', '.join(_KINDS)}, got {kind!r}")
    if fields.get("se") is not None:
        fields["se"] = build(SqueezeExciteSpec, fields["se"])
    if "kernel_sizes" in fields:
        fields["kernel_sizes"] = tuple(fields["kernel_sizes"])
    return build(_KINDS[kind], fields)


def layer_to_dict(layer: LayerSpec) -> dict[str, Any]:
    """Fields of a layer, its operations as dictionaries."""
    return {**_shallow(layer), "ops": [operation_to_dict(spec) for spec in layer.ops]}


def layer_from_dict(data: Mapping[str, Any]) -> LayerSpec:
    """Inverse of `layer_to_dict`."""
    return build(LayerSpec, {**data, "ops": tuple(operation_from_dict(spec) for spec in data.get("ops", ()))})


def stem_to_dict(stem: StemSpec) -> dict[str, Any]:
    """Fields of a stem, its fixed blocks as dictionaries."""
    return {**_shallow(stem), "blocks": [layer_to_dict(block) for block in stem.blocks]}


def stem_from_dict(data: Mapping[str, Any]) -> StemSpec:
    """Inverse of `stem_to_dict`."""
    return build(StemSpec, {**data, "blocks": tuple(layer_from_dict(block) for block in data.get("blocks", ()))})


def head_to_dict(head: HeadSpec) -> dict[str, Any]:
    """Fields of a head."""
    return _shallow(head)


def space_parts_from_dict(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a space from what its `to_dict` made.

    Raises:
        InputError: a part is missing, unknown or of the wrong shape.
    """
    try:
        return {
            **data,
            "stem": stem_from_dict(data["stem"]),
            "layers": tuple(layer_from_dict(layer) for layer in data["layers"]),
            "head": build(HeadSpec, data["head"]),
        }
    except KeyError as error:
        raise InputError(f"space: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise InputError(f"space: expected a dictionary made by to_dict ({error})") from error


def build(cls: type[Spec], fields: Mapping[str, Any]) -> Spec:
    """Make a specification from its fields.

    Raises:
        InputError: a field is missing or unknown.
    """
    try:
        return cls(**fields)
    except TypeError as error:
        raise InputError(f"space: cannot read a {cls.__name__} ({error})") from error


def _shallow(spec: LayerSpec | StemSpec | HeadSpec) -> dict[str, Any]:
    """Fields of a record, nested records as they are."""
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
