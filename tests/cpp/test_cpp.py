"""Builds the C++ unit tests under the sanitizers and runs them through CTest."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="the C++ sources are not beside the tests")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_cpp_unit_tests_pass_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    cmake, ctest = shutil.which("cmake"), shutil.which("ctest")
    assert cmake is not None, "cmake is missing: pip install '.[test]' brings it"
    assert ctest is not None, "ctest is missing: pip install '.[test]' brings it"
    build = tmp_path / "build"
    options = [
        "-DGREEDYNAS_PYTHON=OFF",
        "-DGREEDYNAS_TESTS=ON",
        f"-DGREEDYNAS_SANITIZE={sanitizers}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        # Half the compile time of -O2 -g; reports still name file and line.
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
    ]
    for command in (
        [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *options],
        [cmake, "--build", str(build)],  # Ninja uses all cores, Make would use one
        [ctest, "--test-dir", str(build), "--output-on-failure", "--no-tests=error", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "ThreadSanitizer: unexpected memory mapping" in done.stdout:
            pytest.skip("this compiler's ThreadSanitizer does not run on this kernel (vm.mmap_rnd_bits)")
        assert done.returncode == 0, done.stdout + done.stderr
