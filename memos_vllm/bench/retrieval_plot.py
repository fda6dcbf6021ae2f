"""retrieval.png: recall over top-k, by category, and over the size of a memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memos_vllm.bench.retrieval_stats import ALL, BUDGETS, TOP_K, RecallRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#9aa0a6", "#5b9bd5", "#f2c14e", "#1f4e79", "#b5361c")
BAR_GROUP = 0.84


def draw_retrieval(rows: Sequence[RecallRow], title: str, subtitle: str, path: Path) -> None:
    """Draw the rows of `retrieval_stats.summarise_retrieval`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(row.arm for row in rows))
    colours = {arm: COLOURS[place % len(COLOURS)] for place, arm in enumerate(arms)}
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    overall = [row for row in rows if row.category == row.conversation == ALL]
    _draw_depths(left, [row for row in overall if row.chunk == 1], colours)
    _draw_categories(middle, [row for row in rows if row.chunk == 1 and row.category != ALL], colours)
    _draw_sizes(right, overall, colours)
    for panel in (left, middle, right):
        panel.set_ylim(0, 100)
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("evidence turns found, %")
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.92, subtitle, ha="center", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_depths(panel: Axes, rows: Sequence[RecallRow], colours: dict[str, str]) -> None:
    for row in rows:
        heights = [100 * recall for recall in row.recalls]
        panel.plot(TOP_K, heights, "o-", color=colours[row.arm], label=row.arm, markersize=4)
    panel.set_xscale("log")
    ticks = [k for k in TOP_K if k not in (15, 20)]
    panel.set_xticks(ticks, [str(k) for k in ticks])
    panel.minorticks_off()
    panel.set_xlabel("top-k")
    panel.set_title("by top-k", fontsize=11)


def _draw_categories(panel: Axes, rows: Sequence[RecallRow], colours: dict[str, str]) -> None:
    categories = sorted({row.category for row in rows})
    bar = BAR_GROUP / len(colours)
    for place, (arm, colour) in enumerate(colours.items()):
        found = {row.category: 100 * row.recall(10) for row in rows if row.arm == arm}
        centres = [group + (place + 0.5) * bar - BAR_GROUP / 2 for group in range(len(categories))]
        panel.bar(centres, [found[name] for name in categories], bar * 0.92, color=colour)
    counts = {row.category: row.questions for row in rows}
    panel.set_xticks(range(len(categories)), [f"{name}\n({counts[name]})" for name in categories], fontsize=8)
    panel.set_title("R@10 by category (questions)", fontsize=11)


def _draw_sizes(panel: Axes, rows: Sequence[RecallRow], colours: dict[str, str]) -> None:
    """R@10, and the recall within as many turns read as memories of one turn need for a good recall."""
    sizes = sorted({row.chunk for row in rows})
    for arm in dict.fromkeys(row.arm for row in rows if row.chunk > 1 or len(sizes) == 1):
        found = sorted((row for row in rows if row.arm == arm), key=lambda row: row.chunk)
        where = [sizes.index(row.chunk) for row in found]
        panel.plot(where, [100 * row.recall(10) for row in found], "o-", color=colours[arm])
        panel.plot(where, [100 * row.budgets[-1] for row in found], "s--", color=colours[arm], alpha=0.8)
    panel.plot([], [], "o-", color="#555555", label="R@10")
    panel.plot([], [], "s--", color="#555555", label=f"within {BUDGETS[-1]} turns read")
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    panel.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    panel.set_xlabel("turns a memory")
    panel.set_title("by size of a memory", fontsize=11)
