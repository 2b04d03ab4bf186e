"""A trained network as two files that other programs can read, as timm lays them out: weights and `config.json`.

`config.json` holds all that is needed to build the network again: of a path the whole search space, so that a file
stays readable when a built-in space changes; of a model of timm its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import atomic_write, read_json, write_json
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.architecture import Architecture, PathNetwork, TimmModel

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1

# Keys of config.json that the caller fills in; they are null where it does not.
_FROM_CALLER = ("mean", "std", "accuracy")
# What describes a network of timm, and the type of each.
_OF_TIMM: dict[str, type] = {"library": str, "architecture": str, "num_classes": int, "input_size": list}


def save_model(
    network: nn.Module, folder: Path, *, space: SearchSpace, path: npt.ArrayLike, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes the network of a path; see `save_network`.

    Args:
        network: a network of `path`.
        folder: where to; it is made if absent.
        space: the search space.
        path: operation indices [L].
        extra: more entries of `config.json`.

    Raises:
        InputError: not a path of the space, or what `save_network` refuses.
    """
    save_network(network, folder, PathNetwork(space, space.check(path)[0]), extra)


def save_network(
    network: nn.Module, folder: Path, architecture: Architecture, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes `model.safetensors` and `config.json`, each at once or not at all.

    Args:
        network: a network of `architecture`; its state dict is written as it is, keys and dtypes kept, rows contiguous.
        folder: where to; it is made if absent.
        architecture: what to build it from.
        extra: more entries of `config.json`; `mean`, `std` (one number a channel) and `accuracy` (0 .. 1) should be
            among them. An entry that is written here anyway may not.

    Raises:
        InputError: a network of another architecture, an entry that may not be set, or a full disk.
    """
    from safetensors.torch import save

    state = network.state_dict()
    _check_state(state, architecture.build().state_dict(), "network")
    # A copy each: parameters may be views of one flat buffer, which the file format refuses.
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    weights = save(tensors, metadata={"format": "pt"})
    facts, cost = architecture.facts(), architecture.cost()
    space = {key: facts.pop(key) for key in ("space",) if key in facts}
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        **facts,
        "params": cost.params,
        "macs": cost.macs,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **space,
    }
    taken = sorted(config.keys() & (extra or {}).keys())
    if taken:
        raise InputError(f"save_model: extra may not hold {', '.join(taken)}, which the network itself decides.")
    config = {**config, **dict.fromkeys(_FROM_CALLER), **(extra or {})}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network of a folder that `save_network` wrote.

    Args:
        folder: the folder.

    Returns:
        The network on the CPU, in evaluation mode, and `config.json`.

    Raises:
        InputError: a file is missing, cut off or changed, or the two do not belong together.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    network = architecture(config, folder / CONFIG).build()
    state = _read_weights(folder / WEIGHTS, config.get("weights_sha256"))
    _check_state(state, network.state_dict(), str(folder / WEIGHTS))
    network.load_state_dict(state)
    return network.eval(), config


def architecture(config: Mapping[str, Any], file: Path) -> Architecture:
    """The network that `config.json` describes, without weights.

    Args:
        config: what stands in it.
        file: its path, for messages.

    Raises:
        InputError: it does not describe a network.
    """
    is_path = config.get("library") is None
    wanted = {"format_version": int, **({"space": dict, "path": str} if is_path else _OF_TIMM)}
    for key, kind in wanted.items():
        if not isinstance(config.get(key), kind):
            raise InputError(f"{file}: expected the key {key!r} of a saved network, got {config.get(key)!r}.")
    if config["format_version"] != FORMAT_VERSION:
        raise InputError(f"{file}: expected format_version {FORMAT_VERSION}, got {config['format_version']}.")
    try:
        return _path_network(config) if is_path else _timm_model(config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _path_network(config: Mapping[str, Any]) -> PathNetwork:
    space = SearchSpace.from_dict(config["space"])
    network = PathNetwork(space, space.parse(config["path"]))
    if config.get("num_classes") != space.num_classes:
        raise InputError(f"num_classes is {config.get('num_classes')!r}, but the space in it has {space.num_classes}.")
    return network


def _timm_model(config: Mapping[str, Any]) -> TimmModel:
    if config["library"] != "timm":
        raise InputError(f"expected a network of the library timm, got {config['library']!r}.")
    size = config["input_size"]
    if len(size) != 3 or not all(isinstance(value, int) and value > 0 for value in size) or size[1] != size[2]:
        raise InputError(f"input_size must be [channels, pixels, pixels], got {size!r}.")
    return TimmModel(config["architecture"], config["num_classes"], size[0], size[1])


def _read_weights(file: Path, digest: object) -> dict[str, Tensor]:
    """The tensors of the weight file, once its bytes are known to be those that were written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{file} ({len(content)} bytes) is not the file that {CONFIG} beside it describes: it was cut off or "
            "changed after it was written. Write both again, or copy both from one place."
        )
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise InputError(f"{file}: not a safetensors file ({error}).") from error
    return state


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Raises for the first tensor that is missing, too many, or of another shape."""
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or surplus:
        what = f"has no tensor {missing[0]!r}" if missing else f"has a tensor {surplus[0]!r} too many"
        raise InputError(f"{name}: {what}; the weights belong to another path or space.")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"{name}: tensor {key!r} should have the shape {list(value.shape)}, got {list(state[key].shape)}."
            )
