"""Holds the CUDA kernels for sm_80 and sm_90 to no spills and no stack; checks the build option."""

import importlib.util
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from greedynas_fast import _core

ROOT = Path(__file__).resolve().parents[2]
# What is compiled where no core is installed: all but csrc / paths / cuda / sort.cu and csrc / cuda / select.cu, whose
# kernels are CUB's and which take longer than the rest.
SOURCES = [
    "csrc/blocks/cuda/mixconv_backward.cu",
    "csrc/blocks/cuda/mixconv_forward.cu",
    "csrc/blocks/cuda/squeeze_excite.cu",
    "csrc/blocks/cuda/bn_act.cu",
    "csrc/blocks/cuda/bn_moments.cu",
    "csrc/blocks/cuda/mixconv.cu",
    "csrc/filter/cuda/bf16.cu",
    "csrc/filter/cuda/float32.cu",
    "csrc/filter/cuda/head.cu",
    "csrc/filter/cuda/rejection.cu",
    "csrc/filter/cuda/prepare.cu",
    "csrc/paths/cuda/keys.cu",
    "csrc/paths/cuda/paths.cu",
]
ARCHITECTURES = ("80", "90")
COMPILED = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
# What is spilled lies in the stack frame, so a stack of 0 says that nothing is.
INSTALLED = re.compile(
    r"Function (?P<name>\w+):\s+REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+) "
)


def cuobjdump() -> str | None:
    """The CUDA toolkit's, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    parts = [] if triton is None else triton.submodule_search_locations or []
    return shutil.which("cuobjdump") or next(
        filter(None, (shutil.which(Path(part) / "backends" / "nvidia" / "bin" / "cuobjdump") for part in parts)), None
    )


def kernels_of_the_installed_core() -> list[dict[str, str]] | None:
    """Kernels with what they use; None if the core does not hold those of these sources, or cannot be read."""
    core, tool = Path(_core.__file__), cuobjdump()
    changed = max(file.stat().st_mtime for file in (ROOT / "csrc").rglob("*") if file.is_file())
    architectures = {f"{arch}-real" for arch in ARCHITECTURES}
    if (
        tool is None
        or core.stat().st_mtime < changed
        or not architectures <= set(_core.build_info()["cuda_architectures"])
    ):
        return None
    done = subprocess.run([tool, "-res-usage", str(core)], capture_output=True, text=True, check=True)
    found = []
    for part in done.stdout.split("arch = sm_")[1:]:
        found += [{**kernel.groupdict(), "arch": part[:2]} for kernel in INSTALLED.finditer(part)]
    return found


def compile_for_device(nvcc: str, source: str, output: Path) -> list[dict[str, str]]:
    """Kernels of one file, compiled for all architectures without the host's half, and what ptxas says of them."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    options = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"]
    command = [nvcc, "-fatbin", *targets, *options, str(ROOT / source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [kernel.groupdict() for kernel in COMPILED.finditer(done.stdout + done.stderr)]


@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="the CUDA sources are not beside the tests")
def test_kernels_neither_spill_nor_use_a_stack(tmp_path: Path) -> None:
    kernels = kernels_of_the_installed_core()
    if kernels is None:
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            pytest.skip("nvcc is not on the PATH, and the installed core holds no kernels of these sources")
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda source: compile_for_device(nvcc, source, tmp_path / Path(source).stem), SOURCES)
            kernels = [kernel for some in found for kernel in some]
    for kernel in kernels:
        sizes = {name: int(kernel[name]) for name in ("stack", "stores", "loads", "local") if name in kernel}
        assert not any(sizes.values()), f"{kernel['name']} for sm_{kernel['arch']}: {sizes}"
    for source in SOURCES:
        # The kernels of a file are in its unnamed namespace, which is named after it.
        name = Path(source).name.replace(".", "_")
        here = [kernel for kernel in kernels if f"_{len(name)}_{name}_" in kernel["name"]]
        assert {kernel["arch"] for kernel in here} == set(ARCHITECTURES), f"{source}: kernels are missing"
        if source.endswith("bf16.cu"):
            # More would not launch : 512 threads leave each 128 registers, 256 leave 255.
            for kernel in here:
                assert int(kernel["registers"]) <= (128 if "ILi2E" in kernel["name"] else 255)


@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="CMakeLists.txt is not beside the tests")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ON", "GREEDYNAS_CUDA=ON needs nvcc and the CUDA headers"),
        ("MAYBE", "GREEDYNAS_CUDA must be AUTO, ON or OFF, got MAYBE"),
        ("AUTO", None),
    ],
)
def test_the_build_option_without_a_toolkit(tmp_path: Path, value: str, message: str | None) -> None:
    cmake = shutil.which("cmake")
    assert cmake is not None, "cmake is missing: pip install '.[test]' brings it"
    options = [f"-DGREEDYNAS_CUDA={value}", "-DGREEDYNAS_PYTHON=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=TRUE"]
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if message is None:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "CUDA: not built (GREEDYNAS_CUDA=AUTO)" in done.stdout
    else:
        assert done.returncode != 0
        assert message in " ".join(done.stderr.split())
