"""`memos-vllm bench load`: adding and searching memories at a given number of requests a second."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.load_client import OPERATIONS, TOP_K, Chats, Crowd, at_rate, client, fill
from memos_vllm.bench.load_options import CHATTING, FUSED, LEXICAL, LoadOptions
from memos_vllm.bench.load_report import Measured, Size, print_load, write_load
from memos_vllm.bench.machine import describe
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.servers import Server, running, server_environ
from memos_vllm.vault import Vault

WARM_UP = 3.0
"""Seconds of requests before the first measurement that do not count."""
STALLED = 120.0
"""Seconds in which a server that embeds has to make one vector at least."""
RECOVERY = 120.0
"""Seconds that a server may go on with requests that timed out."""
FOUND = 0.5
"""Least share of searches that have the memory they ask for among their results; a whole index finds nine of ten."""
AWAITING = 0.01
"""Most memories without a vector, as a share, at the end of a measurement of searches."""


@dataclass(frozen=True)
class Target:
    """A server under load: its arm, its connections, its vault (read beside it), and who asks."""

    arm: str
    server: Server
    http: httpx.AsyncClient
    memory_dir: Path
    crowd: Crowd

    def cubes(self) -> int:
        with Vault.open(self.memory_dir, readonly=True) as vault:
            return vault.stats()["cubes"]

    def awaiting(self) -> int:
        """Memories that have no vector yet; 0 where none get one."""
        if self.arm != FUSED:
            return 0
        with Vault.open(self.memory_dir, readonly=True) as vault:
            return vault.vector_counts()[1]


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
        plan = [(LEXICAL, rate, 0) for rate in options.rates if LEXICAL in options.arms]
        plan += [(CHATTING, rate, options.chats) for rate in options.chat_rates if CHATTING in options.arms]
        if plan:
            self._serve(LEXICAL, options.memories, (), plan)
        if FUSED in options.arms:
            flags = ("--memory-embedder", options.embedder)
            self._serve(FUSED, options.embedded, flags, [(FUSED, rate, 0) for rate in options.rates])

    def _serve(self, arm: str, memories: int, flags: Sequence[str], plan: Sequence[tuple[str, int, int]]) -> None:
        """Start the arm's server, fill it, and measure. plan: arm, rate and chats of each measurement."""
        options, memory_dir = self.options, self.folder / arm
        device = ["--gpu-memory-utilization", "0.3"] if options.gpus else ["--dtype", "float32", "--enforce-eager"]
        words = ["--memory-dir", str(memory_dir), *device, *flags, *options.extra]
        environ = server_environ(options.model, bool(options.gpus))
        with running(options.model, {arm: words}, self.folder, environ=environ) as servers:
            asyncio.run(self._arm(arm, servers[arm], memory_dir, memories, plan))

    async def _arm(
        self, arm: str, server: Server, memory_dir: Path, memories: int, plan: Sequence[tuple[str, int, int]]
    ) -> None:
        empty = resident_bytes(server)
        async with client(server.url) as http:
            target = Target(arm, server, http, memory_dir, Crowd(self.options.users, self.options.seed))
            await self._fill(target, memories)
            await self._embedded(target)
            gc.freeze()  # this process's own heap: its collections would be counted as the server's pauses
            self.sizes.append(Size(arm, memories, empty, resident_bytes(server), disk_bytes(memory_dir)))
            task = self.progress.add_task(f"{arm}: measuring", total=len(plan) * len(OPERATIONS))
            for name, operation in OPERATIONS.items():
                await at_rate(http, target.crowd, operation, min(rate for _, rate, _ in plan), WARM_UP)
                await self._embedded(target)
                for label, rate, chats in plan:
                    self.progress.update(task, description=f"{label}: {name} at {rate}/s")
                    await self._recovered(target)
                    memories = target.cubes()
                    async with Chats(http, target.crowd, chats) as beside:
                        samples = await at_rate(http, target.crowd, operation, rate, self.options.seconds)
                    if not samples:
                        raise CheckFailed(f"at {rate} requests/s nothing was sent")
                    row = Measured.of(label, name, rate, memories, samples, beside, target.awaiting())
                    check(row, bool(chats))
                    self.rows.append(row)
                    self.progress.advance(task)

    async def _fill(self, target: Target, memories: int) -> None:
        """Store the memories, and make sure that they are found. Raises CheckFailed."""
        crowd, task = target.crowd, self.progress.add_task(f"{target.arm}: storing", total=memories)
        try:
            await fill(target.http, crowd, memories, lambda count: self.progress.advance(task, count))
            for user in crowd.rng.sample(crowd.users, min(50, len(crowd.users))):
                fact = crowd.known[user]
                body = {"query": fact.statement, "user_id": user, "top_k": TOP_K}
                answer = (await target.http.post("/v1/memories/search", json=body)).raise_for_status().json()
                if fact.statement not in [memory["memory"] for memory in answer["results"]]:
                    raise CheckFailed(f"a stored memory of {user} is not among the first ten for its own words")
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise CheckFailed(f"the vault was not filled ({type(error).__name__}: {error})") from error

    async def _recovered(self, target: Target) -> None:
        """Wait for an answer: by then the server is through with what timed out before. Raises CheckFailed."""
        user = target.crowd.someone()
        body = {"query": target.crowd.known[user].question, "user_id": user}
        try:
            await target.http.post("/v1/memories/search", json=body, timeout=RECOVERY)
        except httpx.HTTPError as error:
            raise CheckFailed(f"the server did not recover within {RECOVERY:.0f} s ({type(error).__name__})") from error

    async def _embedded(self, target: Target) -> None:
        """Wait until every memory has its vector. Raises CheckFailed where none is made any more."""
        total = left = before = target.awaiting()
        if not left:
            return
        task, since = self.progress.add_task(f"{target.arm}: embedding", total=total), time.monotonic()
        while left:
            if left < before:
                before, since = left, time.monotonic()
            if time.monotonic() - since > STALLED:
                raise CheckFailed(f"{left} memories have no vector, and none was made for {STALLED:.0f} s")
            await asyncio.sleep(0.5)
            left = target.awaiting()
            self.progress.update(task, completed=total - left)


def check(row: Measured, chatting: bool) -> None:
    """Raises CheckFailed where a measurement is not of what it says."""
    what = f"{row.arm}, {row.operation} at {row.rate} requests/s"
    if chatting and row.chats <= row.chats_failed:
        raise CheckFailed(f"{what}: {row.chats} chats were answered and {row.chats_failed} failed")
    if row.operation == "search" and row.success and row.found < FOUND:
        raise CheckFailed(f"{what}: only {row.found:.0%} of the answers hold the memory that was asked for")
    if row.operation == "search" and row.awaiting > AWAITING * row.memories:
        raise CheckFailed(f"{what}: {row.awaiting} of {row.memories} memories had no vector")


def resident_bytes(server: Server) -> int:
    """Resident memory of the API server, mapped pages of the vault among it; the engine's processes hold the model."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


def disk_bytes(folder: Path) -> int:
    """What the files of a memory directory take, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def bench_load(options: LoadOptions, console: Console) -> None:
    """Start the servers, fill, measure, report. Raises CheckFailed and ServerFailed."""
    machine = describe(options.gpus)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        load = Load(options, Path(temporary), progress)
        load.run()
    write_load(options, machine, load.rows, load.sizes)
    print_load(options, load.rows, load.sizes, console)
