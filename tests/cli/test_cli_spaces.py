"""`spaces` and `cost`, and that they stay light."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greedynas_fast.cli import main

METHOD = Path(__file__).parents[2].parent / "shared" / "METHOD.md"
GREEDYNAS_B = (
    "MB3_K5_SE MB3_K5_SE MB3_K5_SE ID | MB3_K5_SE MB3_K7_SE MB3_K5_SE MB3_K3 | MB6_K5 ID MB3_K7_SE MB3_K7_SE | "
    "MB3_K3_SE MB3_K5 MB3_K5 MB3_K7_SE | MB6_K5_SE MB3_K7_SE MB3_K3_SE MB3_K7_SE | MB6_K7_SE"
)
SPACES = ("mb-se", "mb-se-mix", "mb-se-mix-shuffle", "res50-se", "nas-bench-macro", "sample")

Capture = pytest.CaptureFixture[str]


def as_json(capsys: Capture, *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


@pytest.mark.parametrize(
    "path",
    [
        [GREEDYNAS_B],
        [GREEDYNAS_B.replace(" | ", ",").replace(" ", ",")],
        GREEDYNAS_B.replace("|", "").split(),
        ["GreedyNAS-B"],
        ["greedynas-b"],
        ["777c78704c886118a868b"],
    ],
)
def test_cost_of_greedynas_b(capsys: Capture, path: list[str]) -> None:
    result = as_json(capsys, "cost", "mb-se", *path)
    assert (result["params"], result["macs"]) == (5_207_804, 323_520_704)
    assert result["path"] == GREEDYNAS_B


@pytest.mark.skipif(not METHOD.exists(), reason="the project's shared notes are not here")
def test_cost_of_the_paths_in_the_notes(capsys: Capture) -> None:
    text = METHOD.read_text()
    for name in ("GreedyNAS-A", "GreedyNAS-B", "GreedyNAS-C"):
        (path,) = re.findall(rf"^{name}: (.*)$", text, re.M)
        params, macs = re.findall(rf"^\| {name} \| ([\d,]+) \| ([\d,]+)", text, re.M)[0]
        result = as_json(capsys, "cost", "mb-se", path)
        assert result["params"] == int(params.replace(",", ""))
        assert result["macs"] == int(macs.replace(",", ""))


def test_cost_reads_a_path_file(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "path.txt"
    file.write_text(GREEDYNAS_B + "\n")
    assert as_json(capsys, "cost", "mb-se", f"@{file}")["params"] == 5_207_804


def test_cost_takes_sizes(capsys: Capture) -> None:
    result = as_json(capsys, "cost", "mb-se", "GreedyNAS-B", "--resolution", "112", "--num-classes", "10")
    assert (result["resolution"], result["num_classes"]) == (112, 10)
    assert result["params"] == 5_207_804 - 990 * 1281
    assert result["macs"] < 323_520_704 / 3


def test_cost_for_people(capsys: Capture) -> None:
    assert main(["cost", "mb-se", "GreedyNAS-B"]) == 0
    captured = capsys.readouterr()
    assert "5,207,804" in captured.out
    assert "323,520,704" in captured.out


@pytest.mark.parametrize(
    ("words", "following"),
    [
        (["spaces"], "greedynas-fast spaces NAME"),
        (["spaces", "mb-se"], "greedynas-fast train --space.name mb-se"),
        (["cost", "nas-bench-macro", "01201201"], "greedynas-fast retrain runs/path-1 --space.name nas-bench-macro "),
    ],
)
def test_the_next_command_ends_the_output(capsys: Capture, words: list[str], following: str) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"Next: {following}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mb-se"], "missing: path"),
        (["mb-se", "MB3_K5_SE"], "21"),
        (["mb-se", "@/no/such/file"], "cannot read the path file /no/such/file: No such file"),
        (["mb-s", "0"], "mb-se"),
        (["mb-se", "GreedyNAS-B", "--resolution", "x"], "--resolution must be a whole number, got 'x'"),
        (["mb-se", "GreedyNAS-B", "--resolutio", "9"], "unknown option --resolutio. The nearest known one is --res"),
        (["mb-se", "GreedyNAS-B", "--resolution"], "expected one argument"),
        (["mb-se", "GreedyNAS-B", "--resolution", "-3"], "resolution"),
    ],
)
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_bad_cost(capsys: Capture, words: list[str], message: str, json_option: list[str]) -> None:
    assert main(["cost", *words, *json_option]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err


def test_spaces_lists_all(capsys: Capture) -> None:
    rows = as_json(capsys, "spaces")
    assert tuple(row["name"] for row in rows) == SPACES
    first = rows[0]
    assert (first["num_layers"], first["max_ops"], first["size"]) == (21, 13, 13**21)
    assert round(first["supernet_params"] / 1e6, 2) == 45.67
    assert main(["spaces"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SPACES)


def test_one_space(capsys: Capture) -> None:
    result = as_json(capsys, "spaces", "nas-bench-macro")
    assert result["size"] == 3**8
    assert len(result["layers"]) == 8
    assert main(["spaces", "nas-bench-macro"]) == 0
    assert "ID MB3_K3 MB6_K5" in capsys.readouterr().out


def _loaded_modules(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import greedynas_fast, greedynas_fast.spaces",
        "from greedynas_fast.cli import main; main(['--help'])",
        "from greedynas_fast.cli import main; main(['spaces'])",
        "from greedynas_fast.cli import main; main(['cost', 'mb-se', 'GreedyNAS-B'])",
    ],
)
def test_light_import(code: str) -> None:
    heavy = {"torch", "torchvision", "timm", "pymoo", "rich", "matplotlib", "onnx", "tensorboard", "safetensors", "PIL"}
    loaded = _loaded_modules(code)
    assert not heavy & loaded
    assert "greedynas_fast" in loaded


def test_networks_are_made_without_symbolic_shapes() -> None:
    """They would cost every command 0.4 s."""
    loaded = _loaded_modules(
        "from greedynas_fast import spaces\n"
        "from greedynas_fast.filter import PathFilter\n"
        "from greedynas_fast.supernet import Supernet\n"
        "space = spaces.get('sample')\n"
        "Supernet(space), PathFilter(space)"
    )
    assert "torch" in loaded
    assert "sympy" not in loaded
