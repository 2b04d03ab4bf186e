"""Figures of a run for papers: `training`, `similarity` and `search`, each as PDF and PNG, drawn by matplotlib.

Sizes are inches. The files hold no date and follow no matplotlibrc, so that the same run gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.report.charts import number_text, smooth, thin
from greedynas_fast.stages.report.read import Floats, RunRecord, Similarity, column, number, setting, text_of
from greedynas_fast.stages.report.searching import front
from greedynas_fast.stages.report.training import LARGEST_LABELLED, SMOOTH_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What each format says of itself; None leaves out what matplotlib would write: the date and its own version.
METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"Creator": "greedynas_fast", "Producer": None, "CreationDate": None},
    "png": {"Software": None},
}
# The colours of the page on light ground (`style.py`).
BLUE, ORANGE, GREEN, RED, INK, SOFT = "#2b6cb0", "#cf6f1e", "#1f8f72", "#bf3f66", "#1f2328", "#8a9199"
STYLE: dict[str, Any] = {
    "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#ecece7", "grid.linewidth": 0.6, "xtick.color": SOFT,
    "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "text.color": INK, "axes.labelcolor": INK,
    "legend.frameon": False, "lines.linewidth": 1.3, "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}  # fmt: skip


def write_figures(record: RunRecord, space: SearchSpace) -> list[Path]:
    """Writes the figures that the run has numbers for into `figures/` of its folder.

    Args:
        record: the run, as read from its folder.
        space: the search space of the run.

    Returns:
        The files in order of writing; empty if the run has nothing to show yet.

    Raises:
        InputError: matplotlib is missing.
    """
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError("--figures needs matplotlib, which is missing. pip install 'greedynas_fast[plot]'") from error
    from greedynas_fast.runtime import atomic_write

    folder, files = record.folder / "figures", []
    with style.context(["default", STYLE]):
        for name, draw in (("training", _training), ("similarity", _similarity), ("search", _search)):
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            if not draw(record, space, figure):
                continue
            folder.mkdir(exist_ok=True)
            for suffix, metadata in METADATA.items():
                files.append(folder / f"{name}.{suffix}")
                atomic_write(files[-1], partial(figure.savefig, format=suffix, dpi=250, metadata=metadata))
    return files


def _curve(axes: Axes, x: Floats, y: Floats, colour: str, name: str | None = None) -> None:
    """A noisy value over steps: the raw curve, faint, behind its moving average."""
    if len(y) >= SMOOTH_SHARE:
        axes.plot(*thin(x, y, 2000), color=colour, alpha=0.25, linewidth=0.6)
        y = np.where(np.isfinite(y), smooth(y, len(y) // SMOOTH_SHARE), np.nan)
    axes.plot(*thin(x, y, 2000), color=colour, label=name)


def _percent(share: float, _: object) -> str:
    return f"{100 * share:.4g}%"


def _training(record: RunRecord, space: SearchSpace, figure: Figure) -> bool:
    """Loss and accuracy of the sampled paths; q and the acceptance below."""
    rows, updates = record.select("train", "step"), record.select("train", "update")
    steps = column(rows, "step")
    curves = {key: column(rows, key) for key in ("loss", "accuracy", "q", "acceptance")}
    known = {key: y for key, y in curves.items() if (np.isfinite(steps) & np.isfinite(y)).any()}
    if not known:
        return False
    top = [key for key in known if key in ("loss", "accuracy")]
    bottom = ["shares"] * max(1, len(top)) if len(known) > len(top) else []
    layout: list[Any] = [line for line in (top, bottom) if line]
    figure.set_size_inches(7.2, 0.3 + 1.9 * len(layout))
    panels = figure.subplot_mosaic(layout, sharex=True)
    looks = {
        "loss": (BLUE,),
        "accuracy": (GREEN,),
        "q": (ORANGE, "share to reject, q"),
        "acceptance": (BLUE, "accepted"),
    }
    for key, y in known.items():
        _curve(panels[key if key in top else "shares"], steps, y, *looks[key])
    first = number(updates[0], "step") if updates else math.nan
    for key, axes in panels.items():
        axes.set(xlabel="step", ylabel="share of paths" if key == "shares" else f"training {key}")
        axes.tick_params(labelbottom=True)
        if key != "loss":
            axes.yaxis.set_major_formatter(_percent)
        if math.isfinite(first):
            axes.axvline(first, color=SOFT, linestyle="--", linewidth=0.8)
            axes.text(first, 0.94, " first filter", transform=axes.get_xaxis_transform(), color=SOFT, fontsize=6.5)
    if bottom:
        panels["shares"].set_ylim(0, 1.02)
        panels["shares"].legend(loc="center right")
    return True


def _similarity(record: RunRecord, space: SearchSpace, figure: Figure) -> bool:
    """The lower triangle of the first layer with names and numbers, as Figure 6; the other layers small beside it."""
    similarity = record.similarity
    if similarity is None or similarity.allowed.shape != (space.num_layers, space.max_ops):
        return False
    others = space.num_layers - 1
    columns = max(1, round(math.sqrt(0.75 * others)))
    widths = [max(3.4, 0.27 * space.num_ops[0] + 0.7), 0.9 * columns][: space.num_layers]
    figure.set_size_inches(sum(widths), max(widths[0], 1.08 * math.ceil(others / columns)))
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    axes = figure.add_subplot(grid[0])
    image = _matrix(axes, similarity, space, 0)
    _label(axes, similarity, space)
    bar = figure.colorbar(image, cax=axes.inset_axes((0.56, 0.9, 0.4, 0.03)), orientation="horizontal")
    bar.set_ticks([-1, 0, 1])
    merged = not similarity.allowed[0, : len(space.ops[0])].all()
    bar.set_label("cosine similarity" + ("\n(grey name: merged away)" if merged else ""), fontsize=7)
    bar.outline.set_visible(False)
    panels = grid[-1].subgridspec(max(1, math.ceil(others / columns)), columns)
    for layer in range(1, space.num_layers):
        _matrix(figure.add_subplot(panels[divmod(layer - 1, columns)]), similarity, space, layer)
    return True


def _matrix(axes: Axes, similarity: Similarity, space: SearchSpace, layer: int) -> Any:
    """The similarities of one layer, without names."""
    count = space.num_ops[layer]
    matrix = similarity.matrices[layer, :count, :count]
    if layer == 0:
        matrix = np.where(np.tri(count, dtype=np.bool_), matrix, np.nan)
    axes.set_title(f"layer {layer + 1}: {similarity.allowed[layer].sum()} of {count}", fontsize=6, pad=3)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")


def _label(axes: Axes, similarity: Similarity, space: SearchSpace) -> None:
    """Names the operations of the first layer, those that were merged away in grey, and writes the numbers."""
    names = space.ops[0]
    axes.set_title(axes.get_title() + f" operations left ({similarity.update})", fontsize=8, pad=5)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, grid_alpha=0)
    for index, allowed in enumerate(similarity.allowed[0, : len(names)]):
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            labels[index].set_color(INK if allowed else "#b4b9be")
    for y, x in itertools.combinations_with_replacement(reversed(range(len(names))), 2):
        value = float(similarity.matrices[0, y, x])
        if len(names) <= LARGEST_LABELLED and math.isfinite(value):
            colour = "white" if abs(value) > 0.62 else INK
            axes.text(x, y, f"{value:.2f}".replace("-", "−"), color=colour, ha="center", va="center", size=5.6)


def _search(record: RunRecord, space: SearchSpace, figure: Figure) -> bool:
    """Accuracy against MACs of all evaluated paths, the front, the chosen path and the limit."""
    macs, accuracy = column(record.search, "macs"), column(record.search, "accuracy")
    if not (np.isfinite(macs) & np.isfinite(accuracy)).any():
        return False
    figure.set_size_inches(5.4, 3.2)
    axes = figure.add_subplot()
    generation = np.nan_to_num(column(record.search, "generation"))
    dots = axes.scatter(macs, accuracy, 11, generation, cmap="viridis_r", linewidths=0)
    if generation.max() > generation.min():
        figure.colorbar(dots, label="generation", pad=0.02, aspect=30).outline.set_visible(False)
    stairs = front(record.search)
    axes.step(column(stairs, "macs"), column(stairs, "accuracy"), color=ORANGE, where="post", label="Pareto front")
    chosen = text_of(record.best.get("path"))
    same = [row for row in record.search if chosen and text_of(row.get("path")) == chosen]
    best = (same or [record.best])[0]
    x, y = number(best, "macs"), number(best, "accuracy")
    if math.isfinite(x + y):
        axes.scatter(x, y, 75, "none", edgecolors=RED, linewidths=1.6, zorder=3, label="chosen path")
    limit = number({"limit": setting(record.config, "search.max_macs")}, "limit")
    if math.isfinite(limit):
        axes.axvline(limit, color=SOFT, linestyle="--", linewidth=0.9, label=f"limit, {number_text(limit, 'count')}")
    axes.xaxis.set_major_formatter(lambda value, _: number_text(value, "count"))
    axes.yaxis.set_major_formatter(_percent)
    axes.set(xlabel="multiply-accumulates (MACs)", ylabel="accuracy on the supernet")
    axes.legend(loc="lower right")
    return True
