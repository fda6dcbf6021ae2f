"""The Grafana dashboard: importable, and every panel asks for something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from memos_vllm.engine.metrics import COUNTERS, GAUGES, HISTOGRAMS
from memos_vllm.server import metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "dashboards" / "memos-vllm.json"


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def queries() -> list[str]:
    return [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]


def metric_names() -> set[str]:
    """The names of the series that the dashboard queries."""
    return {name for query in queries() for name in re.findall(r"([a-z_:]+)\{", query)}


def test_the_names_are_found_in_the_queries() -> None:
    assert {"vllm:time_to_first_token_seconds_bucket", "memos_prompts_total", "memos_kv_ram_bytes"} <= metric_names()
    assert all(re.search(r"[a-z_:]+\{", query) for query in queries())


def test_every_metric_is_shown() -> None:
    ours = {sample for metric in metrics.ALL for sample in samples_of(metric())}
    engines = {f"memos_kv_{name}" for name in GAUGES}
    engines |= {f"memos_kv_{name}_total" for name in COUNTERS} | {f"memos_kv_{name}_bucket" for name in HISTOGRAMS}
    shown = {name for name in metric_names() if name.startswith("memos_")}
    assert shown == ours | engines


def samples_of(metric: Counter | Gauge | Histogram) -> set[str]:
    """The name of the series that a panel asks of a metric."""
    (family,) = metric.describe()
    return {family.name + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[family.type]}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not taken & cells
        cells |= taken


def test_every_panel_asks_for_something() -> None:
    for panel in board()["panels"]:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"
    assert [variable["name"] for variable in board()["templating"]["list"]] == ["datasource", "job"]
