"""The kernels compile for sm_80 and sm_90 without a GPU, and nothing spills: read from the machine code."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from kernels_aot import ARCHITECTURES, SHARED_BYTES, Build, compile_for
from norm_act_builds import BUILDS as NORM_ACT
from pointwise_builds import BUILDS as POINTWISE

BUILDS = [
    pytest.param(build, arch, id=f"{build.name}-sm{arch}", marks=() if arch in build.always else pytest.mark.slow)
    for build in (*POINTWISE, *NORM_ACT)
    for arch in ARCHITECTURES
]


@pytest.mark.parametrize(("build", "architecture"), BUILDS)
def test_no_spills(build: Build, architecture: int, tmp_path: Path) -> None:
    usage = compile_for(build, architecture, tmp_path)
    print(f"{build.name} sm_{architecture}: {usage}")
    assert usage.local_bytes == 0
    assert usage.shared_bytes <= SHARED_BYTES[architecture]
