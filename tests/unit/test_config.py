"""MemoryConfig: flags, environment, defaults, and errors that name the flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from memos_vllm import config
from memos_vllm.config import FLAGS, MemoryConfig
from memos_vllm.errors import StartError


def parse(words: Sequence[str], environ: dict[str, str] | None = None) -> MemoryConfig:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.from_args(parser.parse_args(words), environ or {})


def test_nothing_given_is_plain_vllm() -> None:
    assert parse([]) == MemoryConfig()
    assert MemoryConfig().memory_dir is None


def test_flags_are_read() -> None:
    words = "--memory-dir /m --memory-top-k 3 --memory-splice off --memory-repair full --memory-kv-ram-gib 0.5"
    assert parse(words.split()) == MemoryConfig(Path("/m"), top_k=3, splice=False, repair="full", kv_ram_gib=0.5)


def test_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["--memory-dir", "m"]).memory_dir == tmp_path / "m"


def test_flag_wins_over_variable_and_variable_over_default() -> None:
    environ = {"MEMOS_DIR": "/m", "MEMOS_TOP_K": "5", "MEMOS_SPLICE": "off"}
    assert parse(["--memory-top-k", "6"], environ) == MemoryConfig(Path("/m"), top_k=6, splice=False)


@pytest.mark.parametrize(
    "memory",
    [
        MemoryConfig(),
        MemoryConfig(Path("/m"), 1, 2, False, "none", "all", Path("/keys.toml"), 0.25, 8.0, "lru", "int8", max_gib=1.5),
    ],
)
def test_children_get_the_same_config(memory: MemoryConfig) -> None:
    assert config.from_env(memory.to_env()) == memory


def test_sizes_in_bytes() -> None:
    memory = MemoryConfig(kv_ram_gib=0.5, kv_disk_gib=4.0, max_gib=2.0)
    assert (memory.kv_ram_bytes, memory.kv_disk_bytes, memory.max_bytes) == (2**29, 2**32, 2**31)
    assert MemoryConfig().max_bytes is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory-top-k", "0"),
        ("--memory-top-k", "-1"),
        ("--memory-top-k", "²"),
        ("--memory-token-budget", "many"),
        ("--memory-token-budget", "1.5"),
        ("--memory-splice", "yes"),
        ("--memory-kv-ram-gib", "0"),
        ("--memory-kv-disk-gib", "-1"),
        ("--memory-kv-dtype", "fp4"),
        ("--memory-promote", "some"),
        ("--memory-kv-ram-gib", "nan"),
        ("--memory-max-gib", "4GB"),
        ("--memory-dir", " "),
        ("--memory-dir", "~no-such-user/memory"),
    ],
)
def test_a_bad_value_names_flag_and_value(option: str, value: str) -> None:
    with pytest.raises(StartError) as caught:
        parse([f"{option}={value}"])
    assert str(caught.value).startswith(f"{option} must ")
    assert f"'{value}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(StartError, match=r"^MEMOS_TOP_K must be a whole number"):
        config.from_env({"MEMOS_TOP_K": "x"})


def test_flags_without_a_directory_are_refused() -> None:
    with pytest.raises(StartError, match="--memory-top-k needs --memory-dir DIR"):
        parse(["--memory-top-k", "3"])


def test_every_help_text_tells_the_default() -> None:
    for name, flag in FLAGS.items():
        default = getattr(MemoryConfig(), name)
        if default is not None:
            shown = {True: "on"}.get(default, f"{default:g}" if isinstance(default, float) else str(default))
            assert f"(default: {shown})" in flag.help
