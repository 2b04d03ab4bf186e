"""Export of a retrained network: its weights as safetensors, and the network as ONNX, checked against PyTorch.

`export_run` is the command; `export_model`, `export_onnx`, `save_model` and `load_model` need no run.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from greedynas_fast.dataclass_io import check_range, check_types
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import atomic_write
from greedynas_fast.stages.model_files import CONFIG, WEIGHTS, load_model, save_model

if TYPE_CHECKING:
    from greedynas_fast.config import ConfigSource
    from greedynas_fast.stages.context import Reporter, StageContext

__all__ = ["ExportConfig", "OnnxCheck", "export_model", "export_onnx", "export_run", "load_model", "save_model"]

Format = Literal["safetensors", "onnx"]

ONNX_FILE = "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
REMEDY = "pip install 'greedynas_fast[export]'"
MIN_OPSET, MAX_OPSET = 18, 23  # what the torch.export-based exporter writes and its version converter reaches
CHECKED_BATCHES = (1, 5)  # neither is the batch size of the trace (2)


@dataclass(frozen=True)
class ExportConfig:
    """The files to export.

    Attributes:
        formats: `safetensors` (weights and config.json), `onnx` (needs the extra `export`).
        path: null exports the retrained network; a path as text, `@file`, a published name or `best` exports that path
            with the supernet's weights, BN statistics recomputed on training images.
        opset: version of the ONNX operator set.
        tolerance: largest difference between the logits of ONNX Runtime and of PyTorch, over the largest logit. Beyond
            it there is no ONNX file.
    """

    formats: tuple[Format, ...] = ("safetensors",)
    path: str | None = None
    opset: int = MIN_OPSET
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_types(self, "export")
        check_range(self, "export", "opset", low=MIN_OPSET, high=MAX_OPSET)
        check_range(self, "export", "tolerance", low=0, open_low=True)
        if not self.formats or len({*self.formats}) != len(self.formats):
            raise InputError(f"export.formats must name each format once and at least one, got {list(self.formats)}.")


@dataclass(frozen=True)
class OnnxCheck:
    """What the comparison of the written ONNX file with PyTorch found.

    Attributes:
        path: the file.
        opset: version of its operator set.
        batch_sizes: of the random inputs.
        max_abs_difference: over all logits.
        max_abs_logit: the largest logit of PyTorch, the scale of the difference.
        num_bytes: size of the file.
    """

    path: Path
    opset: int
    batch_sizes: tuple[int, ...]
    max_abs_difference: float
    max_abs_logit: float
    num_bytes: int


def export_run(path: Path, source: ConfigSource, reporter: Reporter) -> dict[str, Any]:
    """The command `export`: writes a network of a run into its folder `export/`.

    Args:
        path: the run folder.
        source: what the command line asked for.
        reporter: how to talk to people.

    Returns:
        What `export_model` returns, and `next`, the next command.

    Raises:
        InputError: no such run, no such network yet, or what `export_model` refuses.
    """
    # The configuration holds an ExportConfig, so this file may not import it at its top.
    from greedynas_fast.stages.context import open_run

    # A question of the moment: its options must not change what `run` exports in the end.
    with open_run(path, source, reporter, keep=False) as context:
        target = context.run.path / "export"
        config = context.config.export
        if config.path is not None:
            return {**_export_inherited(context, config.path, target), "next": context.command("report")}
        if not context.run.retrain_config.is_file():
            raise InputError(
                f"export: the run {path} has no retrained network yet. To make it: {context.command('retrain')}, or "
                "export a path with the supernet's weights: --export.path best."
            )
        return {**export_model(context.run.retrain, target, config), "next": context.command("report")}


def _export_inherited(context: StageContext, text: str, target: Path) -> dict[str, Any]:
    """A path with the supernet's weights, in a folder of `target` that is named by the path."""
    from greedynas_fast.stages.choice import chosen_path, inherited

    path, origin = chosen_path(context, text)
    folder = target / context.space.format(path, "digits")
    save_model(
        inherited(context, path),
        folder,
        space=context.space,
        path=path,
        extra=context.model_facts(f"supernet, {origin}"),
    )
    return export_model(folder, folder, context.config.export)


def export_model(model_folder: Path, target: Path, config: ExportConfig) -> dict[str, Any]:
    """Exports the network of a folder in the formats of `config`.

    Args:
        model_folder: a folder that `save_model` wrote (a run's `retrain/`).
        target: the folder to write to; it is made if absent.
        config: what to write.

    Returns:
        `files`: the files written, as text; `onnx`: the check of the ONNX file as a mapping, or None.

    Raises:
        InputError: the model files are broken, or a package is missing (then nothing is written).
        RuntimeError: ONNX Runtime does not compute what PyTorch computes.
    """
    if "onnx" in config.formats:
        _require_onnx()
    network, model = load_model(model_folder)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    check: dict[str, Any] | None = None
    if "safetensors" in config.formats:
        for name in (WEIGHTS, CONFIG):
            atomic_write(target / name, (Path(model_folder) / name).read_bytes())
            files.append(target / name)
    if "onnx" in config.formats:
        # What a user of the file alone has to know to feed it.
        metadata = {
            key: json.dumps(model[key])
            for key in ("architecture", "path", "mean", "std", "class_names")
            if model.get(key)
        }
        channels, height, width = model["input_size"]
        found = export_onnx(
            network,
            (channels, height, width),
            target / ONNX_FILE,
            opset=config.opset,
            tolerance=config.tolerance,
            metadata=metadata,
        )
        files.append(found.path)
        check = {**asdict(found), "path": str(found.path), "batch_sizes": list(found.batch_sizes)}
    return {"files": [str(file) for file in files], "onnx": check}


def export_onnx(
    network: nn.Module,
    input_shape: tuple[int, int, int],
    file: Path,
    *,
    opset: int = MIN_OPSET,
    tolerance: float = 1e-4,
    metadata: Mapping[str, str] | None = None,
) -> OnnxCheck:
    """Writes a network as ONNX (`images` float32 [N, C, H, W] -> `logits` [N, classes], any N) and checks it.

    The network is copied, and exported in evaluation mode on the CPU in float32; the original stays as it is. Source
    locations, which the exporter notes at each node, are left out, so that the file says nothing about the machine.

    Args:
        network: the network.
        input_shape: [C, H, W] of an image.
        file: the file to write.
        opset: version of the operator set.
        tolerance: see `ExportConfig`.
        metadata: texts kept in the file.

    Raises:
        InputError: a package is missing, or the opset cannot be written.
        RuntimeError: ONNX Runtime does not compute what PyTorch computes; no file is written then.
    """
    _require_onnx()
    plain = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    content = _onnx_bytes(plain, input_shape, opset, metadata or {})
    difference, largest = _compare(plain, content, input_shape)
    if not difference <= tolerance * largest:  # also refuses NaN
        raise RuntimeError(
            f"ONNX export of {file}: the logits of ONNX Runtime differ from PyTorch's by {difference:.3g} (largest "
            f"logit {largest:.3g}, tolerance {tolerance:g}). No file was written."
        )
    atomic_write(file, content)
    return OnnxCheck(Path(file), opset, CHECKED_BATCHES, difference, largest, len(content))


def _require_onnx() -> None:
    """Raises with the remedy if a package of the extra `export` is missing."""
    for name in ONNX_PACKAGES:
        try:
            with _quiet():
                importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"ONNX export needs the package {name}, which is not installed: {REMEDY}") from error


def _onnx_bytes(
    network: nn.Module, input_shape: tuple[int, int, int], opset: int, metadata: Mapping[str, str]
) -> bytes:
    """The serialised ONNX model."""
    import onnx

    example = torch.zeros(2, *input_shape)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise InputError(f"ONNX export: opset {opset} cannot be written for this network, the exporter gave {written}.")
    graph = model.graph
    nodes = (*graph.node, *(node for function in model.functions for node in function.node))
    for part in (graph, *nodes, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    content: bytes = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(content)
    return content


def _compare(network: nn.Module, content: bytes, input_shape: tuple[int, int, int]) -> tuple[float, float]:
    """Largest difference of the logits on random images, and PyTorch's largest logit."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    difference = largest = 0.0
    for batch_size in CHECKED_BATCHES:
        images = torch.randn(batch_size, *input_shape, generator=generator)
        with torch.inference_mode():
            expected = network(images)
        actual = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        if actual.shape != expected.shape:
            return float("nan"), largest
        # torch.maximum hands on NaN, Python's max may not.
        worst = torch.maximum(torch.tensor(difference), (actual - expected).abs().max())
        difference, largest = float(worst), max(largest, float(expected.abs().max()))
    return difference, largest


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter: none of them is about anything that the user can change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
