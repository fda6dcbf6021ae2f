"""The command line of `memos-vllm bench adapters`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memos_vllm.bench.arguments import (
    BUNDLED,
    check_installed,
    command_line,
    count_from,
    counts,
    default_out,
    model_name,
)
from memos_vllm.bench.machine import gpu_names
from memos_vllm.errors import StartError
from memos_vllm.parameter.base_model import BaseModel

USERS = (1, 4, 16, 64, 256)
MAX_LORAS = 16
RANKS = (8, 16, 32, 64, 128, 256)
"""Values that vLLM 0.32 takes for --max-lora-rank."""


@dataclass(frozen=True)
class AdapterOptions:
    """Settings of `bench adapters`.

    users: how many users have an adapter each, one measurement for each number
    starts: how often the servers are started anew; rounds, warmup, loads: of each start
    requests, tokens, words: of one round of one arm; tokens of an answer, words of a question
    modules: last parts of the names of the layers that the adapters change
    max_loras: slots of the engines; loads: adapters whose way into the engine is timed
    registered: adapters of the registry whose figures are taken without a server, 0 for none
    splice: --memory-splice of the memos server
    """

    model: str
    users: tuple[int, ...]
    starts: int
    rounds: int
    warmup: int
    requests: int
    concurrency: int
    tokens: int
    words: int
    rank: int
    modules: tuple[str, ...]
    max_loras: int
    loads: int
    registered: int
    splice: str
    seed: int
    dtype: str
    gpus: tuple[str, ...]
    out: Path
    extra: tuple[str, ...]

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def max_rank(self) -> int:
        """The smallest --max-lora-rank that takes the adapters."""
        return next(rank for rank in RANKS if rank >= self.rank)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["--users", ",".join(map(str, self.users)), "--modules", ",".join(self.modules)]
        for name in (
            "starts",
            "rounds",
            "warmup",
            "requests",
            "concurrency",
            "tokens",
            "words",
            "rank",
            "max_loras",
            "loads",
        ):
            words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        words += ["--registered", str(self.registered), "--splice", self.splice]
        words += ["--dtype", self.dtype, "--seed", str(self.seed)]
        return command_line("adapters", words, self.model, self.extra)


def add_adapters(benches: Any) -> None:
    """Add the command to the subcommands of `memos-vllm bench`."""
    bench = benches.add_parser(
        "adapters",
        help="users with a LoRA adapter each: requests/s and time to first token beside vLLM's own LoRA",
        usage="memos-vllm bench adapters [options] [-- vLLM flags for all servers]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bench.add_argument("--model", help="path or name (default: the bundled model)", default=argparse.SUPPRESS)
    bench.add_argument("--users", type=counts, default=USERS, help="users with an adapter each")
    bench.add_argument(
        "--starts", type=count_from(1), default=1, help="times the servers are started, to measure in each"
    )
    bench.add_argument(
        "--rounds", type=count_from(2), default=15, help="measured rounds of each start, for each number of users"
    )
    bench.add_argument("--warmup", type=count_from(0), default=1, help="rounds before them that do not count")
    bench.add_argument("--requests", type=count_from(1), default=64, help="requests of a round to every arm")
    bench.add_argument("--concurrency", type=count_from(1), default=8, help="requests at a time")
    bench.add_argument("--tokens", type=count_from(2), default=32, help="tokens of an answer")
    bench.add_argument("--words", type=count_from(1), default=32, help="words of a question")
    bench.add_argument("--rank", type=count_from(1), default=8, help="of the adapters")
    bench.add_argument("--modules", default="q_proj,v_proj", help="layers that the adapters change")
    bench.add_argument(
        "--max-loras",
        type=count_from(1),
        default=argparse.SUPPRESS,
        help=f"slots of the engines for adapters (default: {MAX_LORAS}, or the most users where that is less)",
    )
    bench.add_argument("--loads", type=count_from(0), default=12, help="adapters whose loading is timed, of each start")
    bench.add_argument(
        "--registered", type=count_from(0), default=1000, help="adapters of a registry that is timed without a server"
    )
    bench.add_argument("--splice", choices=("on", "off"), default="on", help="--memory-splice of the memos server")
    bench.add_argument("--dtype", default=argparse.SUPPRESS, help="default: float32 on a CPU, the model's on a GPU")
    bench.add_argument("--seed", type=int, default=0, help="of weights, questions and the order of measurements")
    bench.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for adapters.json, .csv and .png")
    bench.set_defaults(model=None, max_loras=None, dtype=None, out=None, read=adapter_options)


def adapter_options(args: argparse.Namespace, extra: Sequence[str]) -> AdapterOptions:
    """Settings from parsed arguments. Raises StartError for what cannot be measured."""
    check_installed("adapters.png", args.model)
    max_loras = args.max_loras or min(MAX_LORAS, max(args.users))
    if max_loras > max(args.users):
        raise StartError(
            "--max-loras must not be more than the most --users: their adapters push others out of the slots"
        )
    if args.rank > RANKS[-1]:
        raise StartError(f"--rank must be {RANKS[-1]} at most")
    model = args.model or str(BUNDLED)
    gpus = tuple(gpu_names())
    return AdapterOptions(
        model=model,
        users=args.users,
        starts=args.starts,
        rounds=args.rounds,
        warmup=args.warmup,
        requests=args.requests,
        concurrency=args.concurrency,
        tokens=args.tokens,
        words=args.words,
        rank=args.rank,
        modules=_known_modules(args.modules, model),
        max_loras=max_loras,
        loads=args.loads,
        registered=args.registered,
        splice=args.splice,
        seed=args.seed,
        dtype=args.dtype or ("auto" if gpus else "float32"),
        gpus=gpus,
        out=args.out or default_out("adapters", args.model, bool(gpus)),
        extra=tuple(extra),
    )


def _known_modules(text: str, model: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(text.split(",")))
    known = {name.rpartition(".")[2] for name in BaseModel.read(model).modules}
    if not {*wanted} <= known:
        raise StartError(f"--modules must be of {', '.join(sorted(known))}, commas between them, not '{text}'")
    return wanted
