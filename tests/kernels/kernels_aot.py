"""Compiles Triton kernels for GPUs that are not there, and reads from the cubin what they use.

To add a kernel: one `Build` for each set of compile-time constants that matters, in a file beside this one whose list
`test_kernels_aot.py` joins to its own. Pointers and the integers named in `multiples` are taken to be multiples of 16,
as Triton finds those of torch at run time.
"""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
ARCHITECTURES = (80, 90)
# Of one thread block: the most that can be asked for on sm_80 and sm_90.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Build:
    """A kernel with its types (`*fp32`, `i32`, ..; by argument) and constants.

    `always` names the architectures that every run of the tests compiles for; the others are left to the slow tests.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    multiples: frozenset[str] = frozenset()
    always: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True)
class Usage:
    """What the machine code uses: registers a thread, bytes of local memory a thread (spills), shared bytes."""

    registers: int
    local_bytes: int
    shared_bytes: int


def compile_for(build: Build, architecture: int, folder: Path) -> Usage:
    """Compile for sm_<architecture> and read the cubin."""
    names = build.kernel.arg_names
    assert set(names) == {*build.types, *build.constants}, set(names) ^ {*build.types, *build.constants}
    signature = {name: build.types.get(name, "constexpr") for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or name in build.multiples]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    compiled = triton.compile(
        ASTSource(build.kernel, signature, dict(build.constants), attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages},
    )
    path = folder / f"{build.name}-sm{architecture}.cubin"
    path.write_bytes(compiled.asm["cubin"])
    printed = subprocess.run(
        [_cuobjdump(), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = _USAGE.search(printed)
    assert found is not None, printed
    registers, stack, _, local = map(int, found.groups())
    return Usage(registers, stack + local, compiled.metadata.shared)


@functools.cache
def _cuobjdump() -> Path:
    """The tool that comes with Triton."""
    return Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
