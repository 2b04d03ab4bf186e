"""The parts about training: supernet, path filter and operation shrinkage, retraining of the found network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.report import html
from greedynas_fast.stages.report.charts import Kind, Mark, Series, line_chart, smooth
from greedynas_fast.stages.report.heatmap import heatmap
from greedynas_fast.stages.report.read import Row, RunRecord, Similarity, column, setting, text_of

SHARE = (0.0, 1.0)
SMOOTH_SHARE = 60  # the mean reaches 1/60 of the curve to each side: the trend is seen, and a jump too
MERGES_SHOWN = 12
LARGEST_LABELLED = 24  # operations a layer up to which the first matrix gets names and numbers


def _curves(
    rows: Sequence[Row], key: str, title: str, slot: int, kind: Kind = "plain", marks: Sequence[Mark] = ()
) -> str:
    """A noisy value over steps: the raw curve behind its moving average."""
    x, y = column(rows, "step"), column(rows, key)
    name = title.lower()
    if len(y) < SMOOTH_SHARE:
        return line_chart([Series(name, x, y, slot)], title=title, y_kind=kind, marks=marks)
    mean = Series(name, x, smooth(y, len(y) // SMOOTH_SHARE), slot)
    limits = SHARE if kind == "percent" else None
    raw = Series(name, x, y, slot, "faint")
    return line_chart([raw, mean], title=title, y_kind=kind, limits=limits, marks=marks)


def training_section(record: RunRecord) -> str:
    """Loss and accuracy of the sampled paths, the learning rate and the speed."""
    rows = record.select("train", "step")
    if not rows:
        return html.section("train", "Supernet training", html.missing("No training log yet.", record.folder, "train"))
    updates = record.select("train", "update")
    marks = [Mark(float(column(updates[:1], "step")[0]), "first filter", "x")] if updates else []
    charts = [
        _curves(rows, "loss", "Training loss", 1, marks=marks),
        _curves(rows, "accuracy", "Training accuracy", 3, "percent", marks),
        line_chart(
            [Series("learning rate", column(rows, "step"), column(rows, "lr"), 4)],
            title="Learning rate",
            limits=(0, 1e9),
        ),
        _curves(rows, "images_per_s", "Images per second", 6),
    ]
    trained = "A fair group of paths" if setting(record.config, "train.sampler") == "fair" else "One path"
    lead = f"{trained} of the supernet is trained at each step. Faint: each logged step; strong: moving average."
    return html.section("train", "Supernet training", html.grid(charts), lead)


def filter_section(record: RunRecord) -> str:
    """How hard the filter rejects, how good it is, and how much successive filters agree."""
    steps, updates = record.select("train", "step"), record.select("train", "update")
    if not updates:
        if (without := _without_filter(record)) is not None:
            return html.section("filter", "Path filter", without)
        text = "No path filter has been trained yet: the warm-up with uniform paths comes first."
        return html.section("filter", "Path filter", html.missing(text, record.folder, "train"))
    x = column(updates, "step")
    acceptance = column(steps, "acceptance")
    pressure = [
        Series("q, the share to reject", column(steps, "step"), column(steps, "q"), 2),
        Series("acceptance", column(steps, "step"), acceptance, 1),
    ]
    if not np.isfinite(acceptance).any():
        pressure = [
            Series("q, the share to reject", x, column(updates, "q"), 2),
            Series("acceptance", x, column(updates, "acceptance"), 1),
        ]
    stop = setting(record.config, "train.agreement_threshold")
    marks = [Mark(float(stop), "stop")] if isinstance(stop, int | float) else []
    charts = [
        line_chart(pressure, title="Rejection", y_kind="percent", limits=SHARE),
        line_chart(
            [Series("AUROC", x, column(updates, "auroc"), 3)],
            title="Filter AUROC on held-out scored paths",
            limits=SHARE,
            marks=[Mark(0.5, "chance")],
        ),
        line_chart(
            [
                Series("agreement u", x, column(updates, "agreement"), 4),
                Series("Cohen's kappa", x, column(updates, "kappa"), 5),
            ],
            title="Agreement with the filter before",
            marks=marks,
        ),
        _curves(updates, "mean_loss", "Validation loss of the scored uniform paths", 6),
    ]
    collapsed = [text_of(u.get("step")) for u in updates if u.get("collapsed") is True]
    extra = ""
    if collapsed:
        steps_text = ", ".join(collapsed)
        extra = html.warning(
            f"{len(collapsed)} of {len(updates)} filters collapsed and rejected nothing (at step {steps_text})."
        )
    lead = (
        "At each update some paths are scored, a new filter learns which are weak, and what it finds weak is no longer "
        "trained."
    )
    return html.section("filter", "Path filter", extra + html.grid(charts), lead)


def shrinkage_section(record: RunRecord, space: SearchSpace) -> str:
    """Similarity matrices of the last update (as Figure 6) and the merged operations (as Table 5)."""
    merges = _merges(record)
    if record.similarity is None and not merges:
        if (without := _without_filter(record)) is not None:
            return html.section("shrinkage", "Operation shrinkage", without)
        text = "No operation similarities yet: they come with the first path filter."
        return html.section("shrinkage", "Operation shrinkage", html.missing(text, record.folder, "train"))
    lead = (
        "Operations of a layer whose embeddings in the path filter are similar do the same job: of such a pair the one "
        "with fewer multiply-accumulates stays."
    )
    first, others = _matrices(record.similarity, space) if record.similarity is not None else ("", "")
    beside = f'<div class="beside">{first}<div>{_merge_table(merges, sum(space.num_ops))}</div></div>'
    return html.section("shrinkage", "Operation shrinkage", beside + others, lead)


def _without_filter(record: RunRecord) -> str | None:
    """The remark that a run never trains a filter, if it does not."""
    sampler = setting(record.config, "train.sampler")
    if sampler not in ("uniform", "fair"):
        return None
    return html.note(f"This run trains no path filter, so it merges no operations: its sampler is {sampler}.")


def _merge_table(merges: Sequence[tuple[str, ...]], total: int) -> str:
    """The most similar pairs, as Table 5, and the rest folded away."""
    out = f"<h3>{len(merges)} of {total} operations merged ({100 * len(merges) / total:.0f} %)</h3>"
    head = ("Layer", "Removed", "Retained", "Similarity", "Step")
    for shown in (merges[:MERGES_SHOWN], merges[MERGES_SHOWN:]):
        if shown:
            rows = html.table(head, shown, numeric=(0, 3, 4), fixed=(1, 2))
            more = f"<details><summary>{len(shown)} more, less similar</summary>{rows}</details>"
            out += rows if shown[0] is merges[0] else more
    return out


def _merges(record: RunRecord) -> list[tuple[str, ...]]:
    """Layer (from 1), removed and kept operation, similarity, step; the most similar first."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for update in record.select("train", "update"):
        merges = update.get("merges")
        for merge in merges if isinstance(merges, list) else []:
            if not isinstance(merge, dict):
                continue
            layer, similarity = column([merge], "layer")[0], column([merge], "similarity")[0]
            name = f"{layer + 1:.0f}" if np.isfinite(layer) else "–"
            kept, removed = text_of(merge.get("kept")), text_of(merge.get("removed"))
            cells = (
                name,
                removed,
                kept,
                f"{similarity:.2f}" if np.isfinite(similarity) else "–",
                text_of(update.get("step")),
            )
            rows.append((-similarity if np.isfinite(similarity) else np.inf, cells))
    return [cells for _, cells in sorted(rows, key=lambda row: row[0])]


def _matrices(similarity: Similarity, space: SearchSpace) -> tuple[str, str]:
    """The first layer large and named; the others small."""
    layers, count = similarity.allowed.shape
    if layers != space.num_layers or count != space.max_ops:
        return html.warning("The similarity matrices in the run folder belong to another search space."), ""
    first, others = "", ""
    smalls = []
    for layer in range(layers):
        ops = space.ops[layer]
        matrix = similarity.matrices[layer, : len(ops), : len(ops)]
        left = int(similarity.allowed[layer].sum())
        if layer == 0 and len(ops) <= LARGEST_LABELLED:
            key = '<div class="legend"><span>−1<i class="scale"></i>1 cosine similarity</span></div>'
            cell = 40 if len(ops) <= 16 else 30
            svg = heatmap(matrix, ops, title="Operation similarities, layer 1", cell=cell, labelled=True, lower=True)
            heading = f"<figcaption>Layer 1: {left} of {len(ops)} operations left ({similarity.update})</figcaption>"
            first = f'<figure class="matrix">{heading}{key}{svg}</figure>'
            continue
        svg = heatmap(matrix, ops, title=f"Operation similarities, layer {layer + 1}", cell=1, labelled=False)
        smalls.append(f"<div>{svg}layer {layer + 1} · {left} left</div>")
    if smalls:
        order = html.note("Rows and columns in the order of layer 1.") if first and len({*space.ops}) == 1 else ""
        title = "The other layers" if first else "Operation similarities of each layer"
        others = f'<h3>{title}</h3>{order}<div class="smalls">{"".join(smalls)}</div>'
    return first, others


def retraining_section(record: RunRecord) -> str:
    """Loss and accuracy of the found network, trained alone from new weights."""
    steps, epochs = record.select("retrain", "step"), record.select("retrain", "epoch")
    if not steps and not epochs:
        text = "The found network has not been trained alone yet."
        return html.section("retrain", "Retraining", html.missing(text, record.folder, "retrain"))
    train, evals = steps or epochs, record.select("retrain", "eval")
    x, accuracy = column(train, "step"), column(train, "accuracy")
    curves = [
        Series("training", x, smooth(accuracy, max(1, len(x) // SMOOTH_SHARE)), 1),
        Series("validation", column(epochs, "step"), column(epochs, "val_accuracy"), 2),
        Series("test, averaged weights", column(evals, "step"), column(evals, "top1"), 3),
        Series("test, raw weights", column(evals, "step"), column(evals, "raw_top1"), 4),
    ]
    charts = [
        line_chart(curves, title="Accuracy", y_kind="percent", limits=SHARE),
        _curves(train, "loss", "Training loss", 1),
    ]
    return html.section(
        "retrain", "Retraining", html.grid(charts), "The found network, trained alone from new weights."
    )
