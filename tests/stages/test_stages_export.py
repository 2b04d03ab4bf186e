"""Model files and ONNX: what is written computes the same, and broken files are refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages import export
from greedynas_fast.stages.export import (
    ExportConfig,
    OnnxCheck,
    export_model,
    export_onnx,
    export_run,
    load_model,
    save_model,
)
from greedynas_fast.supernet import Network

EXTRA = {"mean": [0.5], "std": [0.25], "accuracy": 0.75, "class_names": ["a", "b"]}

EVERY_KIND = """
name: every-kind
in_channels: 3
resolution: 32
num_classes: 5
shuffle_se: true
stem: {channels: 16, kernel: 7, max_pool: true}
operations: [MB3_K5_SE, MB6_MIX_SE, Shuffle_3, Shuffle_x, ID]
stages:
  - {channels: 32, layers: 4, stride: 2}
  - {channels: 48, layers: 1, stride: 2}
  - {channels: 512, layers: 2, stride: 1, ops: [Res_K3_1x, ResNeXt_K5_1.5x]}
head: {channels: null}
"""
EVERY_KIND_PATH = [2, 3, 1, 4, 0, 0, 1]


def worn(network: Network, seed: int = 0) -> Network:
    """Weights, biases and batch-norm statistics as after some training, so that no part computes a trivial function."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.4, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.fill_(17)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.3, generator=generator)
    return network.eval()


def images(space: SearchSpace, count: int = 3, seed: int = 1) -> torch.Tensor:
    shape = (count, space.in_channels, space.resolution, space.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits(network: nn.Module, space: SearchSpace) -> torch.Tensor:
    with torch.inference_mode():
        return network(images(space))


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return spaces.get("sample")


@pytest.fixture(scope="module")
def network(space: SearchSpace) -> Network:
    return worn(Network(space, space.parse("052216")))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Network:
    file = tmp_path_factory.mktemp("space") / "every-kind.yaml"
    file.write_text(EVERY_KIND)
    return worn(Network(spaces.get(str(file)), EVERY_KIND_PATH))


@pytest.fixture
def saved(tmp_path: Path, space: SearchSpace, network: Network) -> Path:
    save_model(network, tmp_path / "model", space=space, path=network.path, extra=EXTRA)
    return tmp_path / "model"


def test_round_trip_is_exact(saved: Path, space: SearchSpace, network: Network) -> None:
    loaded, config = load_model(saved)
    assert not loaded.training
    assert loaded.space == space
    assert loaded.path == network.path
    state = loaded.state_dict()
    for name, value in network.state_dict().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    assert torch.equal(logits(loaded, space), logits(network, space))
    assert {key: config[key] for key in EXTRA} == EXTRA
    assert config["architecture"] == "sample"
    assert config["path"] == "052216"
    assert config["names"] == ["MB3_K3", "MB3_MIX_SE", "MB6_K3", "MB6_K3", "MB3_K5", "ID"]
    assert config["num_classes"] == 10
    assert config["input_size"] == [1, 28, 28]
    assert (config["params"], config["macs"]) == (space.cost(network.path).params, space.cost(network.path).macs)
    assert SearchSpace.from_dict(config["space"]) == space


def test_round_trip_of_every_kind_of_operation(tmp_path: Path, every_kind: Network) -> None:
    save_model(every_kind, tmp_path, space=every_kind.space, path=every_kind.path)
    loaded, config = load_model(tmp_path)
    assert torch.equal(logits(loaded, every_kind.space), logits(every_kind, every_kind.space))
    assert config["mean"] is config["std"] is config["accuracy"] is None


def test_weights_are_readable_by_other_programs(saved: Path, network: Network) -> None:
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(network.state_dict())
        name = "head.classifier.weight"
        assert np.array_equal(file.get_tensor(name), network.state_dict()[name].numpy())


def test_same_network_gives_the_same_bytes(tmp_path: Path, saved: Path, space: SearchSpace, network: Network) -> None:
    save_model(network, tmp_path / "again", space=space, path=network.path, extra=EXTRA)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_parameters_that_share_a_buffer_and_channels_last_weights(tmp_path: Path, space: SearchSpace) -> None:
    network = worn(Network(space, [0] * 6)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
    start = 0
    for parameter in network.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    save_model(network, tmp_path, space=space, path=[0] * 6)
    loaded, _ = load_model(tmp_path)
    torch.testing.assert_close(logits(loaded, space), logits(network, space), rtol=1e-5, atol=1e-6)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_network_of_another_path_is_not_saved(tmp_path: Path, space: SearchSpace, network: Network) -> None:
    with pytest.raises(InputError, match="belong to another path or space"):
        save_model(network, tmp_path, space=space, path=[0] * 6)
    with pytest.raises(InputError, match="expected 6 operations"):
        save_model(network, tmp_path, space=space, path=[0] * 5)
    with pytest.raises(InputError, match="extra may not hold macs, params"):
        save_model(network, tmp_path, space=space, path=network.path, extra={"params": 1, "macs": 2})
    assert list(tmp_path.iterdir()) == []


def cut(fraction: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * fraction)]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("spoil", [cut(0), cut(0.01), cut(0.5), cut(0.9999), flip, lambda content: content + b"\0"])
def test_cut_off_or_changed_weights(saved: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors .*cut off or changed"):
        load_model(saved)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "052211"}, r"model\.safetensors: has (no tensor|a tensor)"),
        ({"path": "0525"}, "expected 6 digits"),
        ({"path": 52516}, "expected the key 'path'"),
        ({"path": ...}, "expected the key 'path'"),
        ({"space": ...}, "expected the key 'space'"),
        ({"space": {}}, r"config\.json: "),
        ({"format_version": 2}, "expected format_version 1, got 2"),
        ({"num_classes": 11}, "num_classes is 11, but the space in it has 10"),
        ({"weights_sha256": "0" * 64}, "cut off or changed"),
        ({"weights_sha256": None}, "cut off or changed"),
    ],
)
def test_config_that_does_not_fit(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError, match=message):
        load_model(saved)


def test_weights_of_another_width(saved: Path, space: SearchSpace) -> None:
    wider = spaces.get("sample", num_classes=12)
    edit(saved, space=wider.to_dict(), num_classes=12)
    with pytest.raises(
        InputError, match=r"'head\.classifier\.weight' should have the shape \[12, 256\], got \[10, 256\]"
    ):
        load_model(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=name):
        load_model(saved)


def test_file_that_is_no_safetensors(saved: Path) -> None:
    content = b"\xff" * 100
    (saved / "model.safetensors").write_bytes(content)
    edit(saved, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_config_that_is_no_json_object(saved: Path, content: bytes) -> None:
    (saved / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("pickle",)}, r"export\.formats\[0\] must be one of safetensors, onnx"),
        ({"formats": ()}, "at least one"),
        ({"formats": ("onnx", "onnx")}, "each format once"),
        ({"opset": 17}, r"export\.opset must be at least 18"),
        ({"opset": 99}, r"export\.opset must be at least 18 and at most 23"),
        ({"tolerance": 0}, r"export\.tolerance must be above 0"),
        ({"tolerance": float("nan")}, r"export\.tolerance must be a number"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportConfig(**changes)


def session(file: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory, network: Network) -> tuple[Path, OnnxCheck]:
    for package in export.ONNX_PACKAGES:
        pytest.importorskip(package)
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return file, export_onnx(network, (1, 28, 28), file, metadata={"mean": "[0.5]"})


def test_onnx_equals_pytorch_at_any_batch_size(
    onnx_file: tuple[Path, OnnxCheck], space: SearchSpace, network: Network
) -> None:
    file, check = onnx_file
    runner = session(file)
    assert [(entry.name, entry.shape) for entry in runner.get_inputs()] == [("images", ["batch", 1, 28, 28])]
    assert [(entry.name, entry.shape) for entry in runner.get_outputs()] == [("logits", ["batch", 10])]
    for count in (1, 4):
        batch = images(space, count, seed=count)
        with torch.inference_mode():
            expected = network(batch).numpy()
        (actual,) = runner.run(None, {"images": batch.numpy()})
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert check.path == file
    assert check.opset == 18
    assert check.batch_sizes == (1, 5)
    assert 0 <= check.max_abs_difference <= 1e-4 * check.max_abs_logit
    assert check.num_bytes == file.stat().st_size


def test_onnx_file_says_nothing_about_the_machine(onnx_file: tuple[Path, OnnxCheck]) -> None:
    content = onnx_file[0].read_bytes()
    assert b".py" not in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content
    assert session(onnx_file[0]).get_modelmeta().custom_metadata_map == {"mean": "[0.5]"}


def test_onnx_of_every_kind_of_operation(tmp_path: Path, every_kind: Network) -> None:
    """Squeeze-and-excitation, MixConv, both shuffle units, bottlenecks, grouped convolutions, identities, max pool."""
    for package in export.ONNX_PACKAGES:
        pytest.importorskip(package)
    every_kind.train()
    try:
        check = export_onnx(every_kind, (3, 32, 32), tmp_path / "model.onnx", opset=20)
        assert every_kind.training
    finally:
        every_kind.eval()
    batch = images(every_kind.space, 2)
    (actual,) = session(tmp_path / "model.onnx").run(None, {"images": batch.numpy()})
    with torch.inference_mode():
        expected = every_kind(batch).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert check.max_abs_logit > 0.1


def test_published_architecture_with_fresh_weights(tmp_path: Path) -> None:
    for package in export.ONNX_PACKAGES:
        pytest.importorskip(package)
    found = spaces.published("GreedyNAS-B")
    space = spaces.get("mb-se", resolution=32)
    network = Network(space, space.parse(found.path_text), seed=3).eval()
    save_model(network, tmp_path / "model", space=space, path=network.path)
    result = export_model(tmp_path / "model", tmp_path / "export", ExportConfig(formats=("safetensors", "onnx")))
    assert [Path(file).name for file in result["files"]] == ["model.safetensors", "config.json", "model.onnx"]
    loaded, config = load_model(tmp_path / "export")
    assert torch.equal(logits(loaded, space), logits(network, space))
    assert config["params"] == 5_207_804
    (actual,) = session(tmp_path / "export" / "model.onnx").run(None, {"images": images(space).numpy()})
    expected = logits(network, space).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    json.dumps(result)  # plain values, for the command line


def test_wrong_onnx_is_refused(
    tmp_path: Path, onnx_file: tuple[Path, OnnxCheck], space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of one network is passed off as the export of another."""
    other = worn(Network(space, space.parse("052216")), seed=7)
    monkeypatch.setattr(export, "_onnx_bytes", lambda *_: onnx_file[0].read_bytes())
    with pytest.raises(RuntimeError, match=r"logits of ONNX Runtime differ .* No file was written"):
        export_onnx(other, (1, 28, 28), tmp_path / "model.onnx")
    with torch.no_grad():
        other.head.classifier.bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="differ from PyTorch's by nan"):
        export_onnx(other, (1, 28, 28), tmp_path / "model.onnx")
    wider = Network(spaces.get("sample", num_classes=12), space.parse("052216"))
    with pytest.raises(RuntimeError, match="differ"):
        export_onnx(wider, (1, 28, 28), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", export.ONNX_PACKAGES)
def test_missing_package_is_named_with_the_remedy(
    tmp_path: Path, saved: Path, network: Network, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    message = rf"needs the package {missing}, which is not installed: pip install 'greedynas_fast\[export\]'"
    with pytest.raises(InputError, match=message):
        export_onnx(network, (1, 28, 28), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=message):
        export_model(saved, tmp_path / "export", ExportConfig(formats=("safetensors", "onnx")))
    assert not (tmp_path / "export").exists()
    result = export_model(saved, tmp_path / "export", ExportConfig())
    assert len(result["files"]) == 2


def test_command_works_on_a_run_folder(tmp_path: Path, space: SearchSpace, network: Network) -> None:
    from greedynas_fast.config import ConfigSource, RunConfig
    from greedynas_fast.runtime import RunFolder
    from greedynas_fast.stages.context import Reporter

    run = RunFolder.create(tmp_path / "sample-1")
    run.write_config(RunConfig(preset="sample").to_dict())
    with pytest.raises(InputError, match="no retrained network yet"):
        export_run(run.path, ConfigSource(), Reporter(quiet=True))
    save_model(network, run.retrain, space=space, path=network.path, extra=EXTRA)
    result = export_run(run.path, ConfigSource(), Reporter(quiet=True, command="greedynas-fast export sample-1"))
    assert result["next"] == f"greedynas-fast report {run.path}"
    assert torch.equal(logits(load_model(run.path / "export")[0], space), logits(network, space))
    assert (run.path / "commands.txt").read_text().strip() == "greedynas-fast export sample-1"


def test_import_needs_no_optional_package() -> None:
    blocked = ["onnx", "onnxruntime", "onnxscript", "safetensors", "yaml", "torchvision", "timm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import greedynas_fast.stages.export"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)
