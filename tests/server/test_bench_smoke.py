"""The smallest run of `memos-vllm bench ttft`, and what it does when a server does not start."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memos_vllm.bench.arms import ARMS
from tests.server.conftest import model_path

pytestmark = pytest.mark.server

CONTEXT, QUERY, REPETITIONS = 192, 24, 2


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memos_vllm.cli", "bench", "ttft", *words]
    environ = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "COLUMNS": "160", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environ, check=False)


def children_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]


def test_a_small_run_reports_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sizes = ["--contexts", str(CONTEXT), "--queries", str(QUERY), "--builds", "1", "--warmup", "0"]
    out = tmp_path / "out"
    result = bench("--model", str(model_path()), *sizes, "--repetitions", str(REPETITIONS), "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads((out / "ttft.json").read_text())
    assert data["checks"] == [{"context": CONTEXT, "compared": 8, "ended_at_tie": False}]
    assert len(data["samples"]) == len(ARMS) * REPETITIONS
    assert all(0 < sample["ttft"] < 60 for sample in data["samples"])
    with (out / "ttft.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(rows) == [arm.name for arm in ARMS]
    prompts = [int(row["prompt"]) for row in rows.values()]
    assert max(prompts) - min(prompts) <= 4
    assert min(prompts) > CONTEXT + QUERY
    for arm in ARMS:
        spliced, repaired = int(rows[arm.name]["spliced"]), int(rows[arm.name]["repaired"])
        assert (spliced + repaired >= CONTEXT) if arm.splices else (spliced == repaired == 0)
    assert (out / "ttft.png").read_bytes().startswith(b"\x89PNG")
    assert all(arm.name in result.stdout for arm in ARMS)
    assert str(tmp_path) not in (out / "ttft.json").read_text()
    assert children_of(tmp_path) == []


def test_a_server_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = bench("--model", str(model_path()), "--out", str(tmp_path / "out"), "--", "--max-num-seqs", "few")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("memos-vllm: error: the server '")
    assert "few" in result.stderr
    assert not (tmp_path / "out").exists()
    assert children_of(tmp_path) == []
