"""Spaces by name and from YAML, operation names, options, validation, plain dictionaries."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace, operation
from greedynas_fast.spaces.specs import BottleneckSpec, IdentitySpec, InvertedResidualSpec, ShuffleUnitSpec

MINE: dict[str, Any] = {
    "name": "mine",
    "in_channels": 3,
    "resolution": 32,
    "num_classes": 10,
    "stem": {"channels": 16, "stride": 1, "blocks": [{"op": "MB1_K3", "channels": 8}]},
    "operations": ["MB3_K3", "MB6_MIX_SE", "ID"],
    "stages": [{"channels": 16, "layers": 2, "stride": 2}, {"channels": 32, "layers": 1, "ops": ["Shuffle_x", "ID"]}],
    "head": {"channels": 64, "dropout": 0.1},
}


def write(folder: Path, definition: Any, name: str = "mine.yaml") -> str:
    file = folder / name
    file.write_text(definition if isinstance(definition, str) else yaml.safe_dump(definition))
    return str(file)


def changed(key: str, value: Any) -> dict[str, Any]:
    """MINE with one value changed (`...` removes it); `a.0.b` goes into lists and mappings."""
    definition = copy.deepcopy(MINE)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    target: Any = definition
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return definition


def test_names_and_sizes() -> None:
    assert spaces.names() == ("mb-se", "mb-se-mix", "mb-se-mix-shuffle", "res50-se", "nas-bench-macro", "sample")
    shapes = {
        name: (space.num_layers, space.max_ops, space.size) for name in spaces.names() for space in [spaces.get(name)]
    }
    assert shapes == {
        "mb-se": (21, 13, 13**21),
        "mb-se-mix": (21, 17, 17**21),
        "mb-se-mix-shuffle": (21, 21, 21**21),
        "res50-se": (16, 19, 19**16),
        "nas-bench-macro": (8, 3, 3**8),
        "sample": (6, 7, 3 * 7**2 * 3 * 7**2),
    }


def test_operation_order_is_fixed() -> None:
    expected = (
        "MB3_K3 MB3_K5 MB3_K7 MB6_K3 MB6_K5 MB6_K7 MB3_K3_SE MB3_K5_SE MB3_K7_SE MB6_K3_SE MB6_K5_SE MB6_K7_SE ID "
        "MB3_MIX MB6_MIX MB3_MIX_SE MB6_MIX_SE Shuffle_3 Shuffle_5 Shuffle_7 Shuffle_x"
    )
    assert " ".join(spaces.get("mb-se-mix-shuffle").ops[20]) == expected
    assert " ".join(spaces.get("mb-se-mix").ops[0]) == expected[: expected.index(" Shuffle")]
    assert " ".join(spaces.get("mb-se").ops[0]) == expected[: expected.index(" MB3_MIX")]
    res = spaces.get("res50-se").ops[0]
    assert res[:4] == ("Res_K3_0.5x", "Res_K3_1x", "Res_K3_1.5x", "Res_K5_0.5x")
    assert res[9] == "ResNeXt_K3_0.5x"
    assert res[18] == "ID"
    assert spaces.get("nas-bench-macro").ops[0] == ("ID", "MB3_K3", "MB6_K5")


def test_names_in_any_case_and_unknown_names() -> None:
    assert spaces.get("MB-SE") == spaces.get("mb-se")
    with pytest.raises(InputError, match=r"unknown space 'mb-es'; did you mean mb-se\?"):
        spaces.get("mb-es")
    for word in ("zzz", "", "a\0b", "q" * 5000):
        with pytest.raises(InputError, match="known are mb-se, "):
            spaces.get(word)


def test_the_shipped_file_is_the_sample() -> None:
    file = Path(spaces.__file__).parent / "sample.yaml"
    assert spaces.get(str(file)) == spaces.get("sample")


def test_sizes_can_be_changed() -> None:
    space = spaces.get("mb-se", num_classes=7, resolution=64, in_channels=1)
    assert (space.num_classes, space.resolution, space.in_channels) == (7, 64, 1)
    assert spaces.get("mb-se").fixed_cost().params - space.fixed_cost().params == 993 * 1281 + 2 * 9 * 32
    for option in ("num_classes", "resolution", "in_channels"):
        for value in (0, -3, 1.5, True, "x"):
            bad: dict[str, Any] = {option: value}
            with pytest.raises(InputError, match=f"{option}: expected a positive integer"):
                spaces.get("sample", **bad)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mb-se", {"shuffle_se": True}, "shuffle_se: has no meaning for the space mb-se"),
        ("sample", {"shuffle_activation": "hard_swish"}, "shuffle_activation: has no meaning"),
        ("mb-se", {"res_se_reduction": 16}, "res_se_reduction: has no meaning"),
        ("mb-se-mix-shuffle", {"shuffle_activation": "gelu"}, "expected 'relu' or 'hard_swish', got 'gelu'"),
        ("res50-se", {"res_se_reduction": -1}, "res_se_reduction: expected a positive integer, got -1"),
        ("res50-se", {"res_se_reduction": 2.5}, "res_se_reduction: expected a positive integer"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spaces.get(name, **options)


def test_macro_has_relu_and_no_squeeze() -> None:
    for spec in spaces.get("nas-bench-macro").layers[3].ops[1:]:
        assert isinstance(spec, InvertedResidualSpec)
        assert spec.activation == "relu"
        assert spec.se is None


def test_operation_names() -> None:
    assert operation("id") == IdentitySpec()
    mix = operation("mb6_mix_se")
    assert isinstance(mix, InvertedResidualSpec)
    assert (mix.name, mix.expansion, mix.kernel_sizes) == ("MB6_MIX_SE", 6, (3, 5, 7))
    assert mix.se is not None
    assert mix.se.reduced(96) == 24
    shuffle = operation("SHUFFLE_X", shuffle_se=True, shuffle_activation="hard_swish")
    assert isinstance(shuffle, ShuffleUnitSpec)
    assert (shuffle.name, shuffle.kernel_size, shuffle.activation) == ("Shuffle_x", "x", "hard_swish")
    assert shuffle.se is not None
    plain = operation("resnext_k5_1.50x", res_se_reduction=None)
    assert isinstance(plain, BottleneckSpec)
    assert (plain.name, plain.groups, plain.se) == ("ResNeXt_K5_1.5x", 32, None)
    for names in spaces.get("mb-se-mix-shuffle").ops[0], spaces.get("res50-se").ops[0]:
        assert [operation(name.lower()).name for name in names] == list(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MB3K3", r"unknown operation 'MB3K3'; did you mean MB3_K3\?"),
        ("MB3_K4", "odd kernel size"),
        ("MB3_K99", "odd kernel size up to 31"),
        ("MB0_K3", "expansion: expected a positive integer, got 0"),
        ("Res_K3_0x", "width factor"),
        ("Shuffle_9", "did you mean Shuffle_"),
        ("", "unknown operation"),
    ],
)
def test_bad_operation_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        operation(name)


def test_file_space(tmp_path: Path) -> None:
    space = spaces.get(write(tmp_path, MINE), num_classes=3)
    assert (space.name, space.num_layers, space.num_classes) == ("mine", 3, 3)
    assert space.ops == (("MB3_K3", "MB6_MIX_SE", "ID"),) * 2 + (("Shuffle_x", "ID"),)
    assert [(layer.in_channels, layer.out_channels, layer.stride) for layer in space.layers] == [
        (8, 16, 2),
        (16, 16, 1),
        (16, 32, 1),
    ]
    assert (space.stem.kernel_size, space.stem.stride, space.stem.activation) == (3, 1, "relu")
    assert (space.head.in_channels, space.head.channels, space.head.activation) == (32, 64, "relu")


def test_file_space_defaults_and_options(tmp_path: Path) -> None:
    definition = changed("name", ...)
    definition |= {"activation": "relu", "se_ratio": 0.5, "shuffle_se": True, "shuffle_activation": "hard_swish"}
    definition["head"] = {"channels": None}
    space = spaces.get(write(tmp_path, definition, "other.yml"))
    assert space.name == "other"
    assert (space.head.channels, space.head.dropout) == (None, 0.0)
    mix, shuffle = space.layers[0].ops[1], space.layers[2].ops[0]
    assert isinstance(mix, InvertedResidualSpec)
    assert isinstance(shuffle, ShuffleUnitSpec)
    assert mix.activation == "relu"
    assert mix.se is not None
    assert (mix.se.ratio, mix.se.activation) == (0.5, "relu")
    assert shuffle.activation == "hard_swish"
    assert shuffle.se is not None
    bottleneck = changed("stages.1.ops", ["Res_K3_1x"]) | {"res_se_reduction": 0}
    spec = spaces.get(write(tmp_path, bottleneck)).layers[2].ops[0]
    assert isinstance(spec, BottleneckSpec)
    assert spec.se is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_clases", 10, r"unknown key 'num_clases'; did you mean num_classes\?"),
        ("stages.0.chanels", 3, r"stages\[0\]: unknown key 'chanels'; did you mean channels\?"),
        ("num_classes", ..., "num_classes is missing"),
        ("num_classes", "ten", "num_classes: expected a positive integer, got 'ten'"),
        ("in_channels", 0, "in_channels: expected a positive integer, got 0"),
        ("resolution", True, "resolution: expected a positive integer, got True"),
        ("resolution", 1, "resolution: mine reduces images 2 times"),
        ("name", 5, "name: expected a text, got 5"),
        ("name", "sample", "name: 'sample' is a built-in space"),
        ("stem", ..., "stem is missing"),
        ("stem", [], "stem: expected keys and values"),
        ("stem.channels", ..., "stem.channels is missing"),
        ("stem.kernel", 4, "stem.kernel: expected an odd size, got 4"),
        ("stem.max_pool", "yes", "stem.max_pool: expected true or false, got 'yes'"),
        ("stem.activation", "gelu", "stem.activation: expected one of identity, relu, hard_swish, got 'gelu'"),
        ("stem.blocks.0.op", "MB1K3", r"stem.blocks\[0\].op: unknown operation"),
        ("stem.blocks.0.channels", -1, r"stem.blocks\[0\].channels: expected a positive integer, got -1"),
        ("stem.blocks", 3, "stem.blocks: expected a list, got 3"),
        ("operations", "ID", "operations: expected a list of operation names, got 'ID'"),
        ("operations", ["ID", "MB9"], "operations: unknown operation 'MB9'"),
        ("operations", ["ID", "id"], "operations: expected ID only once"),
        ("operations", [f"MB{e}_K3" for e in range(1, 34)], "layer 0: expected 1 to 32 operations, got 33"),
        ("operations", ..., "operations is missing"),
        ("stages", [], "stages: expected a list of at least one stage"),
        ("stages", ..., "stages is missing"),
        ("stages.1", "x", r"stages\[1\]: expected keys and values"),
        ("stages.0.layers", 25, r"stages\[1\].layers: expected at most 25 layers"),
        ("stages.0.layers", 10**12, r"stages\[0\].layers: expected at most 25 layers"),
        ("stages.0.stride", 3, "layer 0: expected stride 1 or 2, got 3"),
        ("stages.1.ops", ["Res_K3_1x", "ID"], None),
        ("stages.1.channels", 33, r"stages\[1\].ops: Shuffle_x cannot make 16 -> 33 channels at stride 1"),
        ("stages.1.channels", 8, r"stages\[1\].ops: Shuffle_x cannot make 16 -> 8 channels.*nothing would be left"),
        ("stages.0.channels", 15, r"stages\[1\].ops: Shuffle_x cannot make 15 -> 32"),
        ("head", None, "head: expected keys and values"),
        ("head.dropout", 1.0, "head.dropout: expected a number from 0"),
        ("head.dropout", "a", "head.dropout: expected a number, got 'a'"),
        ("se_ratio", 0, "se_ratio: expected a number above 0"),
        ("res_se_reduction", -1, "res_se_reduction: expected a positive integer"),
        ("shuffle_se", 1, "shuffle_se: expected true or false"),
    ],
)
def test_file_errors_name_file_and_key(tmp_path: Path, key: str, value: Any, message: str | None) -> None:
    file = write(tmp_path, changed(key, value))
    if message is None:
        spaces.get(file)
        return
    with pytest.raises(InputError, match=message) as caught:
        spaces.get(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).count(file) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values"),
        ("- 1\n", "expected keys and values"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", "line 2: key 'name' is given twice"),
        ("stages:\n  - {channels: 3, channels: 4}\n", "line 2: key 'channels' is given twice"),
        ("a: &a [1, *a]\n", "an alias holds itself"),
        ("? [a]\n: 3\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_files_that_define_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spaces.get(write(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the space"):
        spaces.get(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="cannot read the space"):
        spaces.get(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize("name", spaces.names())
def test_dictionary_round_trip(name: str) -> None:
    space = spaces.get(name)
    again = SearchSpace.from_dict(yaml.safe_load(yaml.safe_dump(space.to_dict())))
    assert again == space
    assert again.fingerprint() == space.fingerprint()
    assert hash(again) == hash(space)


@pytest.mark.parametrize(
    ("key", "value"),
    [("stem", ...), ("layers", ...), ("num_classes", ...), ("extra", 1), ("stem", 3), ("layers", [{}]), ("head", {})],
)
def test_bad_dictionaries(key: str, value: Any) -> None:
    plain = spaces.get("sample").to_dict()
    if value is ...:
        del plain[key]
    else:
        plain[key] = value
    with pytest.raises(InputError, match="space: "):
        SearchSpace.from_dict(plain)


def test_bad_operation_dictionaries() -> None:
    for change, message in (({"kind": "magic"}, "kind"), ({"width": 3}, "InvertedResidualSpec")):
        plain = spaces.get("sample").to_dict()
        plain["layers"][0]["ops"][0] |= change
        with pytest.raises(InputError, match=message):
            SearchSpace.from_dict(plain)


def test_fingerprint_sees_every_change() -> None:
    space = spaces.get("mb-se-mix-shuffle")
    layers = space.layers
    swapped = dataclasses.replace(layers[3], ops=(layers[3].ops[1], layers[3].ops[0], *layers[3].ops[2:]))
    variants = [
        space,
        spaces.get("mb-se-mix"),
        spaces.get("mb-se-mix-shuffle", shuffle_se=True),
        spaces.get("mb-se-mix-shuffle", shuffle_activation="hard_swish"),
        spaces.get("mb-se-mix-shuffle", num_classes=999),
        spaces.get("mb-se-mix-shuffle", resolution=192),
        spaces.get("mb-se-mix-shuffle", in_channels=1),
        dataclasses.replace(space, name="other"),
        dataclasses.replace(space, head=dataclasses.replace(space.head, dropout=0.1)),
        dataclasses.replace(space, stem=dataclasses.replace(space.stem, activation="hard_swish")),
        dataclasses.replace(space, layers=(*layers[:3], swapped, *layers[4:])),
    ]
    prints = [variant.fingerprint() for variant in variants]
    assert len(set(prints)) == len(prints)
    assert prints[0] == spaces.get("mb-se-mix-shuffle").fingerprint()
    assert all(len(text) == 64 for text in prints)


def test_fingerprint_is_equal_in_another_process() -> None:
    code = (
        "import sys; from greedynas_fast import spaces; "
        "print(spaces.get('sample').fingerprint(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [spaces.get("sample").fingerprint(), "False"]


def test_parts_that_do_not_join() -> None:
    space = spaces.get("sample")
    layers = space.layers
    wrong_head = dataclasses.replace(space.head, in_channels=47)
    with pytest.raises(InputError, match="head: gets 48 channels, expects 47"):
        dataclasses.replace(space, head=wrong_head)
    with pytest.raises(InputError, match="layer 1: expected index 1, got 2"):
        dataclasses.replace(space, layers=(layers[0], *layers[2:]))
    with pytest.raises(InputError, match="layer 1: gets 24 channels, expects 25"):
        dataclasses.replace(space, layers=(layers[0], dataclasses.replace(layers[1], in_channels=25), *layers[2:]))
    twice = dataclasses.replace(layers[0], ops=(layers[0].ops[0],) * 2)
    with pytest.raises(InputError, match="layer 0: an operation is listed twice"):
        dataclasses.replace(space, layers=(twice, *layers[1:]))
    with pytest.raises(InputError, match="expected 1 to 25 searchable layers, got 0"):
        dataclasses.replace(space, layers=())
    with pytest.raises(InputError, match="expected a name"):
        dataclasses.replace(space, name=" ")
