"""`memos-vllm bench retrieval`: how often a search finds the turns of a conversation that answer a question.

Every turn goes in through `POST /v1/memories` of a real server and every question through `POST /v1/memories/search`,
as any client's would.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.machine import describe
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.retrieval_client import MemoryClient
from memos_vllm.bench.retrieval_data import Conversation, read_conversations, sessions_of
from memos_vllm.bench.retrieval_options import NO_EMBEDDER, RetrievalOptions
from memos_vllm.bench.retrieval_report import Ingest, RetrievalReport, print_retrieval, write_retrieval
from memos_vllm.bench.retrieval_stats import DEPTH, Asked, summarise_retrieval
from memos_vllm.bench.servers import running, server_environ

SEED = 0
"""Of the order in which arms and questions are asked."""


@dataclass(frozen=True)
class SearchArm:
    """One way to search. using: parts of the ranking, none for all that the server has; whole: at every chunk size."""

    name: str
    server: str
    using: tuple[str, ...] = ()
    whole: bool = False


WORDS, VECTORS = "words", "vectors"
"""A server without an embedder, and one with."""
ARMS = (
    SearchArm("lexical", WORDS, ("lexical",)),
    SearchArm("dense", VECTORS, ("dense",)),
    SearchArm("fused", VECTORS, ("lexical", "dense")),
    SearchArm("full, no model", WORDS, whole=True),
    SearchArm("full", VECTORS, whole=True),
)


def bench_retrieval(options: RetrievalOptions, console: Console) -> None:
    """Read the data, start the servers, ingest, check, ask, report. Raises StartError, CheckFailed and ServerFailed."""
    conversations, machine = read_conversations(options.data), describe(options.gpus)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        folder = Path(temporary)
        flags = server_flags(options, folder)
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
            clients = {name: MemoryClient(server) for name, server in servers.items()}
            for client in clients.values():
                stack.callback(client.close)
            bench = RetrievalBench(options, conversations, clients, progress)
            bench.run()
    rows = summarise_retrieval(bench.asked)
    report = RetrievalReport(options, machine, conversations, bench.ingests, bench.asked, rows)
    write_retrieval(report, options.out)
    print_retrieval(report, console)


def server_flags(options: RetrievalOptions, folder: Path) -> dict[str, list[str]]:
    """Flags of `memos-vllm serve MODEL` for each server; no memory becomes K/V. What the user gave comes last."""
    embedders = {WORDS: NO_EMBEDDER, VECTORS: options.embedder}
    names = [WORDS] if options.embedder == NO_EMBEDDER else [WORDS, VECTORS]
    common = ["--max-model-len", "2048", "--memory-splice", "off", "--memory-promote", "off"]
    common += ["--gpu-memory-utilization", "0.3"] if options.gpus else ["--enforce-eager"]
    return {
        name: [*common, "--memory-dir", str(folder / name), "--memory-embedder", embedders[name], *options.extra]
        for name in names
    }


@dataclass
class RetrievalBench:
    """One run on servers that are up; `run` fills the lists."""

    options: RetrievalOptions
    conversations: Sequence[Conversation]
    clients: Mapping[str, MemoryClient]
    progress: Progress
    ingests: list[Ingest] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def run(self) -> None:
        """Every conversation is a user of its own at each chunk size; questions are asked in shuffled order."""
        rng = random.Random(SEED)
        for chunk in self.options.chunks:
            turns = {name: self._ingest(client, chunk) for name, client in self.clients.items()}
            arms = [arm for arm in ARMS if arm.server in self.clients and (arm.whole or chunk == 1)]
            questions = [(c, number) for c in self.conversations for number in range(len(c.questions))]
            found: dict[tuple[str, str, int], Asked] = {}
            for conversation, number in self.progress.track(
                rng.sample(questions, len(questions)), description=f"asking, {chunk} a memory"
            ):
                for arm in rng.sample(arms, len(arms)):
                    one = self._ask(arm, conversation, number, chunk, turns[arm.server][conversation.name])
                    found[arm.name, conversation.name, number] = one
            self.asked += [found[arm.name, c.name, number] for arm in arms for c, number in questions]

    def _ingest(self, client: MemoryClient, chunk: int) -> dict[str, dict[str, str]]:
        """The memory that holds each turn, by conversation and turn. Raises CheckFailed."""
        began = time.perf_counter()
        placed = {
            conversation.name: self._tell(client, conversation, chunk)
            for conversation in self.progress.track(
                self.conversations, description=f"telling, {chunk} a memory, {client.name}"
            )
        }
        seconds = time.perf_counter() - began
        embedding = self._wait(client, chunk, placed) if client.name == VECTORS else 0.0
        memories = sum(len(set(turns.values())) for turns in placed.values())
        self.ingests.append(Ingest(client.name, chunk, memories, seconds, embedding))
        return placed

    def _wait(self, client: MemoryClient, chunk: int, placed: Mapping[str, Mapping[str, str]]) -> float:
        """Seconds until the last memory of every conversation has its vector."""
        began = time.perf_counter()
        for conversation in self.conversations:
            last = sessions_of(conversation.turns, chunk)[-1][-1]
            memory = placed[conversation.name][last.turns[-1].id]
            client.wait_for_vector(user_of(conversation, chunk), memory, last.text)
        return time.perf_counter() - began

    def _tell(self, client: MemoryClient, conversation: Conversation, chunk: int) -> dict[str, str]:
        user = user_of(conversation, chunk)
        placed: dict[str, str] = {}
        texts: dict[str, str] = {}
        for session in sessions_of(conversation.turns, chunk):
            ids = client.tell_session(user, session)
            if len(ids) != len(session):
                raise CheckFailed(f"{len(session)} memories of {user} became {len(ids)}")
            texts.update((memory, part.text) for memory, part in zip(ids, session, strict=True))
            placed.update((turn.id, memory) for memory, part in zip(ids, session, strict=True) for turn in part.turns)
        check_ingested(conversation, user, placed, texts, client.memories(user))
        return placed

    def _ask(
        self, arm: SearchArm, conversation: Conversation, number: int, chunk: int, placed: Mapping[str, str]
    ) -> Asked:
        question = conversation.questions[number]
        client = self.clients[arm.server]
        found, seconds = client.search(user_of(conversation, chunk), question.text, DEPTH, arm.using)
        if strangers := set(found) - set(placed.values()):
            raise CheckFailed(f"'{arm.name}' found {len(strangers)} memories that {conversation.name} does not have")
        place = {memory: rank for rank, memory in enumerate(found, 1)}
        ranks = tuple(place.get(placed[turn]) for turn in question.evidence)
        return Asked(arm.name, chunk, conversation.name, question.category, number, ranks, seconds)


def user_of(conversation: Conversation, chunk: int) -> str:
    return f"{conversation.name}-{chunk}"


def check_ingested(
    conversation: Conversation, user: str, placed: Mapping[str, str], texts: Mapping[str, str], held: Mapping[str, str]
) -> None:
    """Every turn is in a memory, the server holds these memories word for word, and every evidence turn is in one.

    placed: turn → memory; texts: memory → what was sent; held: memory → what the server says. Raises CheckFailed.
    """
    if missing := [turn.id for turn in conversation.turns if turn.id not in placed]:
        raise CheckFailed(f"{len(missing)} turns of {user} were not ingested, {missing[0]} first")
    if held != texts:
        wrong = sum(held.get(memory) != text for memory, text in texts.items())
        raise CheckFailed(f"of {len(texts)} memories of {user} the server holds {len(held)}; {wrong} miss or differ")
    for question in conversation.questions:
        if unknown := [turn for turn in question.evidence if turn not in placed]:
            raise CheckFailed(f"evidence {unknown[0]} of a question of {user} is in no memory")
