"""Table 3: the counts, the paper's figures, and what run folders add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greedynas_fast import spaces
from greedynas_fast.cli import main
from greedynas_fast.errors import InputError
from greedynas_fast.experiments import table3
from greedynas_fast.experiments.table3 import Table3Config
from greedynas_fast.runtime import write_json
from greedynas_fast.stages.architecture import Architecture, PathNetwork, TimmModel


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return table3.run(Table3Config())


def made_run(folder: Path, network: Architecture, source: str, top1: float | None) -> Path:
    """What `retrain` and `evaluate` leave of a network, without its weights."""
    (folder / "retrain").mkdir(parents=True)
    (folder / "config.yaml").write_text("preset: imagenet-mobile\n")
    cost = network.cost()
    facts = {"format_version": 1, **network.facts(), **cost._asdict(), "source": source}
    write_json(folder / "retrain" / "config.json", facts)
    if top1 is not None:
        result = {"split": "test", "resolution": network.resolution, "top1": top1, "top5": 0.9}
        write_json(folder / "result.json", result)
    return folder


def path_network(name: str, **sizes: Any) -> PathNetwork:
    found = spaces.published(name)
    space = spaces.get("mb-se", **sizes)
    return PathNetwork(space, space.parse(found.path_text))


def named(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["name"] == name]


def test_the_rows_without_a_run(document: dict[str, Any]) -> None:
    assert len(document["rows"]) == len(table3.TABLE)
    assert (document["num_classes"], document["resolution"]) == (1000, 224)
    for row in document["rows"]:
        assert (row["params"] is None) == (row["network"] is None)
        assert row["top1"] is row["top5"] is row["run"] is None
    (greedy,) = named(document, "GreedyNAS-B")
    assert (greedy["params"], greedy["macs"]) == (5_207_804, 323_520_704)
    assert greedy["paper"] == {"params": 5_200_000, "macs": 324_000_000, "top1": 0.768, "top5": 0.93}
    (resnet,) = named(document, "ResNet-50")
    assert (resnet["params"], resnet["macs"]) == (25_557_032, 4_089_184_256)


def test_the_counts_agree_with_the_papers(document: dict[str, Any]) -> None:
    """As far as the models are the same (MobileNetV2 has 3.50 M parameters, the paper prints 3.4)."""
    for row in document["rows"]:
        for key, tolerance in (("params", 0.035), ("macs", 0.013)):
            if row[key] is not None and row["paper"][key] is not None and row["name"] != "SE-ResNet-50":
                assert row[key] == pytest.approx(row["paper"][key], rel=tolerance), row["name"]
    assert any(note.startswith("SE-ResNet-50: timm's reduction is 16") for note in document["notes"])


def test_runs_fill_their_rows(tmp_path: Path) -> None:
    searched = spaces.get("mb-se-mix-shuffle")
    found = PathNetwork(searched, searched.parse("0" * searched.num_layers))
    folders = [
        made_run(tmp_path / "b", path_network("GreedyNAS-B"), "GreedyNAS-B", 0.76),
        made_run(tmp_path / "b2", path_network("GreedyNAS-B"), "given", 0.77),
        made_run(tmp_path / "resnet", TimmModel("resnet50", 1000, 3, 224), "timm", 0.78),
        made_run(tmp_path / "s", found, "search", 0.75),
        made_run(tmp_path / "given", found, "given", 0.74),
        made_run(tmp_path / "small", path_network("GreedyNAS-A", num_classes=10, resolution=64), "GreedyNAS-A", 0.9),
        made_run(tmp_path / "new", path_network("GreedyNAS-C"), "GreedyNAS-C", None),
    ]
    document = table3.run(Table3Config(tuple(map(str, folders))))
    assert [(row["top1"], Path(row["run"]).name) for row in named(document, "GreedyNAS-B")] == [
        (0.76, "b"),
        (0.77, "b2"),
    ]
    assert [row["paper"]["top1"] for row in named(document, "GreedyNAS-B")] == [0.768, 0.768]
    (resnet,) = named(document, "ResNet-50")
    assert (resnet["top1"], resnet["top5"], resnet["run"]) == (0.78, 0.9, str(folders[2]))
    (own,) = named(document, "GreedyNASv2-S")
    assert (own["top1"], own["params"], own["macs"]) == (0.75, *found.cost())
    # A path given by hand is not what the paper's search found, and ten classes are another task.
    others = [row for row in document["rows"] if row["group"] == table3.OTHER]
    assert [(row["name"].split()[0], row["top1"]) for row in others] == [
        ("mb-se-mix-shuffle", 0.74),
        ("GreedyNAS-A", 0.9),
    ]
    assert named(document, "GreedyNAS-A")[0]["top1"] is None
    assert document["rows"][-2:] == others
    (missing,) = named(document, "GreedyNAS-C")
    assert (missing["top1"], missing["run"]) == (None, str(folders[6]))
    assert f"{folders[6]}: not measured yet; next: greedynas-fast evaluate {folders[6]}." in document["notes"]
    assert f"{folders[5]}: 10 classes at 64 pixels, another task." in document["notes"]


def test_the_text(document: dict[str, Any]) -> None:
    lines = table3.format_table(document).splitlines()
    (greedy,) = (line.split() for line in lines if line.startswith("GreedyNAS-B"))
    assert greedy == ["GreedyNAS-B", "GreedyNAS-B", "5.2", "5.2", "324", "324", "-", "76.8", "-", "93.0", "-"]
    (spos,) = (line.split() for line in lines if line.startswith("SPOS"))
    assert spos == ["SPOS", "-", "-", "3.4", "-", "328", "-", "74.7", "-", "-", "-"]
    assert [line for line in lines if line.endswith("search space")] == ["mobile search space", "ResNet search space"]
    assert max(map(len, lines)) <= 120


def test_a_model_that_this_timm_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = table3.Entry(table3.MOBILE, "Old", "timm:resnet51", 70.0)
    monkeypatch.setattr(table3, "TABLE", (entry,))
    document = table3.run(Table3Config())
    assert document["rows"][0]["params"] is None
    assert document["notes"][0].startswith("Old: unknown model 'resnet51': the nearest that timm ")


def test_bad_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        table3.run(Table3Config((str(tmp_path / "absent"),)))
    (tmp_path / "config.yaml").write_text("preset: sample\n")
    with pytest.raises(InputError, match=r"has no retrained network yet\. First: greedynas-fast retrain"):
        table3.run(Table3Config((str(tmp_path),)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table3, "TABLE", table3.TABLE[6:8])
    folder = str(made_run(tmp_path / "b", path_network("GreedyNAS-B"), "GreedyNAS-B", 0.76))
    assert main(["experiment", "table3", "--runs", folder, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["top1"] for row in document["rows"]] == [None, 0.76]
    assert document["next"].startswith("greedynas-fast retrain ")
    assert main(["experiment", "table3", "--runs", folder]) == 0
    assert "76.0" in capsys.readouterr().out
    for words, message in (
        (["table3", "--seeds", "2"], "--seeds is an option of table4, not of table3."),
        (["table4", "--bench", "b", "--runs", folder], "--runs is an option of table3, not of table4."),
    ):
        assert main(["experiment", *words]) == 2
        assert message in capsys.readouterr().err
