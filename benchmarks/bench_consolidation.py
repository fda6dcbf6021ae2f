"""A persona's memories become a LoRA: what it answers without them, what it forgets, what can be read out of it.

    python benchmarks/bench_consolidation.py --facts 200 --forget 20

Three stages, each written down when it is done, so that a run that is stopped goes on where it was:

    consolidate   all facts; held-out phrasings without memory in the prompt, memories of others, unrelated text
    forget        the same without some of them, trained anew; asked for these and for the others
    decode        the first adapter read as text, compared with what it was told
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from memos_vllm.bench.arguments import BUNDLED, default_out
from memos_vllm.bench.machine import describe, in_words
from memos_vllm.bench.persona import Told, make_persona, make_recall, unrelated
from memos_vllm.bench.progress import make_progress
from memos_vllm.parameter.consolidate import ADAPTER, Memory, Report, consolidate
from memos_vllm.parameter.decode import Decoded, DecodeOptions, decode
from memos_vllm.parameter.evaluate import Exam
from memos_vllm.parameter.forgetting import retrain
from memos_vllm.parameter.lora import with_adapter
from memos_vllm.parameter.model import Model
from memos_vllm.parameter.pairs import names
from memos_vllm.parameter.progress import Tell
from memos_vllm.parameter.recipe import Recipe, recipe_from
from memos_vllm.parameter.replay import Asked

RECALL_QUESTIONS = 300
TEXTS = 64
WANTED = {
    "accuracy": ("held-out phrasings, no memory in the prompt", ">= 90 %"),
    "recall_loss": ("recall from others' memories in the prompt, points lost", "<= 2"),
    "perplexity_rise": ("perplexity of unrelated text, % more", "<= 2"),
    "tokens_saved": ("prompt tokens saved a request, all memories in it", ""),
    "forgotten": ("forgotten facts still answered", "<= 10 %"),
    "kept": ("the others, after forgetting", ">= 88 %"),
    "recovered": ("facts read out of the adapter", ">= 80 %"),
    "precision": ("of what was read out, right", ">= 90 %"),
}


@dataclass(frozen=True)
class Persona:
    """What is told, and what is asked about others."""

    told: Sequence[Told]
    recall: tuple[Asked, ...]
    texts: tuple[str, ...]

    def memories(self) -> list[Memory]:
        return [Memory(f"fact-{place}@1", told.text) for place, told in enumerate(self.told)]

    def asked(self, places: Sequence[int]) -> tuple[Asked, ...]:
        """Every held-out phrasing of these facts."""
        return tuple(Asked(text, self.told[place].value) for place in places for text in self.told[place].questions)

    def exam(self, places: Sequence[int]) -> Exam:
        return Exam(self.asked(places), self.recall, self.texts)


def make(seed: int, facts: int) -> Persona:
    rng = random.Random(seed)
    told = make_persona(rng, facts)
    recall = tuple(Asked(each.question, each.value, each.memories) for each in make_recall(rng, RECALL_QUESTIONS))
    return Persona(told, recall, tuple(unrelated(rng, TEXTS)))


def stage_consolidate(args: argparse.Namespace, persona: Persona, recipe: Recipe, tell: Tell) -> dict[str, Any]:
    everything = range(len(persona.told))
    began = time.perf_counter()
    report = consolidate(
        load(args, recipe), persona.memories(), recipe, args.work / "all", exam=persona.exam(everything), tell=tell
    )
    return figures_of(report) | {
        "seconds": time.perf_counter() - began,
        "prompt_tokens": [report.figures.prompt_tokens_before, report.figures.prompt_tokens_after],
        "answers": [msgspec.to_builtins(answer) for answer in report.answers],
    }


def stage_forget(args: argparse.Namespace, persona: Persona, recipe: Recipe, tell: Tell) -> dict[str, Any]:
    gone = sorted(random.Random(f"{args.seed} forget").sample(range(len(persona.told)), args.forget))
    kept = [place for place in range(len(persona.told)) if place not in gone]
    began = time.perf_counter()
    forgotten = retrain(
        load(args, recipe),
        persona.memories(),
        {f"fact-{place}@1" for place in gone},
        recipe,
        args.work / "rest",
        exam=persona.exam(kept),
        asked=persona.asked(gone),
        old=args.work / "all" / ADAPTER,
        tell=tell,
    )
    return figures_of(forgotten.report) | {
        "problems": list(forgotten.problems),
        "seconds": time.perf_counter() - began,
        "proof": msgspec.to_builtins(forgotten.proof),
        "forgotten": [persona.told[place].text for place in gone],
        "answers": [msgspec.to_builtins(answer) for answer in forgotten.answers],
    }


def stage_decode(args: argparse.Namespace, persona: Persona, recipe: Recipe, tell: Tell) -> dict[str, Any]:
    began = time.perf_counter()
    model = with_adapter(load(args, recipe), args.work / "all" / ADAPTER)
    decoded = decode(model, DecodeOptions(seed=args.seed), tell)
    recovered = {place for place, told in enumerate(persona.told) if any(tells(each, told) for each in decoded)}
    right = [each for each in decoded if any(tells(each, told) for told in persona.told)]
    return {
        "seconds": time.perf_counter() - began,
        "recovered": len(recovered) / len(persona.told),
        "precision": len(right) / max(1, len(decoded)),
        "decoded": [msgspec.to_builtins(each) | {"right": each in right} for each in decoded],
        "missed": [told.text for place, told in enumerate(persona.told) if place not in recovered],
    }


def tells(decoded: Decoded, told: Told) -> bool:
    """Whether a decoded sentence says what was told: the same value, of the same thing, of the same person."""
    if not names(decoded.text, told.value):
        return False
    if decoded.text == told.text:
        return True
    owner = f"{told.who}'s" if told.who else "My"
    if decoded.text.startswith(f"{owner} "):
        return decoded.text.startswith(f"{owner} {told.noun} is ")
    words = set(re.findall(r"[\w-]+", decoded.text))
    return (told.who or "I") in words and "'s" not in decoded.text and names(decoded.text, told.noun)


def figures_of(report: Report) -> dict[str, Any]:
    figures = report.figures
    return {
        **msgspec.to_builtins(figures),
        "recall_loss": figures.recall_loss,
        "perplexity_rise": figures.perplexity_rise,
        "tokens_saved": figures.tokens_saved,
        "steps": report.steps,
        "problems": list(report.problems),
    }


def load(args: argparse.Namespace, recipe: Recipe) -> Model:
    return Model.load(str(args.model or BUNDLED), recipe.device)


STAGES: dict[str, Callable[[argparse.Namespace, Persona, Recipe, Tell], dict[str, Any]]] = {
    "consolidate": stage_consolidate,
    "forget": stage_forget,
    "decode": stage_decode,
}


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every stage that is not done yet."""
    settings = {"seed": args.seed, **json.loads(args.recipe)}
    persona = make(args.seed, args.facts)
    args.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with make_progress(console) as progress:
        for stage, measure in STAGES.items():
            file = args.work / f"{stage}.json"
            if not file.exists():
                task = progress.add_task(stage, total=None)

                def tell(what: str, done: int, total: int, task: Any = task) -> None:
                    progress.update(task, description=what, completed=done, total=total or None)

                found = measure(args, persona, recipe_from(settings, forgets=stage == "forget"), tell)
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            results[stage] = json.loads(file.read_text(encoding="utf-8"))
    return results


def summary(results: dict[str, Any]) -> dict[str, float]:
    first, second, third = results["consolidate"], results["forget"], results["decode"]
    return {
        "accuracy": 100 * first["accuracy"],
        "recall_loss": 100 * first["recall_loss"],
        "perplexity_rise": 100 * first["perplexity_rise"],
        "tokens_saved": first["tokens_saved"],
        "forgotten": 100 * second["proof"]["accuracy_after"],
        "kept": 100 * second["accuracy"],
        "recovered": 100 * third["recovered"],
        "precision": 100 * third["precision"],
    }


def report(args: argparse.Namespace, results: dict[str, Any], console: Console) -> None:
    machine, figures = describe(()), summary(results)
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/bench_consolidation.py --facts {args.facts} --forget {args.forget} --seed {args.seed}"
    command += f" --recipe '{args.recipe}'" if args.recipe != RECIPE else ""
    everything = {"benchmark": "consolidation", "command": command, "recipe": json.loads(args.recipe)}
    everything |= {"machine": machine, "summary": figures, "stages": results}
    (args.out / "consolidation.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    with (args.out / "consolidation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("figure", "value", "wanted"))
        writer.writerows((name, round(value, 3), WANTED[name][1]) for name, value in figures.items())
    table = Table("", "", "wanted", title=f"{args.facts} facts, {in_words(machine)}", title_justify="left", box=None)
    for name, value in figures.items():
        table.add_row(WANTED[name][0], f"{value:.1f}", WANTED[name][1])
    console.print(table)


RECIPE = "{}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="folder or name of the base (default: the bundled model)", default=None)
    parser.add_argument("--facts", type=int, default=200, help="of the persona")
    parser.add_argument("--forget", type=int, default=20, help="of them, to be forgotten")
    parser.add_argument("--seed", type=int, default=0, help="of persona and training")
    parser.add_argument("--recipe", default=RECIPE, help="fields of a training's recipe, as JSON")
    parser.add_argument("--work", type=Path, default=Path("build/consolidation"), help="folder of adapters")
    parser.add_argument("--out", type=Path, default=default_out("consolidation", None, False), help="of the results")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    report(args, run(args, console), console)


if __name__ == "__main__":
    main()
