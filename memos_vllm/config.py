"""Every memory flag once: name, unit, default, help. `serve` reads the flags; its child processes read the environment.

A flag `--memory-top-k` is the environment variable `MEMOS_TOP_K` and the attribute `top_k`. A flag wins over its
variable, a variable over the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from memos_vllm.errors import StartError

GIB = 2**30


@dataclass(frozen=True)
class Flag:
    """How one field of MemoryConfig is written on the command line and in the environment."""

    name: str
    metavar: str
    parse: Callable[[str], Any]
    help: str

    @property
    def option(self) -> str:
        return f"--memory-{self.name}"

    @property
    def dest(self) -> str:
        return self.option[2:].replace("-", "_")

    @property
    def env(self) -> str:
        return f"MEMOS_{self.name}".replace("-", "_").upper()

    def read(self, text: str, source: str) -> Any:
        """The value `text` stands for. Raises StartError that names `source`, the flag or the variable."""
        try:
            return self.parse(text)
        except ValueError as error:
            raise StartError(f"{source} {error}, not '{text}'") from None


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError("must name a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("must name a path in a home directory that there is") from None


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _gib(text: str) -> float:
    message = "must be a number of GiB above 0, up to 65536"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 < value <= 65536:
        raise ValueError(message)
    return value


def _rate(text: str) -> float:
    message = "must be a number of requests a second above 0, up to 1000000"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 < value <= 10**6:
        raise ValueError(message)
    return value


def _days(text: str) -> float:
    message = "must be a number of days above 0, up to 100000"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 < value <= 10**5:
        raise ValueError(message)
    return value


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be {', '.join(names[:-1])} or {names[-1]}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("must be on or off")
    return text == "on"


def _flag(default: Any, name: str, metavar: str, parse: Callable[[str], Any], text: str) -> Any:
    return field(default=default, metadata={"flag": Flag(name, metavar, parse, text)})


@dataclass(frozen=True)
class MemoryConfig:
    """The memory settings of one server. Without `memory_dir` there is no memory and the server is plain vLLM."""

    memory_dir: Path | None = _flag(
        None, "dir", "DIR", _path, "Directory of the memory vault; made when missing. Turns memory on."
    )
    top_k: int = _flag(
        8, "top-k", "N", _whole(1, 1000), "Most memories one prompt is given, from 1 to 1000 (default: 8)."
    )
    token_budget: int = _flag(
        1024, "token-budget", "TOKENS", _whole(1, 10**6), "Most tokens that memories take of a prompt (default: 1024)."
    )
    splice: bool = _flag(
        True,
        "splice",
        "{on,off}",
        _switch,
        "on: memories enter the prompt as ready K/V; off: as text that is computed every time (default: on).",
    )
    repair: str = _flag(
        "mixed:0.15",
        "repair",
        "POLICY",
        str,
        "Which spliced tokens are computed anew: none, head:K for the first K of each memory, full for all, "
        "deviation:R, guided:R or mixed:R for the share R of them that seems to need it most (default: mixed:0.15).",
    )
    promote: Literal["auto", "all", "off"] = _flag(
        "auto",
        "promote",
        "{auto,all,off}",
        _one_of("auto", "all", "off"),
        "Which memories become K/V: auto for long, often used and pinned ones, all, or off for none (default: auto).",
    )
    keys: Path | None = _flag(
        None, "keys", "FILE", _path, "TOML file of API keys and their users; with it every request needs a key."
    )
    kv_ram_gib: float = _flag(
        4.0, "kv-ram-gib", "GIB", _gib, "Host RAM for K/V of memories, in GiB; the rest is on disk (default: 4)."
    )
    kv_disk_gib: float = _flag(
        64.0, "kv-disk-gib", "GIB", _gib, "Most GiB of KV files; the least worth are removed first (default: 64)."
    )
    kv_eviction: str = _flag(
        "cost",
        "kv-eviction",
        "POLICY",
        str,
        "Which K/V make room when RAM or disk is full: lru for those used longest ago, or cost for those that are "
        "cheapest to lose by size, rebuild time and use (default: cost).",
    )
    kv_dtype: str = _flag(
        "auto",
        "kv-dtype",
        "{auto,int8,fp8}",
        _one_of("auto", "int8", "fp8"),
        "How K/V of memories are stored: auto as the model made them, int8 or fp8 in half the room or less at some "
        "loss (default: auto).",
    )
    max_gib: float | None = _flag(
        None, "max-gib", "GIB", _gib, "Most GiB the vault's store may grow to (default: until the disk is full)."
    )
    embedder: str = _flag(
        "none",
        "embedder",
        "none|MODEL|URL",
        str,
        "Search by meaning as well as by words: a sentence-transformers model (folder or name) in this process, or "
        "http(s)://HOST of a server with /v1/embeddings, #NAME at its end for one of its models, its key in "
        "MEMOS_EMBEDDER_KEY; none for words alone (default: none).",
    )
    mode: Literal["read", "write", "readwrite", "off"] = _flag(
        "read",
        "mode",
        "{read,write,readwrite,off}",
        _one_of("read", "write", "readwrite", "off"),
        "What a chat does with its user's memory: read puts memories into the prompt, write makes new ones of what the "
        "user says, readwrite both, off neither (default: read). A request may choose with x-memos-mode.",
    )
    reader: Literal["rules", "model"] = _flag(
        "rules",
        "reader",
        "{rules,model}",
        _one_of("rules", "model"),
        "Who finds what to remember in messages: rules for English, or the served model, which costs a short answer "
        "each time (default: rules).",
    )
    policy: str = _flag(
        "semantic",
        "policy",
        "POLICY",
        _one_of("semantic", "lru", "label", "frequency", "priority"),
        "Which memories come first: semantic for those that fit the question best, lru for those used or written last, "
        "label for those whose tags the question names, frequency for those used often lately, priority for those that "
        "their owner put first (default: semantic). A request may choose with x-memos-policy.",
    )
    adapters: Literal["off", "named", "auto"] = _flag(
        "off",
        "adapters",
        "{off,named,auto}",
        _one_of("off", "named", "auto"),
        "Whether users' LoRA adapters are served: named where a request names one as its model, auto also a user's "
        "default adapter where a request names the base model; both turn on vLLM's --enable-lora (default: off).",
    )
    adapter_gib: float = _flag(
        2.0,
        "adapter-gib",
        "GIB",
        _gib,
        "Room for the engine's own copies of adapters, in GiB, in /dev/shm or else in the temporary directory; those "
        "used longest ago make room (default: 2).",
    )
    consolidate: Literal["off", "propose", "auto"] = _flag(
        "off",
        "consolidate",
        "{off,propose,auto}",
        _one_of("off", "propose", "auto"),
        "Whether memories that are stable and often used move into an adapter of their owner's: propose tells which "
        "under /v1/me/consolidation and leaves what an adapter knows out of prompts, auto also trains one in the "
        "background for those who allow it and needs --memory-adapters auto (default: off).",
    )
    half_life: float | None = _flag(
        None,
        "half-life",
        "DAYS",
        _days,
        "Days in which a memory that nobody uses loses half its strength; faint ones are archived. Memories may have "
        "half-lives of their own (default: others do not fade).",
    )
    audit: Literal["changes", "refusals", "access"] = _flag(
        "refusals",
        "audit",
        "{changes,refusals,access}",
        _one_of("changes", "refusals", "access"),
        "What the audit log holds beside every change: nothing, refused requests, or these and every look at memories "
        "of others (default: refusals).",
    )
    quota_cubes: int | None = _flag(
        None,
        "quota-cubes",
        "N",
        _whole(1, 10**9),
        "Most memories that one user may have; `memos-vllm quota` sets other limits for a user (default: no limit).",
    )
    quota_mib: int | None = _flag(
        None, "quota-mib", "MIB", _whole(1, 10**7), "Most MiB of memories that one user may have (default: no limit)."
    )
    quota_rps: float | None = _flag(
        None,
        "quota-rps",
        "N",
        _rate,
        "Most requests a second of one user, memory and chat together, in each API server (default: no limit).",
    )

    @property
    def kv_ram_bytes(self) -> int:
        return int(self.kv_ram_gib * GIB)

    @property
    def kv_disk_bytes(self) -> int:
        return int(self.kv_disk_gib * GIB)

    @property
    def adapter_bytes(self) -> int:
        return int(self.adapter_gib * GIB)

    @property
    def max_bytes(self) -> int | None:
        return None if self.max_gib is None else int(self.max_gib * GIB)

    def to_env(self) -> dict[str, str]:
        """Variables from which `from_env` makes an equal config."""
        values = {flag.env: getattr(self, name) for name, flag in FLAGS.items()}
        return {env: _text(value) for env, value in values.items() if value is not None}


FLAGS: dict[str, Flag] = {item.name: item.metadata["flag"] for item in fields(MemoryConfig)}
"""Field of MemoryConfig → its flag."""


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the memory flags as a group of their own. A flag that is not given leaves no attribute behind."""
    group = parser.add_argument_group("Memory", "Memory of the server's users; on with --memory-dir.")
    for flag in FLAGS.values():
        group.add_argument(flag.option, metavar=flag.metavar, default=argparse.SUPPRESS, help=flag.help)


def from_args(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> MemoryConfig:
    """The config that flags and environment name. Raises StartError for a bad value or flags without a directory."""
    given = {
        name: flag.read(getattr(args, flag.dest), flag.option)
        for name, flag in FLAGS.items()
        if hasattr(args, flag.dest)
    }
    config = MemoryConfig(**(_environment_values(environ) | given))
    if given and config.memory_dir is None:
        first = FLAGS[next(iter(given))].option
        raise StartError(f"{first} needs --memory-dir DIR: memory is off without it")
    return config


def from_env(environ: Mapping[str, str] = os.environ) -> MemoryConfig:
    """The config of the server this process belongs to. Raises StartError for a bad value."""
    return MemoryConfig(**_environment_values(environ))


def _environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    return {name: flag.read(environ[flag.env], flag.env) for name, flag in FLAGS.items() if environ.get(flag.env)}
