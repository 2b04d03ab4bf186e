"""The tests here need a GPU and a core that was built with CUDA, or are skipped with the reason."""

import pytest
import torch

from greedynas_fast import _core


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not _core.build_info()["cuda"]:
        pytest.skip("the compiled core was built without CUDA")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())
