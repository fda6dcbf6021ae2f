"""What the command lines of all benchmarks have in common."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import memos_vllm
from memos_vllm.errors import StartError

BUNDLED = Path(memos_vllm.__file__).parent / "assets" / "tiny"


def model_name(model: str) -> str:
    """The model without its folder."""
    return "bundled tiny model" if Path(model) == BUNDLED else without_folder(model)


def without_folder(word: str) -> str:
    """A local path's last part; other words (model names of a hub among them) as they are."""
    name, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    local = value.startswith(("/", "./", "../", "~")) or ("/" in value and Path(value).exists())
    return f"{name}{equals}{Path(value).name}" if local else word


def command_line(bench: str, words: Sequence[str], model: str, extra: Sequence[str]) -> str:
    """A run of a benchmark as it can be typed, without folders. words: its own options, without --model."""
    named = [] if Path(model) == BUNDLED else ["--model", without_folder(model)]
    flags = ["--", *map(without_folder, extra)] if extra else []
    return shlex.join(["memos-vllm", "bench", bench, *named, *words, *flags])


def default_out(bench: str, model: str | None, gpu: bool) -> Path:
    """The folder of a benchmark's results for a model and a kind of machine."""
    name = Path(model).name if model else "tiny"
    return Path("benchmarks/results") / f"{bench}-{name}-{'gpu' if gpu else 'cpu'}"


def check_installed(picture: str, model: str | None) -> None:
    """Raises StartError where matplotlib, vLLM or the bundled model is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise StartError(f"matplotlib is not installed, which draws {picture}: install memos-vllm[bench]")
    if importlib.util.find_spec("vllm") is None:
        raise StartError("vLLM is not installed: install memos-vllm[cpu], or memos-vllm[cuda] for an NVIDIA GPU")
    if (model is None or Path(model) == BUNDLED) and not BUNDLED.exists():
        raise StartError("the bundled model is missing from this installation: name one with --model")


def words_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of different words out of the known ones, with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if not {*words} <= {*known} or len({*words}) < len(words):
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, commas between them, not '{text}'")
        return words

    return parse


def count_from(low: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` on."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= low):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} on, not '{text}'")
        return int(text)

    return parse


def counts(text: str) -> tuple[int, ...]:
    """Different whole numbers above 0, with commas between them."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between them, not '{text}'") from None
    if min(values) < 1 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"must be different numbers above 0, not '{text}'")
    return values
