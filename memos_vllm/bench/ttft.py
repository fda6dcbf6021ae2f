"""`memos-vllm bench ttft`: time to first token of prompts with memories, side by side on three servers."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from memos_vllm.bench.arms import ARMS, FULL, Arm
from memos_vllm.bench.checks import (
    ALTERNATIVES,
    ANSWER_TOKENS,
    HALF_PRECISION_TIE,
    CheckFailed,
    Equal,
    check_headers,
    same_answer,
)
from memos_vllm.bench.client import Client, Messages
from memos_vllm.bench.machine import describe
from memos_vllm.bench.options import CUBES, TtftOptions
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.report import Report, print_report, write_report
from memos_vllm.bench.servers import running, server_environ
from memos_vllm.bench.stats import Build, Sample, summarise
from memos_vllm.bench.text import shares, text_of
from memos_vllm.memory_block import INTRO, OUTRO, memory_line

TEMPLATE_ROOM = 512
"""Tokens of a prompt beside memories and query: chat template, the lines around the memories, the answer."""


@dataclass(frozen=True)
class Memories:
    """The memories of one context size: text and id of each; they belong to a user of their own."""

    context: int
    texts: dict[str, str]

    @property
    def user(self) -> str:
        return f"bench-{self.context}"


@dataclass(frozen=True)
class Trial:
    """What all arms are given in one round: memories in an order that puts another one first than `warm_order` does."""

    memories: Memories
    order: tuple[str, ...]
    warm_order: tuple[str, ...]
    query: str
    warm_query: str

    def messages(self, order: Sequence[str], query: str) -> Messages:
        """The prompt for a server without memory: the same text in the same place."""
        lines = (memory_line(self.memories.texts[cube]) for cube in order)
        return [{"role": "system", "content": INTRO + "".join(lines) + OUTRO}, {"role": "user", "content": query}]

    @property
    def question(self) -> Messages:
        """What the memos server is sent: it puts the memories in."""
        return [{"role": "user", "content": self.query}]

    def headers(self, arm: Arm) -> dict[str, str]:
        """Whose memories the memos server puts in, in which order and how."""
        return {
            "x-memos-user-id": self.memories.user,
            "x-memos-cubes": ",".join(self.order),
            "x-memos-repair": arm.repair,
        }


def bench_ttft(options: TtftOptions, console: Console) -> None:
    """Start the servers, check, measure, report. Raises CheckFailed and ServerFailed."""
    machine = describe(options.gpus)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        folder = Path(temporary)
        flags = server_flags(options, folder / "memory")
        task = progress.add_task("starting the servers", total=len(flags))
        environ = server_environ(options.model, bool(options.gpus))
        with (
            running(
                options.model,
                flags,
                folder,
                environ=environ,
                one_by_one=bool(options.gpus),
                on_ready=lambda name: progress.advance(task),
            ) as servers,
            ExitStack() as stack,
        ):
            clients = {name: Client(server) for name, server in servers.items()}
            for client in clients.values():
                stack.callback(client.close)
            bench = Bench(options, folder / "memory", clients, progress, random.Random(options.seed))
            bench.run()
    rows = summarise(bench.samples, bench.builds, ARMS)
    report = Report(options, machine, bench.checks, bench.builds, bench.samples, rows)
    write_report(report, options.out)
    print_report(report, console)


def server_flags(options: TtftOptions, memory_dir: Path) -> dict[str, list[str]]:
    """Flags of `memos-vllm serve MODEL` for each server. What the user gave comes last, so that it wins."""
    longest = max(options.contexts) + max(options.queries) + TEMPLATE_ROOM
    common = ["--dtype", options.dtype, "--max-model-len", str(-(-longest // 256) * 256)]
    common += ["--enable-prompt-tokens-details"]
    # Three servers share one GPU; on a CPU compiling three times over would take longer than it saves.
    common += ["--gpu-memory-utilization", "0.28"] if options.gpus else ["--enforce-eager"]
    memory = ["--memory-dir", str(memory_dir), "--memory-splice", "on", "--memory-promote", "all"]
    memory += ["--memory-token-budget", str(max(options.contexts) + TEMPLATE_ROOM)]
    own = {
        "plain": ["--no-enable-prefix-caching"],
        "cached": ["--enable-prefix-caching"],
        "memos": ["--enable-prefix-caching", *memory],
    }
    return {name: [*common, *words, *options.extra] for name, words in own.items()}


@dataclass
class Bench:
    """One run on servers that are up; `run` fills the lists."""

    options: TtftOptions
    memory_dir: Path
    clients: dict[str, Client]
    progress: Progress
    rng: random.Random
    checks: list[Equal] = field(default_factory=list)
    builds: list[Build] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def run(self) -> None:
        """Build the memories, check every context, then measure round by round, sizes and arms shuffled in each."""
        options, track = self.options, self.progress.track
        contexts = [self._build(context) for context in track(options.contexts, description="building KV cubes")]
        for memories in track(contexts, description="checking answers"):
            self.checks.append(self._check(memories, min(options.queries)))
        rounds = range(-options.warmup, options.repetitions)
        sizes = list(product(contexts, options.queries))
        task = self.progress.add_task("measuring", total=len(rounds) * len(sizes) * len(ARMS))
        for number in rounds:
            for memories, query in self.rng.sample(sizes, len(sizes)):
                trial = self._trial(memories, query)
                for arm in self.rng.sample(ARMS, len(ARMS)):
                    sample = self._measure(arm, trial, query, number)
                    if number >= 0:
                        self.samples.append(sample)
                    self.progress.advance(task)

    def _build(self, context: int) -> Memories:
        """Have the KV cubes of a context made `builds` times, each time of new text; the last ones are used."""
        for _ in range(self.options.builds):
            texts = [self._memory_text(tokens) for tokens in shares(context, CUBES)]
            memories = self._build_once(context, texts)
        return memories

    def _build_once(self, context: int, texts: Sequence[str]) -> Memories:
        began = time.perf_counter()
        ids = self.clients["memos"].remember(f"bench-{context}", texts)
        records = self.clients["memos"].wait_for_kv(self.memory_dir, ids)
        seconds = time.perf_counter() - began
        if (tokens := sum(record.tokens for record in records)) != context:
            raise CheckFailed(f"the memories of {context} tokens became KV cubes of {tokens} tokens")
        each, size = tuple(record.build_seconds for record in records), sum(record.bytes for record in records)
        self.builds.append(Build(context, seconds, each, size))
        return Memories(context, dict(zip(ids, texts, strict=True)))

    def _memory_text(self, tokens: int) -> str:
        count = self.clients["plain"].count
        return text_of(tokens, lambda text: count(memory_line(text)), self.rng)

    def _trial(self, memories: Memories, query: int) -> Trial:
        """New queries and a new order of the memories."""
        order = self.rng.sample(list(memories.texts), len(memories.texts))
        warm_order = [*order[1:], order[0]]
        first, second = (text_of(query, self.clients["plain"].count, self.rng) for _ in range(2))
        return Trial(memories, tuple(order), tuple(warm_order), first, second)

    def _check(self, memories: Memories, query: int) -> Equal:
        """Every splicing arm splices, and full repair answers as plain vLLM does. Raises CheckFailed."""
        memos, context, trial = self.clients["memos"], memories.context, self._trial(memories, query)
        for arm in (arm for arm in ARMS if arm.server == "memos"):
            memos.reset_prefix_cache()
            answer = memos.chat_tokens(trial.question, trial.headers(arm), ANSWER_TOKENS)
            check_headers(arm, answer.headers, trial.order, context, query)
            if arm is FULL:
                repaired = answer
        self.clients["cached"].reset_prefix_cache()
        plain = self.clients["cached"].complete_tokens(repaired.prompt_ids, ANSWER_TOKENS, ALTERNATIVES)
        return same_answer(context, repaired, plain, 0.0 if self.options.dtype == "float32" else HALF_PRECISION_TIE)

    def _measure(self, arm: Arm, trial: Trial, query: int, number: int) -> Sample:
        """One request, with the prefix cache as the arm wants it. Raises CheckFailed."""
        client, context = self.clients[arm.server], trial.memories.context
        if arm.server != "plain":
            client.reset_prefix_cache()
        if arm.warm:
            order = trial.order if arm.warm == "same order" else trial.warm_order
            client.warm(trial.messages(order, trial.warm_query))
        if arm.server != "memos":
            timed = client.stream(trial.messages(trial.order, trial.query), {})
            return Sample(arm.name, context, query, number, timed.ttft, timed.prompt, timed.cached)
        timed = client.stream(trial.question, trial.headers(arm))
        spliced, repaired = check_headers(arm, timed.headers, trial.order, context, query)
        return Sample(arm.name, context, query, number, timed.ttft, timed.prompt, 0, spliced, repaired)
