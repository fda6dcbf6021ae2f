"""`memos-vllm bench load`: adding and searching memories at a given number of requests a second."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.load_client import OPERATIONS, Chats, Crowd, Sample, at_rate, client, fill
from memos_vllm.bench.load_options import LoadOptions
from memos_vllm.bench.load_report import Measured, Size, print_load, write_load
from memos_vllm.bench.machine import describe
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.servers import Server, running, server_environ

WARM_UP = 3.0
"""Seconds of requests before the first measurement that do not count."""


@dataclass
class Load:
    """One run; `run` fills the lists."""

    options: LoadOptions
    folder: Path
    progress: Progress
    rows: list[Measured] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    def run(self) -> None:
        """Each server by itself: the machine is theirs. Raises ServerFailed, CheckFailed."""
        options = self.options
        self._serve("lexical", options.memories, (), options.chat_rates)
        if options.embedder:
            self._serve("lexical and dense", options.embedded, ("--memory-embedder", options.embedder), ())

    def _serve(self, arm: str, memories: int, flags: Sequence[str], chat_rates: Sequence[int]) -> None:
        options, memory_dir = self.options, self.folder / arm.replace(" ", "-")
        words = ["--memory-dir", str(memory_dir), "--dtype", "float32", "--enforce-eager", *flags, *options.extra]
        environ = server_environ(options.model, gpu=False)
        with running(options.model, {arm: words}, self.folder, environ=environ) as servers:
            asyncio.run(self._arm(arm, servers[arm], memory_dir, memories, chat_rates))

    async def _arm(self, arm: str, server: Server, memory_dir: Path, memories: int, chat_rates: Sequence[int]) -> None:
        options, crowd = self.options, Crowd(self.options.users, self.options.seed)
        empty = resident_bytes(server)
        async with client(server.url) as http:
            await self._fill(arm, http, crowd, memories)
            self.sizes.append(Size(arm, memories, empty, resident_bytes(server), disk_bytes(memory_dir)))
            plan = [
                (rate, chats) for rates, chats in ((options.rates, 0), (chat_rates, options.chats)) for rate in rates
            ]
            task = self.progress.add_task(f"{arm}: measuring", total=len(plan) * len(OPERATIONS))
            for name, operation in OPERATIONS.items():
                await at_rate(http, crowd, operation, min(options.rates), WARM_UP)
                for rate, chats in plan:
                    async with Chats(http, crowd, chats) as beside:
                        samples = await at_rate(http, crowd, operation, rate, options.seconds)
                    self.rows.append(measured(arm, name, rate, samples, beside if chats else None))
                    self.progress.advance(task)

    async def _fill(self, arm: str, http: httpx.AsyncClient, crowd: Crowd, memories: int) -> None:
        """Store the memories, and make sure that they are found. Raises CheckFailed."""
        task = self.progress.add_task(f"{arm}: storing", total=memories)
        try:
            await fill(http, crowd, memories, lambda count: self.progress.advance(task, count))
            for user in crowd.rng.sample(crowd.users, min(50, len(crowd.users))):
                fact = crowd.known[user]
                body = {"query": fact.statement, "user_id": user, "top_k": 10}
                answer = (await http.post("/v1/memories/search", json=body)).raise_for_status().json()
                if fact.statement not in [memory["memory"] for memory in answer["results"]]:
                    raise CheckFailed(f"a stored memory of {user} is not among the first ten for its own words")
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise CheckFailed(f"the vault was not filled ({type(error).__name__}: {error})") from error


def measured(arm: str, operation: str, rate: int, samples: Sequence[Sample], beside: Chats | None) -> Measured:
    """The figures of one measurement. Raises CheckFailed where nothing was sent, or no chat ran beside."""
    if not samples or (beside is not None and not beside.done):
        raise CheckFailed(f"at {rate} requests/s {'nothing was sent' if not samples else 'no chat was answered'}")
    name = f"{arm}, chatting" if beside is not None else arm
    return Measured.of(name, operation, rate, samples, beside.done if beside else 0, beside.failed if beside else 0)


def resident_bytes(server: Server) -> int:
    """Resident memory of the API server; the engine's processes hold the model."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


def disk_bytes(folder: Path) -> int:
    """What the files of a memory directory take, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def bench_load(options: LoadOptions, console: Console) -> None:
    """Start the servers, fill, measure, report. Raises CheckFailed and ServerFailed."""
    machine = describe(())
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        load = Load(options, Path(temporary), progress)
        load.run()
    write_load(options, machine, load.rows, load.sizes)
    print_load(options, load.rows, load.sizes, console)
