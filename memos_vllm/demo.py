"""`memos-vllm demo`: a server with memory at work, checked as it goes, in plain words."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.bench.client import Client, Timed
from memos_vllm.bench.machine import gpu_names
from memos_vllm.bench.servers import SERVED_NAME, ServerFailed, running, server_environ
from memos_vllm.bench.stats import Quartiles
from memos_vllm.bench.text import shares, text_of
from memos_vllm.errors import StartError
from memos_vllm.memory_block import INTRO, OUTRO, memory_line

EXIT_WRONG = 1
EXIT_STOPPED = 130
ANSWER_TOKENS = 24
LONG_MEMORY = 2700
"""Tokens of the memories in the comparison of times."""
QUESTION_TOKENS = 24
ROUNDS = 5

FACTS: dict[str, tuple[str, str]] = {
    "favourite tea": ("oolong", "sencha"),
    "home town": ("Lisbon", "Oslo"),
    "dog": ("Biscuit", "Shadow"),
    "hobby": ("archery", "pottery"),
    "favourite colour": ("green", "purple"),
    "favourite food": ("ramen", "paella"),
    "favourite fruit": ("mango", "cherry"),
    "job": ("baker", "pilot"),
    "instrument": ("cello", "banjo"),
    "car": ("Volvo", "Fiat"),
    "allergy": ("pollen", "shellfish"),
    "sport": ("tennis", "hockey"),
}
"""What is told about: Maya's value, Tom's value."""
PEOPLE = ("maya", "tom")
ASKED = ("favourite tea", "home town", "dog", "hobby")


def run(argv: Sequence[str]) -> int:
    """Run the demo; 0 when everything it shows was right, 1 with what was wrong. Raises StartError."""
    parser = argparse.ArgumentParser(prog="memos-vllm demo", description="Show a server with memory at work.")
    parser.add_argument("--model", default=str(BUNDLED), help="path or name (default: the bundled model)")
    model = parser.parse_args(argv).model
    if model == str(BUNDLED) and not BUNDLED.exists():
        raise StartError("the bundled model is missing from this installation: name one with --model")
    console = Console(highlight=False)
    try:
        problems = _demo(model, console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return EXIT_STOPPED
    except ServerFailed as error:
        Console(stderr=True).print(error.log_tail, markup=False, highlight=False, soft_wrap=True)
        raise
    for problem in problems:
        console.print(f"[bold red]Wrong:[/] {escape(problem)}")
    console.print("" if problems else "[bold green]All was right.[/]")
    return EXIT_WRONG if problems else 0


def _demo(model: str, console: Console) -> list[str]:
    """Start a server, show it, end it; returns what was wrong."""
    gpu = bool(gpu_names())
    with tempfile.TemporaryDirectory(prefix="memos-demo-") as temporary:
        folder = Path(temporary)
        flags = ["--memory-dir", str(folder / "memory"), "--memory-token-budget", "4096", "--max-model-len", "4096"]
        flags += ["--memory-promote", "all"]  # the demo's facts are short, and it waits for the K/V of each
        flags += [] if gpu else ["--dtype", "float32", "--enforce-eager"]
        console.print(
            "[bold]1. A server with memory[/]: vLLM, started by [cyan]memos-vllm serve MODEL --memory-dir DIR[/]"
        )
        environ, began = server_environ(model, gpu), time.monotonic()
        with (
            _waiting(console, "starting; half a minute to two") as stop,
            running(model, {"memos": flags}, folder, environ=environ, on_ready=lambda name: stop()) as servers,
        ):
            say(console, f"It was up after {time.monotonic() - began:.0f} s.\n")
            with closing(Client(servers["memos"])) as client:
                demo = Demo(console, client, f"{servers['memos'].url}/v1", folder / "memory")
                demo.tell()
                demo.ask()
                demo.ask_as_others()
                demo.compare_times()
    return demo.problems


@dataclass
class Demo:
    """The demo on a server that is up; what goes wrong is collected."""

    console: Console
    client: Client
    url: str
    memory_dir: Path
    problems: list[str] = field(default_factory=list)

    def tell(self) -> None:
        """Add a dozen memories for each person, and wait for their KV cubes."""
        self.console.print("[bold]2. Maya and Tom each tell it a dozen things about themselves[/] (POST /v1/memories)")
        ids = []
        for person in PEOPLE:
            statements = [f"My {thing} is {value}." for thing, value in facts_of(person).items()]
            ids += self.client.remember(person, statements)
            say(self.console, f"{person.capitalize()}: [italic]{' '.join(statements[:4])}[/] …")
        began = time.monotonic()
        with self.console.status("waiting for the K/V of the memories"):
            records = self.client.wait_for_kv(self.memory_dir, ids)
        seconds, size = time.monotonic() - began, sum(record.bytes for record in records) / 2**20
        say(
            self.console,
            f"All {len(ids)} memories are stored. {seconds:.1f} s later their K/V had been captured: "
            f"{size:.1f} MiB in {len(records)} files.\n",
        )

    def ask(self) -> None:
        """Ask the same questions as each person; every answer must name their own value and not the other's."""
        self.console.print("[bold]3. Both ask the same questions[/], through the unchanged OpenAI client")
        table = Table("question", *(f"{person.capitalize()} is told" for person in PEOPLE))
        first: Mapping[str, str] = {}
        for thing in ASKED:
            question, cells = f"What is my {thing}?", []
            for person in PEOPLE:
                answer, headers = self._chat(question, person)
                first = first or headers
                problem = wrong_answer(answer, thing, person) or wrong_headers(headers)
                if problem:
                    self.problems.append(f"{person.capitalize()} asked {question!r}: {problem}")
                cells.append(f"{escape(answer)} {'[red]✗[/]' if problem else '[green]✓[/]'}")
            table.add_row(question, *cells)
        say(self.console, table)
        say(self.console, f"What the headers of the first answer say: {in_words(first)}\n")

    def ask_as_others(self) -> None:
        """Ask as somebody without memories and as nobody: neither may be told what belongs to Maya or Tom."""
        self.console.print("[bold]4. Others ask too[/]: memories are private")
        leaks = []
        for name, user in (("Eve, who has told it nothing", "eve"), ("Somebody without a name", None)):
            answer, headers = self._chat("What is my favourite tea?", user)
            say(self.console, f"{name}: What is my favourite tea? → [italic]{escape(answer) or '(nothing)'}[/]")
            if headers.get("x-memos-cubes") or any(value in answer.lower() for value in FACTS["favourite tea"]):
                leaks.append(f"{name} was given a memory of Maya or Tom: {answer!r}")
        say(self.console, "Neither was given a memory of Maya or Tom.\n" if not leaks else "")
        self.problems += leaks

    def compare_times(self) -> None:
        """Time to first token of one long prompt: as text with a cold prefix cache, and spliced."""
        self.console.print(f"[bold]5. The time until an answer starts[/], with {LONG_MEMORY:,} tokens of memories")
        rng = random.Random(0)  # noqa: S311
        texts = [self._memory_text(tokens, rng) for tokens in shares(LONG_MEMORY, 3)]
        with self.console.status("capturing the K/V of the long memories"):
            self.client.wait_for_kv(self.memory_dir, self.client.remember("zoe", texts))
        text, spliced = self._measure(texts, rng)
        plain, memos = (Quartiles.of([timed.ttft for timed in found]) for found in (text, spliced))
        say(self.console, f"vLLM, memories as text:  {plain.median * 1e3:7.0f} ms (median of {ROUNDS})")
        say(self.console, f"memos, memories spliced: {memos.median * 1e3:7.0f} ms (median of {ROUNDS})")
        say(self.console, f"That is {plain.median / memos.median:.1f} times as fast.")
        say(self.console, in_words(spliced[-1].headers))
        say(self.console, "[dim]`memos-vllm bench ttft` compares with vLLM's prefix caching too.[/]\n")
        self.problems += [problem for timed in spliced if (problem := wrong_headers(timed.headers))]
        if memos.median >= plain.median:
            self.problems.append("splicing was no faster than computing the memories as text")

    def _measure(self, texts: Sequence[str], rng: random.Random) -> tuple[list[Timed], list[Timed]]:
        """Times of the text prompt and of the spliced one, in turns; the first round warms up."""
        block = {"role": "system", "content": INTRO + "".join(map(memory_line, texts)) + OUTRO}
        rounds: list[list[Timed]] = []
        with _bar(self.console) as progress:
            for _ in progress.track(range(ROUNDS + 1), description="   measuring"):
                question = {"role": "user", "content": text_of(QUESTION_TOKENS, self.client.count, rng)}
                ways: list[tuple[list[dict[str, str]], dict[str, str]]] = [
                    ([block, question], {}),
                    ([question], {"x-memos-user-id": "zoe"}),
                ]
                rounds.append([self._cold_stream(messages, headers) for messages, headers in ways])
        text, spliced = zip(*rounds[1:], strict=True)
        return list(text), list(spliced)

    def _cold_stream(self, messages: list[dict[str, str]], headers: Mapping[str, str]) -> Timed:
        self.client.reset_prefix_cache()
        return self.client.stream(messages, headers)

    def _memory_text(self, tokens: int, rng: random.Random) -> str:
        return text_of(tokens, lambda text: self.client.count(memory_line(text)), rng)

    def _chat(self, question: str, user: str | None) -> tuple[str, Mapping[str, str]]:
        """The answer's text and headers."""
        headers = {"x-memos-user-id": user} if user else {}
        with openai.OpenAI(base_url=self.url, api_key="none", default_headers=headers) as client:
            raw = client.chat.completions.with_raw_response.create(
                model=SERVED_NAME,
                messages=[{"role": "user", "content": question}],
                max_completion_tokens=ANSWER_TOKENS,
                temperature=0,
            )
        answer: Any = raw.parse()
        return (answer.choices[0].message.content or "").strip(), raw.headers


def facts_of(person: str) -> dict[str, str]:
    """What a person tells: thing → value."""
    return {thing: values[PEOPLE.index(person)] for thing, values in FACTS.items()}


def wrong_answer(answer: str, thing: str, person: str) -> str | None:
    """What is wrong with the answer to a question of `person` about `thing`; None when nothing is."""
    own = facts_of(person)[thing]
    foreign = next(value for value in FACTS[thing] if value != own)
    if foreign.lower() in answer.lower():
        return f"the answer {answer!r} is somebody else's"
    return None if own.lower() in answer.lower() else f"the answer {answer!r} does not say {own!r}"


def wrong_headers(headers: Mapping[str, str]) -> str | None:
    """What the headers of a spliced answer tell of trouble; None when nothing."""
    if cause := headers.get("x-memos-fallback"):
        return f"memories were not spliced as they should ({cause})"
    if not int(headers.get("x-memos-spliced-tokens", 0)):
        return "no memory was spliced"
    return None


def in_words(headers: Mapping[str, str]) -> str:
    """The `x-memos-*` headers as a sentence."""
    cubes = len(headers.get("x-memos-cubes", "").split(",")) if headers.get("x-memos-cubes") else 0
    kinds = ("prompt", "cached", "spliced", "repaired", "computed")
    count = {kind: int(headers.get(f"x-memos-{kind}-tokens", 0)) for kind in kinds}
    sources = {"ram": " from RAM", "disk": " from disk", "mixed": " from RAM and disk", "none": ""}
    source = sources[headers.get("x-memos-kv-source", "none")]
    reused = f"{count['cached']} came from vLLM's prefix cache, " if count["cached"] else ""
    used = "1 memory used" if cubes == 1 else f"{cubes} memories used"
    return (
        f"{used}; of {count['prompt']} tokens of the prompt {reused}{count['spliced']} were spliced"
        f"{source}, {count['repaired']} were computed anew to see what stands before them, {count['computed']} were "
        "computed as ever."
    )


def say(console: Console, what: RenderableType) -> None:
    """Print indented, wrapped at the terminal's edge."""
    console.print(Padding(what, (0, 0, 0, 3), expand=False))


def _bar(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)


@contextmanager
def _waiting(console: Console, what: str) -> Iterator[Any]:
    """A spinner and the seconds that have passed, until the yielded function is called or the block ends."""
    columns = (SpinnerColumn(), TextColumn(f"  {what}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(what, total=None)
        yield progress.stop
