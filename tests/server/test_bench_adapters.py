"""The smallest run of `memos-vllm bench adapters`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from memos_vllm.bench.adapters_client import ARMS, MEMOS, VLLM
from memos_vllm.bench.adapters_stats import LOADS, RATE, TTFT
from tests.server.test_bench_smoke import bench, left_behind

pytestmark = pytest.mark.server


def test_a_small_run_reports_every_arm(tmp_path: Path) -> None:
    out, sizes = (
        tmp_path / "out",
        ["--users", "1,2", "--starts", "2", "--rounds", "2", "--warmup", "0", "--requests", "4"],
    )
    sizes += ["--concurrency", "2", "--tokens", "4", "--loads", "1", "--registered", "8"]
    result = bench(tmp_path, *sizes, "--out", str(out), name="adapters")
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads((out / "adapters.json").read_text())
    assert list(data["checks"].values()) == [2 * 4]
    assert data["registry"]["adapters"] == 8
    assert all(0 < sample["value"] < 600 for sample in data["samples"])
    assert {(sample["start"], sample["round"]) for sample in data["samples"]} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    with (out / "adapters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {(row["measure"], row["users"], row["arm"]) for row in rows}
    assert told == {
        *((measure, users, arm) for measure in (RATE, TTFT) for users in "12" for arm in ARMS),
        *((load, "2", arm) for load in LOADS for arm in (VLLM, MEMOS)),
    }
    assert len(rows) == len(told)
    assert (out / "adapters.png").read_bytes().startswith(b"\x89PNG")
    assert "With 2 adapters memos answers" in result.stdout
    assert str(tmp_path) not in (out / "adapters.json").read_text()
    assert left_behind(tmp_path) == []
