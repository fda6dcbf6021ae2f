"""`memos-vllm bench adapters`: users with a LoRA adapter each, on memos, vLLM's own LoRA, and the base model."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from memos_vllm.bench.adapters_client import ARMS, BASE, MEMOS, VLLM, Answered, Asked, Side, side
from memos_vllm.bench.adapters_many import RegistryFigures, registry_figures
from memos_vllm.bench.adapters_options import AdapterOptions
from memos_vllm.bench.adapters_report import AdapterReport, print_adapters, write_adapters
from memos_vllm.bench.adapters_stats import COLD, HOT, NEW, RATE, TTFT, WARM, Sample, summarise_adapters
from memos_vllm.bench.adapters_weights import MadeAdapter, make_adapter
from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.machine import describe
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.servers import Server, running, server_environ
from memos_vllm.bench.text import WORDS
from memos_vllm.config import GIB
from memos_vllm.parameter.base_model import BaseModel

ANSWER_TOKENS = 16
"""Tokens of the answers that are compared."""
STREAMED = 4
"""Requests of a round, one at a time, whose first token is timed."""
SETTLE = 1.5
"""Seconds before an arm's turn: the workers of the one before look for work, without a pause, for a second more."""
OWN = {BASE: {"VLLM_PLUGINS": ""}, VLLM: {"VLLM_PLUGINS": "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}}
"""Variables of vLLM's own servers: no plugin, ours among them, and its route for adapters."""


def bench_adapters(options: AdapterOptions, console: Console) -> None:
    """Make adapters, start the servers, check, measure, check again, report. Raises CheckFailed and ServerFailed."""
    machine = describe(options.gpus)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        folder = Path(temporary)
        base = BaseModel.read(options.model)
        registry = _registry(options, folder / "registry", base, progress)
        made = _made(options, folder / "adapters", base, progress)
        bench = Bench(options, made, progress, random.Random(options.seed))
        task = progress.add_task("starting the servers", total=options.starts * len(ARMS))
        for start in range(options.starts):
            others = set(progress.task_ids)
            _start(bench, start, folder / f"start-{start}", lambda name: progress.advance(task))
            if start + 1 < options.starts:
                _remove(progress, set(progress.task_ids) - others)
    rows = summarise_adapters(bench.samples)
    report = AdapterReport(options, machine, registry, bench.checked, bench.samples, rows)
    write_adapters(report)
    print_adapters(report, console)


def _start(bench: Bench, start: int, folder: Path, on_ready: Callable[[str], None]) -> None:
    """Start the servers, in an order of their own each time, and measure."""
    options, gpu = bench.options, bool(bench.options.gpus)
    folder.mkdir()
    flags = server_flags(options, folder / "memory", sum(adapter.bytes for adapter in bench.made))
    with running(
        options.model,
        {arm: flags[arm] for arm in bench.rng.sample(ARMS, len(ARMS))},
        folder,
        environ=server_environ(options.model, gpu),
        own=OWN,
        one_by_one=gpu,
        on_ready=on_ready,
    ) as servers:
        asyncio.run(bench.run(start, folder, servers))


def _remove(progress: Progress, tasks: Iterable[TaskID]) -> None:
    """The bars of a start make room for those of the next."""
    for task in tasks:
        progress.remove_task(task)


def server_flags(options: AdapterOptions, memory_dir: Path, size: int) -> dict[str, list[str]]:
    """Flags of `memos-vllm serve MODEL` for each arm's server. size: bytes of all adapters.

    What the user gave comes last, so that it wins.
    """
    common = ["--dtype", options.dtype, "--max-model-len", "1024"]
    # Three servers share one GPU; on a CPU compiling three times over would take longer than it saves.
    common += ["--gpu-memory-utilization", "0.28"] if options.gpus else ["--enforce-eager"]
    lora = ["--enable-lora", "--max-loras", str(options.max_loras), "--max-lora-rank", str(options.max_rank)]
    lora += ["--max-cpu-loras", str(max(options.users) + 2 * options.loads)]
    memory = ["--memory-dir", str(memory_dir), "--memory-adapters", "auto", "--memory-splice", options.splice]
    memory += ["--memory-adapter-gib", f"{max(1.0, 1.5 * size / GIB):.2f}"]
    own: dict[str, list[str]] = {BASE: [], VLLM: lora, MEMOS: [*lora, *memory]}
    return {arm: [*common, *words, *options.extra] for arm, words in own.items()}


def _registry(options: AdapterOptions, folder: Path, base: BaseModel, progress: Progress) -> RegistryFigures | None:
    if not options.registered:
        return None
    task = progress.add_task("filling a registry", total=options.registered)
    return registry_figures(options.registered, folder, base, options.modules, lambda: progress.advance(task))


def _made(options: AdapterOptions, folder: Path, base: BaseModel, progress: Progress) -> list[MadeAdapter]:
    """The adapters of all users, then two for each load: one that is registered before, and one of a new user."""
    users = [f"user-{number}" for number in range(max(options.users))]
    users += [f"{kind}-{number}" for number in range(options.loads) for kind in ("cold", "new")]
    return [
        make_adapter(
            user,
            folder / user,
            base,
            modules=options.modules,
            rank=options.rank,
            seed=options.seed + number,
        )
        for number, user in enumerate(progress.track(users, description="making adapters"))
    ]


@dataclass
class Bench:
    """Runs on servers that are up; `run` adds to `samples`. checked: answers that were equal, before and after."""

    options: AdapterOptions
    made: list[MadeAdapter]
    progress: Progress
    rng: random.Random
    samples: list[Sample] = field(default_factory=list)
    checked: int = 0
    start: int = 0
    sides: dict[str, Side] = field(default_factory=dict)

    @property
    def users(self) -> list[str]:
        return [adapter.user for adapter in self.made[: max(self.options.users)]]

    async def run(self, start: int, folder: Path, servers: dict[str, Server]) -> None:
        """Register, check, measure every number of users round by round, time the loads, and check again.

        start: which start of the servers it is; folder: for files of this start.
        """
        options, self.start = self.options, start
        async with AsyncExitStack() as stack:
            for arm, server in servers.items():
                self.sides[arm] = await stack.enter_async_context(side(arm, server, options.concurrency))
            for adapter in self.progress.track(self.made[: len(self.users)], description="registering"):
                await asyncio.gather(self.sides[VLLM].register(adapter), self.sides[MEMOS].register(adapter))
            question = self._question()
            await self._check(question, "checking answers")
            task = self.progress.add_task("measuring", total=len(options.users) * (options.warmup + options.rounds))
            for users in sorted(options.users):
                self.progress.update(task, description=f"measuring {users} users")
                for number in range(-options.warmup, options.rounds):
                    await self._round(users, number)
                    self.progress.advance(task)
            loads = zip(self.made[len(self.users) :: 2], self.made[len(self.users) + 1 :: 2], strict=True)
            task = self.progress.add_task("loading", total=options.loads)
            for number, (cold, new) in enumerate(loads):
                async for one in self._turns((VLLM, MEMOS)):
                    await self._load(one, number, cold, new, folder / f"brought-{number}")
                self.progress.advance(task)
            await self._check(question, "checking answers again")

    def _question(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.options.words))

    async def _check(self, question: str, what: str) -> None:
        """Every user's adapter answers on memos as on vLLM, and as nobody else's does. Raises CheckFailed."""
        plain = await self.sides[BASE].answer(Asked("", question), ANSWER_TOKENS)
        found: dict[str, Answered] = {}
        for user in self.progress.track(self.users, description=what):
            asked = Asked(user, question)
            pair = (self.sides[arm].answer(asked, ANSWER_TOKENS) for arm in (VLLM, MEMOS))
            found[user], ours = await asyncio.gather(*pair)
            check_same(user, found[user], ours)
        check_different(plain, found)
        self.checked += len(found)

    async def _round(self, users: int, number: int) -> None:
        """The same questions to every arm, one arm after another in an order of their own."""
        options, names = self.options, self.users[:users]
        order = self.rng.sample(names, users)
        asked = [Asked(order[place % users], self._question()) for place in range(options.requests)]
        streamed = [Asked(self.rng.choice(names), self._question()) for _ in range(STREAMED)]
        async for one in self._turns(ARMS):
            seconds = await one.batch(asked, options.tokens, options.concurrency)
            first = [await one.first_token(each) for each in streamed]
            if number >= 0:
                self._add(RATE, users, one.arm, number, len(asked) / seconds)
                for value in first:
                    self._add(TTFT, users, one.arm, number, value)

    async def _turns(self, arms: Sequence[str]) -> AsyncIterator[Side]:
        """The arms in an order of their own, each once the servers have come to rest."""
        for arm in self.rng.sample(arms, len(arms)):
            await asyncio.sleep(SETTLE)
            yield self.sides[arm]

    async def _load(self, one: Side, number: int, cold: MadeAdapter, new: MadeAdapter, brought: Path) -> None:
        """Time the first token of an adapter in every place where it may be.

        vLLM has no adapter that it knows and has not loaded: there a cold load is its load route and the request.
        """
        loop = asyncio.get_running_loop()
        texts = [self._question() for _ in range(4)]
        if one.arm == MEMOS:
            await one.register(cold)
        began = loop.time()
        if one.arm == VLLM:
            await one.register(cold)
        await one.first_token(Asked(cold.user, texts[0]))
        self._timed(COLD, one.arm, number, loop.time() - began)
        for user in self.rng.sample(self.users, self.options.max_loras):
            await one.first_token(Asked(user, self._question()))
        self._timed(WARM, one.arm, number, await one.first_token(Asked(cold.user, texts[1])))
        self._timed(HOT, one.arm, number, await one.first_token(Asked(cold.user, texts[2])))
        began = loop.time()
        await one.bring(new, brought)
        await one.first_token(Asked(new.user, texts[3]))
        self._timed(NEW, one.arm, number, loop.time() - began)

    def _timed(self, measure: str, arm: str, number: int, seconds: float) -> None:
        self._add(measure, max(self.options.users), arm, number, seconds)

    def _add(self, measure: str, users: int, arm: str, number: int, value: float) -> None:
        self.samples.append(Sample(measure, users, arm, self.start, number, value))


def check_same(user: str, theirs: Answered, ours: Answered) -> None:
    """Raises CheckFailed where the adapter answers otherwise on memos than on vLLM's own LoRA."""
    if theirs.prompt != ours.prompt:
        raise CheckFailed(f"the question of {user} became another prompt on memos than on vLLM")
    if theirs.tokens != ours.tokens:
        raise CheckFailed(f"{user}'s adapter answers {ours.tokens} on memos and {theirs.tokens} on vLLM's own LoRA")


def check_different(plain: Answered, found: dict[str, Answered]) -> None:
    """Raises CheckFailed where adapters leave an answer as it is, or two give the same: then no check says anything."""
    owners: dict[tuple[int, ...], str] = {tuple(plain.tokens): "the base model"}
    for user, answer in found.items():
        other = owners.setdefault(tuple(answer.tokens), user)
        if other != user:
            raise CheckFailed(f"{user}'s adapter answers as {other} does: nobody could tell them apart")
