"""quality.png: accuracy kept and divergence against time to first token, a line for each family of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from memos_vllm.bench.quality_stats import PLAIN, QualityRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "none": "#9aa0a6", "head": "#5b9bd5", "deviation": "#f2c14e", "guided": "#6aa84f", "mixed": "#b5361c",
    "full": "#1f4e79", PLAIN: "#000000",
}  # fmt: skip
GOAL = 0.98


def draw_quality(rows: Sequence[QualityRow], title: str, subtitle: str, path: Path) -> None:
    """Draw the rows over all prompts; policies that differ in their budget alone are joined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw(left, rows, lambda row: 100 * row.kept)
    left.axhline(100 * GOAL, color="#bbbbbb", linestyle="--", linewidth=0.9)
    left.set_ylabel("right answers, % of full prefill's")
    _draw(right, [row for row in rows if row.policy not in ("full", PLAIN)], lambda row: max(1e-3, 1e3 * row.kl_answer))
    right.set_yscale("log")
    right.set_ylabel("KL of the answer's tokens from full prefill's, mnat")
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.925, f"{subtitle}; {rows[0].prompts} prompts", ha="center", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw(panel: Axes, rows: Sequence[QualityRow], height: Callable[[QualityRow], float]) -> None:
    for family, group in groupby(rows, key=lambda row: row.policy.partition(":")[0]):
        found = list(group)
        where = [(row.ttft_ratio, height(row)) for row in found]
        panel.plot(*zip(*where, strict=True), "o-", color=COLOURS.get(family, "#777777"), label=family, markersize=5)
        for row, point in zip(found, where, strict=True):
            budget = row.policy.partition(":")[2]
            panel.annotate(budget, point, xytext=(4, -9), textcoords="offset points", fontsize=7)
    panel.set_xlabel("time to first token, as a share of full prefill's (median)")
    panel.set_xscale("log")
    for axis in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
        axis(lambda value, position: f"{value:g}")
    panel.grid(color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
