"""`memos-vllm bench quality`: what each repair policy does to answers, and what it costs, on a real server.

Why over HTTP: the answers are then those that a client gets, and their times too. What HTTP cannot give is the whole
distribution of a token; the divergence is computed from the likeliest tokens of both sides (`kl_divergence`).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from memos_vllm.activation.repair import parse_policy
from memos_vllm.bench.checks import HALF_PRECISION_TIE, CheckFailed
from memos_vllm.bench.client import Client, Messages, Told
from memos_vllm.bench.machine import describe
from memos_vllm.bench.progress import make_progress
from memos_vllm.bench.quality_cases import Case, make_cases
from memos_vllm.bench.quality_options import FULL, QualityOptions
from memos_vllm.bench.quality_report import QualityReport, print_quality, write_quality
from memos_vllm.bench.quality_stats import PLAIN, Graded, divergences, summarise_quality
from memos_vllm.bench.servers import running, server_environ

ANSWER_TOKENS = 48
ALTERNATIVES = 20
"""Most log-probabilities that vLLM tells of a token by default."""
POSITIONS = 8192


def bench_quality(options: QualityOptions, console: Console) -> None:
    """Start a server, check, measure, report. Raises CheckFailed and ServerFailed."""
    machine = describe(options.gpus)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as temporary, make_progress(console) as progress:
        folder = Path(temporary)
        task = progress.add_task("starting the server", total=1)
        with running(
            options.model,
            {"memos": server_flags(options, folder / "memory")},
            folder,
            environ=server_environ(options.model, bool(options.gpus)),
            on_ready=lambda name: progress.advance(task),
        ) as servers:
            client = Client(servers["memos"])
            try:
                bench = QualityBench(options, folder / "memory", client, progress)
                bench.run()
            finally:
                client.close()
    report = QualityReport(options, machine, bench.cases, bench.graded, summarise_quality(bench.graded))
    write_quality(report, options.out)
    print_quality(report, console)


def server_flags(options: QualityOptions, memory_dir: Path) -> list[str]:
    """Flags of `memos-vllm serve MODEL`. What the user gave comes last, so that it wins.

    Without the prefix cache every prompt's memories are spliced or computed, none is remembered from another policy.
    The server's own policy is one that needs deviations, so that they are measured for those that are asked for.
    """
    flags = ["--dtype", options.dtype, "--max-model-len", str(POSITIONS), "--no-enable-prefix-caching"]
    flags += [] if options.gpus else ["--enforce-eager"]
    memory = ["--memory-dir", str(memory_dir), "--memory-splice", "on", "--memory-promote", "all"]
    memory += ["--memory-repair", max(options.policies, key=lambda policy: parse_policy(policy).needs_deviation)]
    return [*flags, *memory, "--memory-token-budget", str(POSITIONS), *options.extra]


@dataclass
class QualityBench:
    """One run on a server that is up; `run` fills the lists."""

    options: QualityOptions
    memory_dir: Path
    client: Client
    progress: Progress
    cases: list[Case] = field(default_factory=list)
    graded: list[Graded] = field(default_factory=list)

    def run(self) -> None:
        """Write the prompts, build their KV cubes, then ask each under every policy, in shuffled order."""
        options, rng = self.options, random.Random(self.options.seed)
        task = self.progress.add_task("writing prompts", total=1)
        self.cases = make_cases(rng, options.sizes, options.prompts, POSITIONS, self.client.count)
        self.progress.advance(task)
        built = self.progress.track(self.cases, description="building KV cubes")
        memories = [self._remember(case, rng) for case in built]
        task = self.progress.add_task("asking", total=len(self.cases) * (len(options.policies) + 1))
        pairs = list(zip(self.cases, memories, strict=True))
        for case, ids in rng.sample(pairs, len(pairs)):
            self._ask(case, ids, rng)
            self.progress.advance(task, len(options.policies) + 1)

    def _remember(self, case: Case, rng: random.Random) -> Memories:
        """Have the KV cubes of a prompt's memories made, one by one and in another order than the prompt's."""
        order = rng.sample(range(len(case.texts)), len(case.texts))
        made = self.client.remember(case.user, [case.texts[place] for place in order])
        records = self.client.wait_for_kv(self.memory_dir, made)
        ids = [memory for _, memory in sorted(zip(order, made, strict=True))]
        return Memories(ids, sum(record.tokens for record in records))

    def _ask(self, case: Case, memories: Memories, rng: random.Random) -> None:
        """Ask one prompt under all policies. The full repair tells the tokens of the prompt for plain prefill."""
        others = [policy for policy in self.options.policies if policy != FULL]
        told = {FULL: self._told(case, memories, FULL)}
        order = rng.sample([PLAIN, *others], len(others) + 1)
        for policy in order:
            if policy == PLAIN:
                told[PLAIN] = self.client.tell_tokens(told[FULL].prompt_ids, ANSWER_TOKENS, ALTERNATIVES)
            else:
                told[policy] = self._told(case, memories, policy)
        plain = told[PLAIN]
        check_full(case, told[FULL], plain, 0.0 if self.options.dtype == "float32" else HALF_PRECISION_TIE)
        if any(one.prompt_ids != plain.prompt_ids for one in told.values()):
            raise CheckFailed(f"prompt {case.number} is not the same under all policies")
        self.graded += [
            grade(case, memories, policy, told[policy], plain) for policy in (PLAIN, *self.options.policies)
        ]

    def _told(self, case: Case, memories: Memories, policy: str) -> Told:
        question: Messages = [{"role": "user", "content": case.ask.question}]
        headers = {
            "x-memos-user-id": case.user,
            "x-memos-cubes": ",".join(memories.ids),
            "x-memos-repair": policy,
        }
        told = self.client.tell(question, headers, ANSWER_TOKENS, ALTERNATIVES)
        check_spliced(case, memories, policy, told.headers)
        return told


@dataclass(frozen=True)
class Memories:
    """Ids of a prompt's memories in its order, and how many tokens they have."""

    ids: Sequence[str]
    tokens: int


def grade(case: Case, memories: Memories, policy: str, told: Told, plain: Told) -> Graded:
    """Compare one answer with the truth and with full prefill."""
    kl_first, kl_answer = divergences(plain, told)
    return Graded(
        case=case.number,
        kind=case.ask.kind,
        size=case.size,
        memories=len(case.texts),
        policy=policy,
        right=case.ask.is_right(told.text),
        agrees=told.token_ids == plain.token_ids,
        kl_first=kl_first,
        kl_answer=kl_answer,
        tokens=memories.tokens,
        repaired=memories.tokens if policy in (PLAIN, FULL) else int(told.headers["x-memos-repaired-tokens"]),
        ttft=told.ttft,
        text=told.text,
    )


def check_full(case: Case, full: Told, plain: Told, tie: float) -> None:
    """Full repair answers as plain prefill does, token for token, up to a tie of probabilities. Raises CheckFailed."""
    for step, (ours, theirs) in enumerate(zip(full.token_ids, plain.token_ids, strict=False)):
        if ours == theirs:
            continue
        known = plain.alternatives[step]
        if tie and ours in known and known[theirs] - known[ours] <= tie:
            return
        raise CheckFailed(f"at prompt {case.number}, full repair says '{full.text}' and plain vLLM '{plain.text}'")
    if len(full.token_ids) != len(plain.token_ids):
        raise CheckFailed(f"at prompt {case.number}, full repair and plain vLLM do not end at the same token")


def check_spliced(case: Case, memories: Memories, policy: str, headers: Mapping[str, str]) -> None:
    """The memories were used, in their order, and spliced or repaired, every token. Raises CheckFailed."""
    problem = None
    spliced, repaired = (int(headers.get(f"x-memos-{kind}-tokens", 0)) for kind in ("spliced", "repaired"))
    if headers.get("x-memos-cubes", "") != ",".join(memories.ids):
        problem = f"used the memories '{headers.get('x-memos-cubes', '')}'"
    elif cause := headers.get("x-memos-fallback"):
        problem = f"fell back ({cause})"
    elif policy != FULL and spliced + repaired < memories.tokens:
        problem = f"spliced {spliced} and repaired {repaired} of {memories.tokens} tokens"
    elif policy == "none" and repaired:
        problem = f"repaired {repaired} tokens"
    if problem:
        raise CheckFailed(f"'{policy}' at prompt {case.number} {problem}")
