"""Figures for papers: made from the run folder alone, the same bytes each time, and only where there are numbers."""

import shutil
import sys
from pathlib import Path

import pytest
from stages_report_runs import make_run

from greedynas_fast import spaces
from greedynas_fast.cli import main
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import write_json
from greedynas_fast.stages.report.figures import write_figures
from greedynas_fast.stages.report.read import RunRecord, read_run

NAMES = ("training", "similarity", "search")
SPACE = spaces.get("sample")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("figures") / "run", SPACE)
    write_json(folder / "space.json", SPACE.to_dict())
    return folder


def test_figures_are_whole_files_and_repeat_themselves(run: Path, tmp_path: Path) -> None:
    first, second = (write_figures(read_run(shutil.copytree(run, tmp_path / name)), SPACE) for name in ("a", "b"))
    assert sorted(file.name for file in first) == sorted(f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png"))
    for one, other in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes()
        assert content.startswith(b"%PDF" if one.suffix == ".pdf" else b"\x89PNG")
        assert len(content) > 5_000


def test_parts_without_numbers_are_left_out(run: Path, tmp_path: Path) -> None:
    assert write_figures(RunRecord(tmp_path), SPACE) == []
    assert not (tmp_path / "figures").exists()
    trained = shutil.copytree(run, tmp_path / "trained")
    (trained / "search.jsonl").unlink()
    assert {file.stem for file in write_figures(read_run(trained), SPACE)} == {"training", "similarity"}


def test_missing_matplotlib(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"matplotlib, which is missing. pip install 'greedynas_fast\[plot\]'"):
        write_figures(read_run(run), SPACE)
    assert not (run / "figures").exists()


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    assert main(["report", str(copy)]) == 0
    assert not (copy / "figures").exists()
    assert main(["report", str(copy), "--figures"]) == 0
    assert "search.pdf" in capsys.readouterr().out
    assert (copy / "figures" / "search.pdf").is_file()
