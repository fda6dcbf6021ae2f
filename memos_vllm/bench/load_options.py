"""The command line of `memos-vllm bench load`."""

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
    without_folder,
    words_of,
)
from memos_vllm.bench.machine import gpu_names
from memos_vllm.errors import StartError

RATES = (10, 20, 40, 60, 80, 100)
LEXICAL, CHATTING, FUSED = ARMS = ("lexical", "chatting", "fused")
"""Words alone; the same server with chats beside; a server with an embedder."""


@dataclass(frozen=True)
class LoadOptions:
    """Settings of `bench load`.

    arms: which of ARMS are measured
    rates: requests a second; chat_rates: those at which chats run beside; seconds: length of each measurement
    embedder: what the server of the fused arm embeds with, "" for none; embedded: memories in its vault
    """

    model: str
    memories: int
    users: int
    arms: tuple[str, ...]
    rates: tuple[int, ...]
    chat_rates: tuple[int, ...]
    chats: int
    seconds: int
    embedder: str
    embedded: int
    seed: int
    gpus: tuple[str, ...]
    out: Path
    extra: tuple[str, ...]

    @property
    def model_name(self) -> str:
        return model_name(self.model)

    @property
    def command(self) -> str:
        """The run as a command line without folders."""
        words = ["--memories", str(self.memories), "--users", str(self.users)]
        words += ["--arms", ",".join(self.arms), "--rates", _joined(self.rates)]
        words += ["--chat-rates", _joined(self.chat_rates), "--chats", str(self.chats), "--seconds", str(self.seconds)]
        if self.embedder:
            words += ["--embedder", without_folder(self.embedder), "--embedded", str(self.embedded)]
        words += ["--seed", str(self.seed)]
        return command_line("load", words, self.model, self.extra)


def add_load(benches: Any) -> None:
    """Add the command to the subcommands of `memos-vllm bench`."""
    load = benches.add_parser(
        "load",
        help="adding and searching memories under a given number of requests a second",
        usage="memos-vllm bench load [options] [-- vLLM flags]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    load.add_argument("--model", help="path or name (default: the bundled model)", default=argparse.SUPPRESS)
    load.add_argument("--memories", type=count_from(1), default=100_000, help="memories in the vault before")
    load.add_argument("--users", type=count_from(1), default=1_000, help="users who share them out")
    load.add_argument(
        "--arms",
        type=words_of(ARMS),
        default=argparse.SUPPRESS,
        help="what is measured, one part or several: lexical (by words alone), chatting (the same with chats beside), "
        "fused (by words and meaning, with --embedder) (default: lexical,chatting; and fused with --embedder)",
    )
    load.add_argument("--rates", type=counts, default=RATES, help="requests a second")
    load.add_argument("--chat-rates", type=counts, default=(40, 100), help="rates of the arm with chats")
    load.add_argument("--chats", type=count_from(1), default=2, help="chats at a time in that arm")
    load.add_argument("--seconds", type=count_from(1), default=60, help="length of each measurement")
    load.add_argument("--embedder", default="", help="also measure a server with this --memory-embedder")
    load.add_argument(
        "--embedded",
        type=count_from(1),
        default=argparse.SUPPRESS,
        help="memories in that server's vault; all must have their vectors before it is measured (default: --memories)",
    )
    load.add_argument("--seed", type=int, default=0, help="of texts, users and arrivals")
    load.add_argument("--out", type=Path, default=argparse.SUPPRESS, help="folder for load.json, load.csv and load.png")
    load.set_defaults(model=None, arms=None, embedded=None, out=None, read=load_options)


def load_options(args: argparse.Namespace, extra: Sequence[str]) -> LoadOptions:
    """Settings from parsed arguments. Raises StartError for what cannot be measured."""
    check_installed("load.png", args.model)
    arms = args.arms or ((*ARMS,) if args.embedder else (LEXICAL, CHATTING))
    embedded = args.embedded or args.memories
    if (FUSED in arms) != bool(args.embedder):
        raise StartError("the arm 'fused' and --embedder need each other")
    if args.users > min(args.memories, embedded):
        raise StartError("--users must not be more than --memories or --embedded: each has one memory at least")
    gpus = tuple(gpu_names())
    return LoadOptions(
        model=args.model or str(BUNDLED),
        memories=args.memories,
        users=args.users,
        arms=arms,
        rates=args.rates,
        chat_rates=args.chat_rates,
        chats=args.chats,
        seconds=args.seconds,
        embedder=args.embedder,
        embedded=embedded,
        seed=args.seed,
        gpus=gpus,
        out=args.out or default_out("load", args.model, bool(gpus)),
        extra=tuple(extra),
    )


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
