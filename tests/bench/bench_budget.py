"""The smallest budget and network: all is computed and checked as always, only the figures mean nothing."""

import contextlib
from types import ModuleType

import pytest
import torch

from greedynas_fast.bench import peers
from greedynas_fast.bench.timing import Budget

TINY = Budget(repeats=2, call_s=0.002, chunk_s=0.02, check_s=0.02, check_paths=512, codec_paths=(3000,), compile=False)


def shrink(monkeypatch: pytest.MonkeyPatch, module: ModuleType, threads: int = 1) -> None:
    """A small network; torch keeps one thread whatever the rows say, because in this process its threads spin."""
    monkeypatch.setenv("GREEDYNAS_NUM_THREADS", str(threads))
    torch.set_num_threads(1)
    monkeypatch.setattr(module, "torch_threads", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(peers, "SPACE", "sample")
    monkeypatch.setattr(peers, "HIDDEN", 16)
