"""Compiles the CUDA kernels for sm_80 and sm_90 and holds them to no spills and no stack; checks the build option."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# All but csrc / paths / cuda / sort.cu : its kernels are CUB's, and it takes longer than the rest.
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
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compile_for_device(nvcc: str, source: str, output: Path) -> str:
    """Device code of one file for all architectures, without the host's half; returns what ptxas says."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    options = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"]
    command = [nvcc, "-fatbin", *targets, *options, str(ROOT / source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="the CUDA sources are not beside the tests")
def test_kernels_neither_spill_nor_use_a_stack(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH")
    with ThreadPoolExecutor(2) as pool:
        logs = pool.map(lambda source: compile_for_device(nvcc, source, tmp_path / Path(source).stem), SOURCES)
        kernels = {source: list(KERNEL.finditer(log)) for source, log in zip(SOURCES, logs, strict=True)}
    for source, found in kernels.items():
        for arch in ARCHITECTURES:
            assert any(kernel["arch"] == arch for kernel in found), f"{source}: no kernel for sm_{arch}"
        for kernel in found:
            sizes = {name: int(kernel[name]) for name in ("stack", "stores", "loads")}
            assert not any(sizes.values()), f"{source}: {kernel['name']} for sm_{kernel['arch']}: {sizes}"
    # More would not launch : 512 threads leave each 128 registers, 256 leave 255.
    for kernel in kernels["csrc/filter/cuda/bf16.cu"]:
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
