"""adapters.png: requests/s by number of users, their ratio to vLLM's own LoRA, and times to the first token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memos_vllm.bench.adapters_client import ARMS, MEMOS, VLLM
from memos_vllm.bench.adapters_stats import LOADS, RATE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = dict(zip(ARMS, ("#9aa0a6", "#1f4e79", "#e07a3f"), strict=True))
GOAL = 0.98
"""The ratio to vLLM's own LoRA that the dashed line shows."""
BAR = 0.38


def draw_adapters(rows: Sequence[Row], title: str, subtitle: str, path: Path) -> None:
    """Draw medians with quartiles, and ratios with their intervals; `rows` as `summarise_adapters` makes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    loads = [row for row in rows if row.measure in LOADS]
    figure = Figure(figsize=(14.5 if loads else 10.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3 if loads else 2, squeeze=False)[0]
    rates = [row for row in rows if row.measure == RATE]
    _draw_rates(panels[0], rates)
    _draw_ratio(panels[1], [row for row in rates if row.arm == MEMOS])
    if loads:
        _draw_loads(panels[2], loads)
    figure.suptitle(f"{title}\n", fontsize=12, fontweight="bold")
    figure.text(0.5, 0.915, f"{subtitle}; {rates[0].samples} rounds", ha="center", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_rates(panel: Axes, rows: Sequence[Row]) -> None:
    for arm in ARMS:
        found = [row for row in rows if row.arm == arm]
        spread = [[row.median - row.q1 for row in found], [row.q3 - row.median for row in found]]
        users, medians = [row.users for row in found], [row.median for row in found]
        panel.errorbar(users, medians, yerr=spread, fmt="o-", color=COLOURS[arm], label=arm, markersize=4, capsize=2)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("requests/s, medians with quartiles")
    _by_users(panel, [row.users for row in rows])


def _draw_ratio(panel: Axes, rows: Sequence[Row]) -> None:
    spread = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    users, ratios = [row.users for row in rows], [row.ratio for row in rows]
    panel.errorbar(users, ratios, yerr=spread, fmt="o-", color=COLOURS[MEMOS], markersize=4, capsize=2)
    panel.axhline(1.0, color=COLOURS[VLLM], linewidth=0.9)
    panel.axhline(GOAL, color="#bbbbbb", linestyle="--", linewidth=0.9)
    panel.set_ylabel("requests/s, ratio to vLLM's own LoRA, 95 % interval")
    _by_users(panel, users)


def _by_users(panel: Axes, users: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_xticks(sorted(set(users)), [str(number) for number in sorted(set(users))])
    panel.minorticks_off()
    panel.set_xlabel("users with an adapter each")
    _plain(panel)


def _draw_loads(panel: Axes, rows: Sequence[Row]) -> None:
    for place, arm in enumerate((VLLM, MEMOS)):
        found = [next(row for row in rows if (row.measure, row.arm) == (measure, arm)) for measure in LOADS]
        medians = [1e3 * row.median for row in found]
        spread = [[1e3 * (row.median - row.q1) for row in found], [1e3 * (row.q3 - row.median) for row in found]]
        centres = [group + (place - 0.5) * BAR for group in range(len(LOADS))]
        panel.bar(centres, medians, BAR * 0.94, yerr=spread, color=COLOURS[arm], error_kw={"elinewidth": 1.0})
        for centre, median, row in zip(centres, medians, found, strict=True):
            where = (centre, 1e3 * row.q3)
            panel.annotate(f"{median:.0f}", where, (0, 3), textcoords="offset points", ha="center", fontsize=8)
    panel.set_xticks(range(len(LOADS)), LOADS)
    panel.set_ylabel("ms to the first token, medians with quartiles")
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.grid(axis="y", color="#eeeeee", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
