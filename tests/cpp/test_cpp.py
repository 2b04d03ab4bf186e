"""Builds the C++ unit tests under AddressSanitizer and UndefinedBehaviorSanitizer and runs them through CTest."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="the C++ sources are not beside the tests")
def test_cpp_unit_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    cmake, ctest = shutil.which("cmake"), shutil.which("ctest")
    assert cmake is not None, "cmake is missing: pip install '.[test]' brings it"
    assert ctest is not None, "ctest is missing: pip install '.[test]' brings it"
    build = tmp_path / "build"
    options = [
        "-DGREEDYNAS_PYTHON=OFF",
        "-DGREEDYNAS_TESTS=ON",
        "-DGREEDYNAS_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=Debug",
    ]
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(build), *options],
        [cmake, "--build", str(build)],
        [ctest, "--test-dir", str(build), "--output-on-failure", "--no-tests=error"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
