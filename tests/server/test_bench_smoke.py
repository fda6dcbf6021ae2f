"""The smallest run of `memos-vllm bench ttft`, and what it does when a server does not start."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from memos_vllm.bench.arms import ARMS
from tests.server.conftest import model_path

pytestmark = pytest.mark.server

CONTEXT, QUERY, REPETITIONS = 192, 24, 2


def bench(folder: Path, *words: str, name: str = "ttft") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memos_vllm.cli", "bench", name, "--model", str(model_path()), *words]
    environ = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=environ, check=False)


def left_behind(folder: Path) -> list[psutil.Process]:
    """Processes that work in the folder: servers and their engines do, if they are still there."""
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]


def test_a_small_run_reports_every_arm(tmp_path: Path) -> None:
    sizes = ["--contexts", str(CONTEXT), "--queries", str(QUERY), "--builds", "1", "--warmup", "0"]
    out = tmp_path / "out"
    result = bench(tmp_path, *sizes, "--repetitions", str(REPETITIONS), "--out", str(out))
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
    assert left_behind(tmp_path) == []


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    result = bench(tmp_path, "--out", str(tmp_path / "out"), "--", "--max-num-seqs", "few")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("memos-vllm: error: the server '")
    assert "few" in result.stderr
    assert not (tmp_path / "out").exists()
    assert left_behind(tmp_path) == []


def test_a_run_that_is_stopped_takes_its_servers_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memos_vllm.cli", "bench", "ttft", "--model", str(model_path())]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        deadline = time.monotonic() + 180
        while len(left_behind(tmp_path)) < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(left_behind(tmp_path)) >= 4
        process.send_signal(number)
        assert process.wait(180) == 128 + number
        assert left_behind(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
