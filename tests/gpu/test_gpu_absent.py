"""Without a GPU, a driver or a core with CUDA: importing works, and a call says what is missing."""

from typing import NamedTuple, cast

import numpy as np
import pytest
import torch

from greedynas_fast import _core, _cuda, doctor
from greedynas_fast.errors import InputError
from greedynas_fast.filter.cuda_backend import CudaBackend, CudaEngineBackend
from greedynas_fast.ops import cuda_kernels, rows
from greedynas_fast.paths import cuda as paths_cuda


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda._core, "build_info", lambda: {"cuda": False})
    with pytest.raises(InputError, match="built without CUDA: put nvcc on the PATH"):
        paths_cuda.propose(np.ones((2, 2), bool), 0, 0, 0, 1)
    with pytest.raises(InputError, match="built without CUDA"):
        CudaBackend((3,), 16, "bf16", "cuda")


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    info = {**_core.build_info(), "cuda": True}
    monkeypatch.setattr(_cuda._core, "build_info", lambda: info)
    with pytest.raises(InputError, match="finds no CUDA device: it needs an NVIDIA GPU, a driver and a CUDA build"):
        CudaEngineBackend((3,), "float32", torch.device("cuda"))


def test_the_core_names_the_missing_driver() -> None:
    if not _core.build_info()["cuda"]:
        pytest.skip("the compiled core was built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert _core.cuda_reason_against(0).startswith("no usable CUDA driver or device: ")


def test_cpu_devices_are_refused() -> None:
    with pytest.raises(InputError, match="device must be a CUDA device, got cpu"):
        CudaBackend((3,), 16, "bf16", "cpu")
    with pytest.raises(InputError, match="device must be a CUDA device, got cpu"):
        paths_cuda.sort_keys(torch.zeros(1, 2, dtype=torch.int64))


def test_the_operators_of_the_fused_layers_are_registered() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in ("mixconv", "mixconv_backward", "bn_act_training", "bn_act_backward", "squeeze_excite", "excite"):
        assert has_kernel(f"greedynas::{name}", "CUDA"), name


def test_the_operators_refuse_other_devices() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(InputError, match="device must be a CUDA device, got cpu"):
        cuda_kernels._where_possible(cuda_kernels._moments)(x)


class OnCard(NamedTuple):
    """What `backend` looks at in a tensor on a GPU."""

    dtype: torch.dtype
    device: torch.device = torch.device("cuda", 0)
    is_cuda: bool = True


@pytest.mark.parametrize(("asked", "taken"), [(None, "reference"), ("0", "reference"), ("1", "core")])
def test_cuda_kernels_are_taken_where_they_are_asked_for(
    asked: str | None, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(rows.CUDA_VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(rows.CUDA_VARIABLE, asked)
    rows._takes_cuda_kernels.cache_clear()
    try:
        single, half, double = (
            cast("torch.Tensor", OnCard(dtype)) for dtype in (torch.float32, torch.float16, torch.float64)
        )
        assert rows.backend(single, on_cuda=True) == taken
        assert rows.backend(half, on_cuda=True) == taken
        assert rows.backend(double, on_cuda=True) == "reference"
        assert rows.backend(single) == "reference"
        assert ("called by themselves" in doctor.examine()["blocks"]["cuda"]) == (taken == "core")
    finally:
        rows._takes_cuda_kernels.cache_clear()
