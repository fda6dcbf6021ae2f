"""Inter-token latency of a running stream while a memory is captured, loaded from disk, or a prompt is prefilled.

    python benchmarks/bench_inter_token.py --out benchmarks/results/inter-token-tiny-cpu

One server, one endless stream. In every round, with pauses between them: a memory of `--tokens` tokens is added (and
captured in the background), a chat uses a memory whose KV cube is on disk only, and a prompt of as many tokens is
prefilled plainly. RAM has room for little more than one cube, so that each capture evicts the one before. The longest
gap that each event tears into the stream is set against that of the plain prefill, which is what vLLM alone does.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.bench.client import Client
from memos_vllm.bench.machine import describe, gpu_names, in_words
from memos_vllm.bench.servers import SERVED_NAME, Server, running, server_environ
from memos_vllm.bench.text import text_of

QUIET, CAPTURE, DISK, PREFILL = "quiet", "capture", "load from disk", "plain prefill"
EVENTS = (QUIET, CAPTURE, DISK, PREFILL)
BUDGET = 512
"""Most tokens of a step: the chunk by which prompts are prefilled."""


@dataclass
class Stream:
    """An endless answer; `times` of its tokens, seconds."""

    url: str
    times: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.is_set():
            body = {
                "model": SERVED_NAME, "prompt": "The", "max_tokens": 4000, "ignore_eos": True, "stream": True,
                "temperature": 0,
            }  # fmt: skip
            with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=600) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        self.times.append(time.perf_counter())
                    if self.stop.is_set():
                        return

    def gaps(self, start: float, end: float) -> list[float]:
        """Seconds between tokens, of the gaps that touch `[start, end]`."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [later - earlier for earlier, later in pairs if later >= start and earlier <= end]


@dataclass(frozen=True)
class Span:
    """An event of the benchmark, from its request to its end."""

    event: str
    start: float
    end: float


class Rounds:
    """What happens beside the stream."""

    def __init__(self, server: Server, tokens: int, pause: float) -> None:
        self.http = httpx.Client(base_url=server.url, timeout=600)
        self.count, self.rng = Client(server).count, random.Random(0)
        self.tokens, self.pause = tokens, pause
        self.memories: list[str] = []
        self.spans: list[Span] = []

    def text(self) -> str:
        return text_of(self.tokens, self.count, self.rng)

    def add(self, text: str) -> None:
        """Add a memory and wait until its K/V are kept."""
        message = {"role": "user", "content": text}
        body = {"messages": [message], "user_id": "maya", "infer": False}
        answer = self.http.post("/v1/memories", json=body).raise_for_status().json()
        self.memories.append(answer["results"][0]["id"])
        while self.state(self.memories[-1]) != "kv":
            time.sleep(0.05)

    def state(self, memory: str) -> str:
        """Of the memory's K/V, as the server says."""
        told = self.http.get(f"/v1/memories/{memory}", params={"user_id": "maya"}).raise_for_status().json()
        return str(told["activation"]["state"])

    def chat(self, memory: str) -> httpx.Headers:
        headers = {"x-memos-user-id": "maya", "x-memos-cubes": memory}
        body = {"model": SERVED_NAME, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 1}
        return self.http.post("/v1/chat/completions", json=body, headers=headers).raise_for_status().headers

    def prefill(self, text: str) -> None:
        body = {"model": SERVED_NAME, "prompt": text, "max_tokens": 1}
        self.http.post("/v1/completions", json=body).raise_for_status()

    def timed(self, event: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = action()
        self.spans.append(Span(event, start, time.perf_counter()))
        time.sleep(self.pause)
        return result

    def round(self) -> None:
        texts = self.text(), self.text()  # made before the clock runs
        self.timed(QUIET, lambda: time.sleep(self.pause))
        self.timed(CAPTURE, lambda: self.add(texts[0]))
        source = self.timed(DISK, lambda: self.chat(self.memories[-2]))["x-memos-kv-source"]
        if source not in ("disk", "mixed"):
            sys.exit(f"check failed: the KV cube that was to be loaded from disk came from '{source}'")
        self.timed(PREFILL, lambda: self.prefill(texts[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--tokens", type=int, default=2000, help="of a memory and of a plain prompt (default: 2000)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between events (default: 0.5)")
    parser.add_argument(
        "--ram-gib", type=float, default=0.006, help="for KV cubes: one and a half of them (default: 0.006)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for samples, summary and plot")
    args = parser.parse_args()
    machine = describe(tuple(gpu_names()))
    stream, rounds = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    summary = summarise(stream, rounds.spans)
    write(args, machine, stream, rounds.spans, summary)
    draw(stream, rounds.spans, in_words(machine), args.out / "inter-token.png")
    for event in EVENTS:
        row = summary[event]
        print(f"{event:15} median {row['median_ms']:7.1f} ms, longest {row['longest_ms']:7.1f} ms (median of rounds)")


def measure(args: argparse.Namespace) -> tuple[Stream, Rounds]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        flags = [
            "--memory-dir", str(folder / "memory"), "--memory-kv-ram-gib", str(args.ram_gib), "--memory-promote", "all",
            "--memory-token-budget", str(2 * args.tokens), "--max-num-batched-tokens", str(BUDGET),
        ]  # fmt: skip
        environ = server_environ(args.model, gpu=bool(gpu_names()))
        with running(args.model, {"memos": flags}, folder, environ=environ) as servers:
            return observe(servers["memos"], args)


def observe(server: Server, args: argparse.Namespace) -> tuple[Stream, Rounds]:
    rounds = Rounds(server, args.tokens, args.pause)
    rounds.add(rounds.text())
    stream = Stream(server.url)
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    time.sleep(2)
    try:
        for number in range(args.rounds):
            rounds.round()
            print(f"round {number + 1} of {args.rounds}", flush=True)
    finally:
        stream.stop.set()
        thread.join()
    return stream, rounds


def summarise(stream: Stream, spans: Sequence[Span]) -> dict[str, dict[str, float]]:
    """For each event: the median gap, and the median over the rounds of the longest one; milliseconds."""
    summary = {}
    for event in EVENTS:
        rounds = [stream.gaps(span.start, span.end) for span in spans if span.event == event]
        everything = [gap for gaps in rounds for gap in gaps]
        summary[event] = {
            "median_ms": statistics.median(everything) * 1e3,
            "longest_ms": statistics.median(max(gaps) for gaps in rounds) * 1e3,
            "worst_ms": max(everything) * 1e3,
        }
    return summary


def write(
    args: argparse.Namespace,
    machine: dict[str, Any],
    stream: Stream,
    spans: Sequence[Span],
    summary: dict[str, dict[str, float]],
) -> None:
    """inter-token.json: machine, command and figures; inter-token.csv: every gap with the event it belongs to."""
    command = f"python benchmarks/bench_inter_token.py --tokens {args.tokens} --rounds {args.rounds} --out DIR"
    report = {"benchmark": "inter-token", "command": command, "machine": machine, "chunk_tokens": BUDGET}
    (args.out / "inter-token.json").write_text(json.dumps(report | {"summary": summary}, indent=2) + "\n")
    with (args.out / "inter-token.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["round", "event", "seconds", "gap_ms"])
        for number, span in enumerate(spans):
            start = f"{span.start - stream.times[0]:.3f}"
            for gap in stream.gaps(span.start, span.end):
                rows.writerow([number // len(EVENTS) + 1, span.event, start, f"{gap * 1e3:.2f}"])


def draw(stream: Stream, spans: Sequence[Span], machine: str, path: Path) -> None:
    """Every gap of the stream over time, the events shaded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    zero = stream.times[0]
    axes.plot(
        [time - zero for time in stream.times[1:]],
        [(later - earlier) * 1e3 for earlier, later in zip(stream.times, stream.times[1:], strict=False)],
        linewidth=0.7, color="#1f4e79",
    )  # fmt: skip
    colours = {CAPTURE: "#f2c14e", DISK: "#b5361c", PREFILL: "#9aa0a6"}
    for event, colour in colours.items():
        mine = [span for span in spans if span.event == event]
        for number, span in enumerate(mine):
            axes.axvspan(span.start - zero, span.end - zero, color=colour, alpha=0.4, label=None if number else event)
    axes.set_xlabel("seconds")
    axes.set_ylabel("time between two tokens, ms")
    axes.set_title(f"A running stream beside captures, loads and prefills of 2,000 tokens\n{machine}", fontsize=10)
    axes.legend(frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
