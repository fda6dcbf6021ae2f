"""The command line of `memos-vllm bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memos_vllm.bench.adapters_options import AdapterOptions, add_adapters
from memos_vllm.bench.arguments import (
    BUNDLED,
    check_installed,
    command_line,
    count_from,
    counts,
    default_out,
    model_name,
)
from memos_vllm.bench.load_options import LoadOptions, add_load
from memos_vllm.bench.machine import gpu_names
from memos_vllm.bench.quality_options import QualityOptions, add_quality
from memos_vllm.bench.retrieval_options import RetrievalOptions, add_retrieval
from memos_vllm.errors import StartError

CUBES = 3
"""Memories in every prompt; a context's tokens are shared out among them."""
MIN_CUBE = 32
"""Tokens; below, a memory is hardly worth splicing."""


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
        return model_name(self.model)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["--contexts", ",".join(map(str, self.contexts)), "--queries", ",".join(map(str, self.queries))]
        words += ["--repetitions", str(self.repetitions), "--warmup", str(self.warmup), "--builds", str(self.builds)]
        words += ["--dtype", self.dtype, "--seed", str(self.seed)]
        return command_line("ttft", words, self.model, self.extra)


Options = TtftOptions | QualityOptions | LoadOptions | RetrievalOptions | AdapterOptions


def read_options(argv: Sequence[str]) -> Options:
    """The options of one benchmark; words after `--` are vLLM's. Raises StartError for what cannot be measured."""
    own, extra = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    args = _parser().parse_args(own)
    read: Callable[[argparse.Namespace, Sequence[str]], Options] = args.read
    return read(args, extra)


def ttft_options(args: argparse.Namespace, extra: Sequence[str]) -> TtftOptions:
    """Settings from parsed arguments. Raises StartError for what cannot be measured."""
    check_installed("ttft.png", args.model)
    if min(args.contexts) < CUBES * MIN_CUBE:
        raise StartError(
            f"--contexts must be {CUBES * MIN_CUBE} tokens or more: they are shared out among {CUBES} memories"
        )
    gpus = tuple(gpu_names())
    return TtftOptions(
        model=args.model or str(BUNDLED),
        contexts=args.contexts,
        queries=args.queries,
        repetitions=args.repetitions,
        warmup=args.warmup,
        builds=args.builds,
        seed=args.seed,
        dtype=args.dtype or ("auto" if gpus else "float32"),
        gpus=gpus,
        out=args.out or default_out("ttft", args.model, bool(gpus)),
        extra=tuple(extra),
    )


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
    ttft.add_argument("--contexts", type=counts, default=(583, 2773, 6064), help="tokens of the memories, together")
    ttft.add_argument("--queries", type=counts, default=(167, 303, 953), help="tokens of the question")
    ttft.add_argument("--repetitions", type=count_from(1), default=10, help="measured rounds")
    ttft.add_argument("--warmup", type=count_from(0), default=2, help="rounds before them that do not count")
    ttft.add_argument("--builds", type=count_from(1), default=3, help="how often the KV cubes of a context are built")
    ttft.add_argument("--dtype", default=argparse.SUPPRESS, help="default: float32 on a CPU, the model's own on a GPU")
    ttft.add_argument("--seed", type=int, default=0, help="of texts and of the order of measurements")
    ttft.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for ttft.json, ttft.csv and ttft.png")
    ttft.set_defaults(model=None, dtype=None, out=None, read=ttft_options)
    add_quality(benches)
    add_load(benches)
    add_retrieval(benches)
    add_adapters(benches)
    return parser
