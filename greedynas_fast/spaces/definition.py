"""Search spaces that a YAML file defines; `sample.yaml` beside this file shows every common key.

    name: mine            # default: the file's name
    in_channels: 3        # default 3
    resolution: 32
    num_classes: 10
    stem: {channels: 32, kernel: 3, stride: 2, activation: relu, max_pool: false, blocks: [{op: MB1_K3, channels: 16}]}
    operations: [MB3_K3, MB6_K5_SE, ID]              # what every layer chooses among
    stages: [{channels: 24, layers: 2, stride: 2}]   # a stage may have its own `ops`
    head: {channels: 256, activation: relu, dropout: 0.1}   # channels: null for no convolution

Options of the operations, at the top level: `activation`, `se_ratio`, `shuffle_se`, `shuffle_activation`,
`res_se_reduction`; see `operations.operation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.checks import positive_int
from greedynas_fast.spaces.cost import check_shape
from greedynas_fast.spaces.operations import OperationOptions, operation
from greedynas_fast.spaces.section import Section
from greedynas_fast.spaces.space import SearchSpace
from greedynas_fast.spaces.specs import Activation, HeadSpec, LayerSpec, OperationSpec, StemSpec
from greedynas_fast.spaces.validation import MAX_LAYERS

if TYPE_CHECKING:
    from yaml import Node

_OPTION_KEYS = ("activation", "se_ratio", "shuffle_se", "shuffle_activation", "res_se_reduction")
_KEYS = ("name", "in_channels", "resolution", "num_classes", "stem", "operations", "stages", "head", *_OPTION_KEYS)
_STEM_KEYS = ("channels", "kernel", "stride", "activation", "max_pool", "blocks")
_BLOCK_KEYS = ("op", "channels", "stride")
_STAGE_KEYS = ("channels", "layers", "stride", "ops")
_HEAD_KEYS = ("channels", "activation", "dropout")
_ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def load(path: Path) -> SearchSpace:
    """Read a search space from a YAML file.

    Raises:
        InputError: naming the file, the key, what was expected and what came.
    """
    top = Section(_read(path), str(path), "", _KEYS)
    options = _options(top)
    stem = _stem(top.section("stem", _STEM_KEYS), options)
    channels = stem.blocks[-1].out_channels if stem.blocks else stem.out_channels
    layers = _layers(top, channels, options)
    head = top.section("head", _HEAD_KEYS)
    with _naming(str(path)):
        return SearchSpace(
            name=top.text("name", path.stem),
            stem=stem,
            layers=layers,
            head=HeadSpec(
                in_channels=layers[-1].out_channels,
                channels=head.optional_integer("channels"),
                activation=head.choice("activation", _ACTIVATIONS, "relu"),
                dropout=head.number("dropout", 0.0),
            ),
            in_channels=top.integer("in_channels", 3),
            num_classes=top.integer("num_classes"),
            resolution=top.integer("resolution"),
        )


def _read(path: Path) -> object:
    """Contents of a YAML file as plain values."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the space ({error})") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _refuse_repeated_keys(path, root)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply, or an alias holds itself") from error


def _refuse_repeated_keys(path: Path, node: Node) -> None:
    """A key that is given twice; YAML's reader would silently take the last."""
    import yaml

    children: list[Node] = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise InputError(f"{path}: line {key.start_mark.line + 1}: key {key.value!r} is given twice")
            seen.add(str(key.value))
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _refuse_repeated_keys(path, child)


def _options(top: Section) -> OperationOptions:
    """Options of the operations; what the file leaves out stays at its default."""
    options: OperationOptions = {}
    if top.has("activation"):
        options["activation"] = top.choice("activation", _ACTIVATIONS)
    if top.has("se_ratio"):
        options["se_ratio"] = ratio = top.number("se_ratio")
        if not 0 < ratio <= 1:
            raise top.error("se_ratio", "a number above 0 and at most 1", ratio)
    if top.has("shuffle_se"):
        options["shuffle_se"] = top.flag("shuffle_se")
    if top.has("shuffle_activation"):
        options["shuffle_activation"] = top.choice("shuffle_activation", _ACTIVATIONS)
    if top.has("res_se_reduction"):
        value = top.value("res_se_reduction")
        with _naming(top.file):
            options["res_se_reduction"] = None if value in (None, 0) else positive_int("res_se_reduction", value)
    return options


def _stem(stem: Section, options: OperationOptions) -> StemSpec:
    """The stem and its fixed blocks."""
    channels = out_channels = stem.integer("channels")
    blocks: list[LayerSpec] = []
    for block in stem.sections("blocks", _BLOCK_KEYS):
        made, stride = block.integer("channels"), block.integer("stride", 1)
        with _naming(block.where("op")):
            spec = operation(block.text("op"), **options)
            check_shape(spec, channels, made, stride)
        blocks.append(LayerSpec(-1, -1, channels, made, stride, (spec,)))
        channels = made
    return StemSpec(
        out_channels=out_channels,
        kernel_size=stem.integer("kernel", 3),
        stride=stem.integer("stride", 2),
        activation=stem.choice("activation", _ACTIVATIONS, "relu"),
        max_pool=stem.flag("max_pool", False),
        blocks=tuple(blocks),
    )


def _layers(top: Section, channels: int, options: OperationOptions) -> tuple[LayerSpec, ...]:
    """The searchable layers of all stages."""
    layers: list[LayerSpec] = []
    sections = top.sections("stages", _STAGE_KEYS)
    if not sections:
        raise top.error("stages", "a list of at least one stage", top.value("stages"))
    for stage, section in enumerate(sections):
        source, key = (section, "ops") if section.has("ops") else (top, "operations")
        ops = _operations(source, key, options)
        made, stride = section.integer("channels"), section.integer("stride", 1)
        count = section.integer("layers")
        if len(layers) + count > MAX_LAYERS:
            raise section.error("layers", f"at most {MAX_LAYERS} layers in all stages together", count)
        for position in range(count):
            step = stride if position == 0 else 1
            with _naming(source.where(key)):
                for spec in ops:
                    check_shape(spec, channels, made, step)
            layers.append(LayerSpec(len(layers), stage, channels, made, step, ops))
            channels = made
    return tuple(layers)


def _operations(section: Section, key: str, options: OperationOptions) -> tuple[OperationSpec, ...]:
    """The operations listed under a key."""
    specs: list[OperationSpec] = []
    for word in section.words(key):
        with _naming(section.where(key)):
            spec = operation(word, **options)
        if spec in specs:
            raise section.error(key, f"{spec.name} only once", section.value(key))
        specs.append(spec)
    return tuple(specs)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the file, or the file and the key, in front of an error's message."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from error
