"""Which threads operations run on: torch's own where these spin while they wait, a pool of the core's otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib
import torch
from greedynas_fast import _core
from greedynas_fast.ops.mixconv import mixconv
torch.set_num_threads(3)
torch.manual_seed(0)
x = torch.randn(6, 40, 21, 20).contiguous(memory_format=torch.channels_last).requires_grad_()
weights = [torch.randn(20, 1, 3, 3, requires_grad=True), torch.randn(20, 1, 5, 5, requires_grad=True)]
y = mixconv(x, weights, (3, 5))
found = [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *weights])]
digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in found)).hexdigest()
print(_core.has_team(), digest)
"""


def run(**variables: str) -> list[str]:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GREEDYNAS_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=env | variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_torchs_threads_are_used_where_they_spin() -> None:
    team, digest = run()
    if team != "True":
        pytest.skip("this torch does not run on GNU's OpenMP")
    assert run(OMP_WAIT_POLICY="passive") == ["False", digest]
    assert run(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="1000") == ["False", digest]
    assert run(OMP_WAIT_POLICY="Passive", GOMP_SPINCOUNT="300000") == ["True", digest]
    assert run(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="infinite") == ["True", digest]
    assert run(OMP_WAIT_POLICY="active") == ["True", digest]
