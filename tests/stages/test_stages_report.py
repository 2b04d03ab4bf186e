"""The HTML report: what it says about a whole run, a partial run, and files that are torn or hostile."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stages_report_runs import GENERATIONS, make_run, write_lines

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.report import build_report, report, write_report

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def having(self, css: str) -> list[tuple[str, dict[str, str | None]]]:
        return [(tag, attrs) for tag, attrs in self.tags if css in (attrs.get("class") or "").split()]


def section(text: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}">.*?</section>', text, re.DOTALL)
    assert found, f"no section {anchor}"
    return found.group(0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return spaces.get("sample")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, space: SearchSpace) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "letters-1", space)


@pytest.fixture
def run(tmp_path: Path, whole_run: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole_run, tmp_path / "letters-1"))


def test_page_of_a_whole_run(whole_run: Path, space: SearchSpace) -> None:
    text = build_report(whole_run, space)
    page = Page(text)
    best = json.loads((whole_run / "best.json").read_text())
    cost = space.cost(space.parse(best["path"]))
    results = Page(section(text, "results")).text
    assert "94.31 %" in results
    assert f"{cost.params / 1e3:.4g} k" in results
    assert f"{cost.macs / 1e6:.4g} M" in results
    assert space.format(space.parse(best["path"])) in results
    assert best["path"] in results
    assert page.having("missing") == []
    assert "letters-1" in page.text
    assert "photos" in page.text
    assert len(page.having("done")) == 4


@pytest.mark.parametrize("sampler", ["uniform", "fair", "filter"])
def test_a_run_that_trains_no_filter_says_so(run: Path, space: SearchSpace, sampler: str) -> None:
    for file in (run / "filter").iterdir():
        file.unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["kind"] != "update"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["sampler"] = sampler
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = build_report(run, space)
    for anchor in ("filter", "shrinkage"):
        page = Page(section(text, anchor))
        assert (f"its sampler is {sampler}" in page.text) == (sampler != "filter")
        assert len(page.having("missing")) == (sampler == "filter")
    assert ("A fair group of paths of the supernet" in section(text, "train")) == (sampler == "fair")


def test_page_is_self_contained_and_the_same_each_time(whole_run: Path, space: SearchSpace) -> None:
    text = build_report(whole_run, space)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object")]
    for _, attrs in page.tags:
        assert (attrs.get("href") or "#").startswith("#")
        assert "src" not in attrs
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    assert build_report(whole_run, space) == text


def test_no_coordinate_is_missing(whole_run: Path, space: SearchSpace) -> None:
    for _, attrs in Page(build_report(whole_run, space)).tags:
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d"):
            assert not re.search("nan|inf", attrs.get(name) or "", re.IGNORECASE)


def test_classes_that_are_used_are_styled(whole_run: Path, space: SearchSpace) -> None:
    text = build_report(whole_run, space)
    style = text.split("<style>")[1].split("</style>")[0]
    used = {css for tag, attrs in Page(text).tags for css in (attrs.get("class") or "").split() if tag != "svg"}
    assert {css for css in used if not re.search(rf"\.{re.escape(css)}\b", style)} == set()


def test_given_path_that_was_retrained_is_not_shown_with_the_figures_of_the_best_one(
    run: Path, space: SearchSpace
) -> None:
    (run / "retrain" / "config.json").write_text(json.dumps({"path": "000000"}))
    results = Page(section(build_report(run, space), "results")).text
    assert space.format([0] * 6) in results
    assert "94.31 %" not in results
    assert "on the supernet" not in results
    assert "The final accuracy is not measured yet." in results
    (run / "result.json").write_text(json.dumps({"top1": 0.5, "split": "validation", "path": "000000"}))
    results = Page(section(build_report(run, space), "results")).text
    assert "50.00 % validation accuracy, retrained alone" in results


def test_search_part(whole_run: Path, space: SearchSpace) -> None:
    text = section(build_report(whole_run, space), "search")
    rows = [json.loads(line) for line in (whole_run / "search.jsonl").read_text().splitlines()]
    page = Page(text)
    assert f"{len(rows)} paths evaluated" in page.text
    assert f"in {GENERATIONS} generations" in page.text
    assert len(page.having("ring")) == 2  # one in the legend, one in the chart
    on_front = [
        row
        for row in rows
        if not any(
            other["macs"] <= row["macs"]
            and other["accuracy"] >= row["accuracy"]
            and (other["macs"], other["accuracy"]) != (row["macs"], row["accuracy"])
            for other in rows
        )
    ]
    assert len(page.having("on")) == len(on_front) > 2
    assert page.having("mark")  # the limit
    best = json.loads((whole_run / "best.json").read_text())
    first_row = text.split("<tbody>")[1].split("</tr>")[0]
    assert best["path"] in first_row


def test_shrinkage_part(whole_run: Path, space: SearchSpace) -> None:
    text = section(build_report(whole_run, space), "shrinkage")
    rows = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    merges = [merge for row in rows for merge in row.get("merges", [])]
    assert f"{len(merges)} of {sum(space.num_ops)} operations merged" in text
    table = Page(text).text
    for merge in merges:
        assert merge["removed"] in table
        assert f"{merge['similarity']:.2f}" in table
    strongest = max(merges, key=lambda merge: merge["similarity"])
    first_row = text.split("<tbody>")[1].split("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(?:<code>)?([^<]*)", first_row)
    assert cells[:4] == [
        str(strongest["layer"] + 1),
        strongest["removed"],
        strongest["kept"],
        f"{strongest['similarity']:.2f}",
    ]
    assert len(Page(text).having("bare")) == space.num_layers - 1
    similarity = np.load(whole_run / "filter" / "update-008.npz")["similarity"]
    ops = space.ops[0]
    assert f"{ops[1]} and {ops[0]}: {similarity[0, 1, 0]:.2g}" in text


def test_network_part_has_a_row_for_each_layer(whole_run: Path, space: SearchSpace) -> None:
    text = section(build_report(whole_run, space), "network")
    best = json.loads((whole_run / "best.json").read_text())
    labels = re.findall(r'<text class="label"[^>]*>([^<]*)', text)
    assert labels == [space.ops[layer][op] for layer, op in enumerate(space.parse(best["path"]))]
    assert len(Page(text).having("se")) == sum("_SE" in name for name in labels)
    assert len(Page(text).having("skip")) == labels.count("ID")


@pytest.mark.parametrize("name", ["mb-se-mix-shuffle", "res50-se", "nas-bench-macro"])
def test_every_kind_of_operation_is_drawn(tmp_path: Path, name: str) -> None:
    space = spaces.get(name)
    folder = tmp_path / "run"
    folder.mkdir()
    for first in range(0, space.max_ops, space.num_layers):
        path = [min(first + layer, space.max_ops - 1) for layer in range(space.num_layers)]
        (folder / "best.json").write_text(json.dumps({"path": space.format(path, "digits")}))
        text = section(build_report(folder, space), "network")
        assert re.findall(r'<text class="label"[^>]*>([^<]*)', text) == [space.ops[0][op] for op in path]
        Page(text)


def test_first_matrix_is_small_too_where_a_layer_has_very_many_operations(tmp_path: Path) -> None:
    sample = spaces.get("sample").to_dict()
    names = [f"MB{e}_K{k}{se}" for e in (1, 2, 3, 4, 5, 6) for k in (3, 5, 7) for se in ("", "_SE")][:30]
    lines = ["name: wide", "stem: {channels: 16}", f"operations: [{', '.join(names)}]", "head: {channels: 32}"]
    lines += ["in_channels: 1", "num_classes: 3", "resolution: 28", "stages: [{channels: 24, layers: 2}]"]
    (tmp_path / "wide.yaml").write_text("\n".join(lines))
    space = spaces.get(str(tmp_path / "wide.yaml"))
    assert space.max_ops == 30 > len(sample["layers"][0]["ops"])
    text = section(build_report(make_run(tmp_path / "run", space), space), "shrinkage")
    assert len(Page(text).having("bare")) == 2


PARTS = {
    "config.yaml": "reproduce",
    "commands.txt": "reproduce",
    "metrics.jsonl": "train",
    "search.jsonl": "search",
    "filter": "shrinkage",
    "best.json": "results",
}


@pytest.mark.parametrize("name", [*PARTS, "retrain", "result.json"])
def test_every_part_is_optional(run: Path, space: SearchSpace, name: str) -> None:
    target = run / name
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    Page(build_report(run, space))


def test_empty_folder_names_the_command_of_each_part(tmp_path: Path, space: SearchSpace) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    page = Page(build_report(folder, space))
    commands = re.findall(r"greedynas-fast (\w+)", page.text)
    assert set(commands) == {"train", "search", "retrain"}
    assert f"greedynas-fast train --run '{folder}'" in page.text
    assert f"greedynas-fast search '{folder}'" in page.text
    assert len(page.having("none")) == 4


def test_run_in_which_only_training_ran(run: Path, space: SearchSpace) -> None:
    for name in ("search.jsonl", "best.json", "result.json"):
        (run / name).unlink()
    shutil.rmtree(run / "retrain")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row for row in rows if row["stage"] == "train"])
    text = build_report(run, space)
    assert "<svg" in section(text, "train")
    assert "<svg" in section(text, "filter")
    for part, command in (("search", "search"), ("network", "search"), ("retrain", "retrain")):
        assert f"greedynas-fast {command}" in section(text, part)
    assert len(Page(text).having("done")) == 1
    assert len(Page(text).having("none")) == 3


def test_training_under_way_in_warm_up(run: Path, space: SearchSpace) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row for row in rows if row["stage"] == "train" and row["step"] < 1000])
    for name in ("search.jsonl", "best.json"):
        (run / name).unlink()
    text = build_report(run, space)
    assert "warm-up" in section(text, "filter")
    assert "train, under way" in Page(text).text


def test_collapsed_filters_are_said(whole_run: Path, space: SearchSpace) -> None:
    assert "1 of 9 filters collapsed and rejected nothing (at step 2500)" in build_report(whole_run, space)


def test_hostile_text_is_escaped(run: Path, space: SearchSpace) -> None:
    evil = "<script>alert(1)</script>&\"'"
    hostile = run.parent / 'x"<b>run'
    run.rename(hostile)
    (hostile / "commands.txt").write_text(f"greedynas-fast train {evil}\n")
    (hostile / "config.yaml").write_text(json.dumps({"data": {"root": evil}, "search": {"max_macs": evil}}))
    best = json.loads((hostile / "best.json").read_text())
    write_lines(hostile / "search.jsonl", [{**best, "index": 0, "generation": 0, "path": evil}])
    (hostile / "best.json").write_text(json.dumps({**best, "path": evil}))
    merge = {"layer": 0, "kept": evil, "removed": f"<code>{evil}", "similarity": 0.9}
    with (hostile / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "train", "kind": "update", "step": 9000, "merges": [merge]}) + "\n")
    text = build_report(hostile, space)
    page = Page(text)
    assert "<script" not in text
    assert "<b>run" not in text
    assert page.text.count("<script>alert(1)</script>&\"'") >= 5


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null", '"text"', "[1]", "true", "1e400"])
def test_values_that_are_no_numbers(run: Path, space: SearchSpace, value: str) -> None:
    for name in ("metrics.jsonl", "search.jsonl", "best.json", "result.json"):
        text = (run / name).read_text()
        keys = "loss|accuracy|lr|q|acceptance|images_per_s|auroc|agreement|kappa|macs|similarity|generation|top1"
        (run / name).write_text(re.sub(rf'"({keys})": [-\d.e]+', rf'"\1": {value}', text))
    page = Page(build_report(run, space))
    assert not re.search(r"\bnan\b|\binf\b", page.text, re.IGNORECASE)
    assert "The final accuracy is not measured yet." in page.text


def test_torn_last_line_is_no_problem_and_a_broken_middle_one_is_said(run: Path, space: SearchSpace) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "kind": "st')
    with (run / "search.jsonl").open("ab") as file:
        file.write(b'{"index": 7, "gener\xff')
    assert "could not be read" not in build_report(run, space)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:10], "###", "3", *lines[10:]]))
    assert "metrics.jsonl: 2 lines could not be read." in build_report(run, space)


def test_step_that_was_logged_twice_counts_once(run: Path, space: SearchSpace) -> None:
    once = build_report(run, space)
    for name in ("metrics.jsonl", "search.jsonl"):
        text = (run / name).read_text()
        (run / name).write_text(text + text)
    assert build_report(run, space) == once


@pytest.mark.parametrize("name", ["best.json", "result.json", "retrain/config.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null"])
def test_broken_small_files(run: Path, space: SearchSpace, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    text = build_report(run, space)
    Page(text)
    if content == b"{":
        assert name.rsplit("/", 1)[-1] in section(text, "results")


def test_broken_newest_filter_file_falls_back_to_the_one_before(run: Path, space: SearchSpace) -> None:
    whole = (run / "filter" / "update-008.npz").read_bytes()
    (run / "filter" / "update-009.npz").write_bytes(whole[: len(whole) // 2])
    text = build_report(run, space)
    assert "(update 008)" in text
    assert "update-009.npz cannot be read" in text


def test_similarity_of_another_space(run: Path) -> None:
    assert "belong to another search space" in build_report(run, spaces.get("nas-bench-macro"))


def test_path_of_another_space_counts_as_none(run: Path, space: SearchSpace) -> None:
    for name in ("best.json", "retrain/config.json"):
        (run / name).write_text(json.dumps({"path": "000"}))
    assert "No path has been chosen yet." in build_report(run, space)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = (
    "step",
    "loss",
    "accuracy",
    "lr",
    "q",
    "acceptance",
    "auroc",
    "agreement",
    "merges",
    "val_accuracy",
    "collapsed",
)
ROWS = st.fixed_dictionaries(
    {"stage": st.sampled_from(["train", "retrain"]), "kind": st.sampled_from(["step", "update", "epoch", "final"])},
    optional=dict.fromkeys(KEYS, JSON_VALUES),
)
SEARCHED = st.dictionaries(
    st.sampled_from(["index", "generation", "path", "accuracy", "loss", "macs", "params"]), JSON_VALUES, max_size=7
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=5), searched=st.lists(SEARCHED, max_size=4), best=SEARCHED)
def test_any_rows_give_a_page(
    tmp_path: Path, space: SearchSpace, rows: list[dict[str, object]], searched: list[dict[str, object]], best: object
) -> None:
    write_lines(tmp_path / "metrics.jsonl", rows)
    write_lines(tmp_path / "search.jsonl", searched)
    (tmp_path / "best.json").write_text(json.dumps(best))
    page = Page(build_report(tmp_path, space))
    for _, attrs in page.tags:
        assert not re.search("nan|inf", f"{attrs.get('cx')}{attrs.get('y1')}{attrs.get('d')}", re.IGNORECASE)


def test_write_report_replaces_the_old_page(run: Path, space: SearchSpace) -> None:
    (run / "report.html").write_text("old")
    assert write_report(run, space) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8") == build_report(run, space)
    assert [file.name for file in run.iterdir() if "tmp" in file.name] == []


def test_missing_folder(tmp_path: Path, space: SearchSpace) -> None:
    with pytest.raises(InputError, match="does not exist"):
        build_report(tmp_path / "nothing", space)


def test_command_reads_the_space_of_the_run(run: Path, space: SearchSpace) -> None:
    with pytest.raises(InputError, match="has not started yet"):
        report(run, None, None)  # type: ignore[arg-type]
    (run / "space.json").write_text(json.dumps(space.to_dict()))
    for has_result, following in ((True, f"export {run} "), (False, f"run --run {run}")):
        if not has_result:
            (run / "result.json").unlink()
        answer = report(run, None, None)  # type: ignore[arg-type]
        assert answer["report"] == str(run / "report.html")
        assert answer["next"].startswith(f"greedynas-fast {following}")
    assert (run / "report.html").read_text(encoding="utf-8") == build_report(run, space)
