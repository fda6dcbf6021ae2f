"""ttft.png: grouped bars on a log scale, a panel for each context size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memos_vllm.bench.stats import Row

COLOURS = ("#9aa0a6", "#1f4e79", "#5b9bd5", "#f2c14e", "#eba05c", "#e07a3f", "#b5361c", "#6b2b1a")
"""Grey and blues: vLLM; yellow to red: memos."""
GROUP_WIDTH = 0.86


def draw_ttft(rows: Sequence[Row], title: str, subtitle: str, path: Path) -> None:
    """Draw medians as bars and quartiles as whiskers; `rows` as `stats.summarise` makes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    contexts = sorted({row.context for row in rows})
    queries = sorted({row.query for row in rows})
    arms = list(dict.fromkeys(row.arm for row in rows))
    width = max(8.0, 1.2 + len(contexts) * (0.6 + 1.35 * len(queries)))
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(contexts), sharey=True, squeeze=False)[0]
    for panel, context in zip(panels, contexts, strict=True):
        _draw_panel(panel, [row for row in rows if row.context == context], queries, arms)
        panel.set_title(f"{context:,} tokens of memories", fontsize=11)
        panel.set_xlabel("tokens of the query")
    panels[0].set_ylabel("time to first token, ms (log scale)")
    medians = [row.median * 1e3 for row in rows]
    panels[0].set_ylim(min(medians) / 1.6, max(medians) * 2.2)
    figure.suptitle(f"{title}\n", fontsize=13, fontweight="bold")
    figure.text(0.5, 0.928, f"{subtitle}; medians with quartiles of {rows[0].samples} runs", ha="center", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_panel(panel: object, rows: Sequence[Row], queries: Sequence[int], arms: Sequence[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    bar = GROUP_WIDTH / len(arms)
    for place, arm in enumerate(arms):
        found = sorted((row for row in rows if row.arm == arm), key=lambda row: row.query)
        centres = [group + (place + 0.5) * bar - GROUP_WIDTH / 2 for group in range(len(found))]
        medians = [row.median * 1e3 for row in found]
        whiskers = [
            [(row.median - row.q1) * 1e3 for row in found],
            [(row.q3 - row.median) * 1e3 for row in found],
        ]
        panel.bar(
            centres,
            medians,
            bar * 0.92,
            color=COLOURS[place % len(COLOURS)],
            label=arm,
            yerr=whiskers,
            error_kw={"elinewidth": 1.0, "ecolor": "#333333", "capsize": 1.5},
        )
        for centre, row in zip(centres, found, strict=True):
            panel.annotate(
                _milliseconds(row.median * 1e3),
                (centre, row.q3 * 1e3),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                fontsize=7,
            )
    panel.set_yscale("log")
    panel.set_xticks(range(len(queries)), [f"{query:,}" for query in queries])
    panel.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    panel.grid(axis="y", which="major", color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
