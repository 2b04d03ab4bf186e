"""`--profile N`: a Chrome trace of steps of both trainings, and the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages_runs import RUN, differences, outcome, succeed

Capture = pytest.CaptureFixture[str]


def test_a_profiled_run(config: Path, here: Path, finished: Path, capsys: Capture) -> None:
    succeed(capsys, "run", "--run", RUN, "--config", config, "--profile", "2")
    for stage in ("train", "retrain"):
        file = RUN / "profile" / f"{stage}.json"
        trace: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # A step has one loss; warm-up steps are not in it.
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("greedynas::head_loss") == 2
        assert any(name.startswith("autograd::engine::evaluate_function") for name in names if name)
        file.unlink()
    assert differences(outcome(RUN), outcome(finished)) == []


def test_a_run_without_has_no_trace(finished: Path) -> None:
    assert not (finished / "profile").exists()
