"""What is installed, compiled and found on this machine; nothing that is missing makes it fail."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from greedynas_fast import __version__

# Instruction sets that each level of the compiled core needs, by their names in /proc/cpuinfo.
CPU_LEVELS = {
    "portable": frozenset[str](),
    "avx2": frozenset({"avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "amx": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"}),
}

# distribution: (what it is for, how it is installed)
REQUIRED = {
    "torch": ("everything but spaces and costs", "pip install torch"),
    "numpy": ("everything", "pip install numpy"),
    "torchvision": ("folders of images, AutoAugment", "pip install torchvision"),
    "timm": ("retraining", "pip install timm"),
    "pymoo": ("search", "pip install pymoo"),
    "jsonargparse": ("the command line", "pip install 'jsonargparse[signatures]'"),
    "PyYAML": ("configurations", "pip install pyyaml"),
    "rich": ("progress on a terminal", "pip install rich"),
    "safetensors": ("weights", "pip install safetensors"),
}
OPTIONAL = {
    "triton": ("GPU kernels of torch", "pip install triton (Linux with an NVIDIA GPU)"),
    "onnx": ("export to ONNX", "pip install 'greedynas_fast[export]'"),
    "onnxscript": ("export to ONNX", "pip install 'greedynas_fast[export]'"),
    "onnxruntime": ("checking an exported ONNX file", "pip install 'greedynas_fast[export]'"),
    "matplotlib": ("report --figures", "pip install 'greedynas_fast[plot]'"),
    "tensorboard": ("event files", "pip install 'greedynas_fast[tensorboard]'"),
}
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def examine() -> dict[str, Any]:
    """Everything that `greedynas-fast doctor` says, as plain values.

    Returns:
        Keys `version`, `python`, `platform`, `packages` (version or null, purpose, remedy), `dali`, `data_backend`
        (what decodes image files with `data.backend: auto`, and why; or null), `core` (the compiled module), `cpu`,
        `gpu`, `blocks` (what they run as, a device), `threads`, `problems` (sentences; empty when all is well) and
        `next`.
    """
    packages = {
        name: {"version": version(name), "purpose": purpose, "remedy": remedy}
        for name, (purpose, remedy) in (REQUIRED | OPTIONAL).items()
    }
    core, gpu = _core(), _gpu()
    problems = [part["error"] for part in (core, gpu) if part["error"]]
    missing = [name for name in REQUIRED if packages[name]["version"] is None]
    problems += [f"{name} is missing: {packages[name]['remedy']}" for name in missing]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "dali": next(({"package": name, "version": found} for name in DALI if (found := version(name))), None),
        "data_backend": _data_backend(),
        "core": core,
        "cpu": {"cores": _cores(), **_cpu()},
        "gpu": gpu,
        "blocks": _blocks(core),
        "threads": _threads(),
        "problems": problems,
        "next": "pip install . in the source folder"
        if "compiler" not in core
        else "greedynas-fast run --preset sample",
    }


def show(result: dict[str, Any]) -> str:
    """The result of `examine` for people."""
    core, cpu, gpu = result["core"], result["cpu"], result["gpu"]
    lines = [
        f"greedynas_fast {result['version']}, Python {result['python']}, {result['platform']}",
        f"compiled core  {_core_line(core)}",
        f"CPU            {cpu['model'] or 'unknown'}, {cpu['cores']} cores; found {' '.join(cpu['levels_found'])}",
        f"GPU            {_gpu_line(gpu)}",
        f"blocks         {'; '.join(f'{device}: {what}' for device, what in result['blocks'].items())}",
        f"threads        {', '.join(f'{name} {value}' for name, value in result['threads'].items())}",
        f"DALI           {_dali_line(result['dali'])}",
        f"image files    {result['data_backend'] or 'cannot be read'}",
        "packages",
    ]
    for name, package in result["packages"].items():
        found = package["version"] or f"missing; for {package['purpose']}: {package['remedy']}"
        lines.append(f"  {name:13}{found}")
    lines += ["", *(f"Problem: {problem}" for problem in result["problems"]), f"Next: {result['next']}"]
    return "\n".join(lines)


def version(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not there."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def levels_found(flags: frozenset[str]) -> list[str]:
    """The CPU levels whose instruction sets are all among the processor's flags."""
    return [level for level, needed in CPU_LEVELS.items() if needed <= flags]


def _core() -> dict[str, Any]:
    """`build_info` of the compiled module, and what it uses here; or why it cannot be loaded or used."""
    try:
        core = importlib.import_module("greedynas_fast._core")
        info = core.build_info()
    except (ImportError, OSError, AttributeError) as error:
        return {"error": f"the compiled core cannot be loaded ({error}); install with `pip install .`"}
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in info.items()}
    try:
        used = {"isa": core.cpu_isa(), "threads": core.num_threads()}
    except ValueError as error:  # of an environment variable
        return {"error": str(error), **found, "isa": None, "threads": None}
    return {"error": None, **found, **used}


def _cpu() -> dict[str, Any]:
    """Model and levels of the processor, from /proc/cpuinfo where there is one."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = frozenset(fields.get("flags", "").split())
    return {"model": fields.get("model name") or platform.processor() or None, "levels_found": levels_found(flags)}


def _gpu() -> dict[str, Any]:
    """What torch sees of CUDA."""
    try:
        torch = importlib.import_module("torch")
        available = bool(torch.cuda.is_available())
        devices = []
        for index in range(torch.cuda.device_count() if available else 0):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_bytes": properties.total_memory,
                }
            )
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return {"error": f"torch cannot be used ({error})", "available": False, "torch_cuda": None, "devices": []}
    return {"error": None, "available": available, "torch_cuda": torch.version.cuda, "devices": devices}


def _threads() -> dict[str, Any]:
    """Thread counts and the environment variables that set them."""
    try:
        torch_threads = importlib.import_module("torch").get_num_threads()
    except (ImportError, OSError, AttributeError):
        torch_threads = None
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GREEDYNAS_NUM_THREADS", "GREEDYNAS_CPU_ISA")
    return {"torch": torch_threads, **{name: os.environ.get(name) for name in names}}


def _blocks(core: dict[str, Any]) -> dict[str, str]:
    """What the blocks of networks run as with `backend: auto`, a device."""
    plain = "torch's layers"
    if core["error"]:
        return {"cpu": plain, "cuda": plain}
    try:
        importlib.import_module("greedynas_fast.ops.library")  # joins torch's threads, where they spin
        team = "torch's threads" if importlib.import_module("greedynas_fast._core").has_team() else "threads of its own"
    except (ImportError, OSError, RuntimeError):
        return {"cpu": plain, "cuda": plain}
    fused = f"fused in float32 and bfloat16 (compiled core, {core['isa']}, on {team})"
    variable = "GREEDYNAS_CUDA_KERNELS"
    parts = "MixConv, batch norm and squeeze-and-excitation called by themselves by the compiled core"
    return {"cpu": fused, "cuda": f"{plain}; {parts} ({variable})" if os.environ.get(variable) == "1" else plain}


def _data_backend() -> str | None:
    """What decodes image files with `data.backend: auto`, and why; None where nothing does."""
    try:
        reason: str = importlib.import_module("greedynas_fast.data.backend").reader("auto").reason
    except (ImportError, OSError):
        return None
    return reason


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _core_line(core: dict[str, Any]) -> str:
    if "compiler" not in core:
        return "missing"
    architectures = " ".join(core["cuda_architectures"])
    cuda = f"CUDA for {architectures}" if core["cuda"] else "without CUDA"
    return f"{core['compiler']}, CPU levels {' '.join(core['cpu_levels'])}, {cuda}; uses {core['isa']}"


def _gpu_line(gpu: dict[str, Any]) -> str:
    if not gpu["available"]:
        return f"none (torch's CUDA: {gpu['torch_cuda'] or 'none'})"
    return "; ".join(
        f"{device['name']}, {device['memory_bytes'] / 2**30:.0f} GiB, compute capability {device['capability']}"
        for device in gpu["devices"]
    )


def _dali_line(dali: dict[str, str] | None) -> str:
    if dali is None:
        return "missing; for fast image pipelines: pip install 'greedynas_fast[dali-cu12]' or [dali-cu13]"
    return f"{dali['package']} {dali['version']}"
