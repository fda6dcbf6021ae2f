"""What the engine's processes count of KV cubes, on its way into vLLM's own `/metrics`.

A payload is a plain dict, because vLLM sends it from process to process: counters by `name:label`, gauges, and lists of
seconds that become histograms.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds of the histograms' buckets."""

GAUGES = {
    "ram_bytes": "Bytes of KV cubes in host RAM, all ranks together",
    "disk_bytes": "Bytes of KV files",
    "resident_cubes": "KV cubes in host RAM",
}
COUNTERS = {
    "hits": ("tier", "KV cubes that a request needed, by where they were found: ram, disk or miss"),
    "loaded_bytes": ("tier", "Bytes of KV cubes read, by tier: ram (spliced into requests) or disk (fetched into RAM)"),
    "evictions": ("tier", "KV cubes evicted, by tier: ram or disk"),
    "failures": ("cause", "KV cubes that could not be used or kept, by cause: load, fetch, write, capture or ram-full"),
}
HISTOGRAMS = {
    "load_seconds": "Time to splice the KV cubes of one request into its blocks",
    "fetch_seconds": "Time to read one KV cube from its file into RAM",
    "capture_seconds": "Time to copy one KV cube out of a request's blocks",
}


@dataclass
class MemosStats(KVConnectorStats):
    """Counts of one process since they were last sent."""

    def add(self, name: str, label: str = "", amount: float = 1) -> None:
        self._group("counters")[f"{name}:{label}"] = self._group("counters").get(f"{name}:{label}", 0) + amount

    def set(self, name: str, value: float) -> None:
        self._group("gauges")[name] = value

    def time(self, name: str, seconds: float) -> None:
        self._group("seconds").setdefault(name, []).append(seconds)

    def _group(self, name: str) -> dict[str, Any]:
        group: dict[str, Any] = self.data.setdefault(name, {})
        return group

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> MemosStats:
        """Counts add up; times of all ranks stand side by side."""
        merged = MemosStats(data=copy.deepcopy(self.data))
        for key, amount in other.data.get("counters", {}).items():
            name, label = key.split(":", 1)
            merged.add(name, label, amount)
        for name, value in other.data.get("gauges", {}).items():
            merged.set(name, value)
        for name, times in other.data.get("seconds", {}).items():
            for seconds in times:
                merged.time(name, seconds)
        return merged

    def reduce(self) -> dict[str, int | float]:
        """For vLLM's log line: the sums and the gauges."""
        sums = {name: float(sum(times)) for name, times in self.data.get("seconds", {}).items()}
        return {**self.data.get("counters", {}), **self.data.get("gauges", {}), **sums}


class MemosPromMetrics(KVConnectorPromMetrics):
    """The same as Prometheus metrics, named `memos_kv_*`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = self._labelnames
        self.gauges = {
            name: self._gauge_cls(f"memos_kv_{name}", text, names, multiprocess_mode="mostrecent")
            for name, text in GAUGES.items()
        }
        self.counters = {
            name: self._counter_cls(f"memos_kv_{name}", text, [*names, label])
            for name, (label, text) in COUNTERS.items()
        }
        self.histograms = {
            name: self._histogram_cls(f"memos_kv_{name}", text, names, buckets=SECONDS)
            for name, text in HISTOGRAMS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        engine = self.per_engine_labelvalues[engine_idx]
        for name, value in transfer_stats_data.get("gauges", {}).items():
            self.gauges[name].labels(*engine).set(value)
        for key, amount in transfer_stats_data.get("counters", {}).items():
            name, label = key.split(":", 1)
            self.counters[name].labels(*engine, label).inc(amount)
        for name, times in transfer_stats_data.get("seconds", {}).items():
            for seconds in times:
                self.histograms[name].labels(*engine).observe(seconds)
