"""One finished tiny run for all tests of the stages, and copies of it to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stages_runs import QUIET, RUN, asked, write_inputs

from greedynas_fast.stages.run import run


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """A run sets these for its whole process; other tests must not notice."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny configuration."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `run` finished, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(RUN, asked(config), QUIET)
    return folder / RUN


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copy(finished: Path, here: Path) -> Path:
    """A copy of the finished run, at `run` in an otherwise empty working directory."""
    shutil.copytree(finished, here / RUN)
    return RUN


@pytest.fixture
def trained(copy: Path) -> Path:
    """A run that is trained and no more."""
    for name in ("search.jsonl", "best.json", "result.json", "report.html", "retrain", "export", "checkpoints/retrain"):
        place = copy / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    lines = (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if '"stage": "train"' in line), encoding="utf-8")
    return copy
