"""What cannot work is refused at start: exit code 2 and one line that says what to do. Each in a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.vault import Vault

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
SLIDING = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
MLA = LLAMA | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


def serve(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memos_vllm.cli", "serve", *words]
    env = os.environ | {"HF_HUB_OFFLINE": "1"} | environ
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


def error_of(*words: str, **environ: str) -> str:
    """The one line that refuses `serve model …` before vLLM is imported (whose import alone prints more)."""
    result = serve("model", *words, **environ)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("memos-vllm: error: ")
    return result.stderr.removeprefix("memos-vllm: error: ").strip()


@pytest.fixture
def memory(tmp_path: Path) -> str:
    return f"--memory-dir={tmp_path / 'memory'}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--memory-top-k ten", "--memory-top-k must be a whole number from 1 to 1000, not 'ten'"),
        ("--memory-top-k", "argument --memory-top-k: expected one argument"),
        ("--memory_token_budget=0", "--memory-token-budget must be a whole number from 1"),
        ("--memory-splice maybe", "--memory-splice must be on or off, not 'maybe'"),
        ("--memory-consolidate on", "--memory-consolidate must be off, propose or auto, not 'on'"),
        ("--memory-consolidate auto", "nobody would be served: add --memory-adapters auto"),
        ("--memory-repair head", "--memory-repair: 'head' is no repair policy: use none, head:K"),
        ("--memory-repair head:0", "use none, head:K"),
        ("--memory-kv-eviction fifo", "--memory-kv-eviction: 'fifo' is no eviction policy: use lru or cost"),
        ("--memory-kv-dtype int4", "--memory-kv-dtype must be auto, int8 or fp8, not 'int4'"),
        ("--memory-promote hot", "--memory-promote must be auto, all or off, not 'hot'"),
        ("--memory-topk 3", "there is no flag --memory-topk: did you mean --memory-top-k?"),
        ("--memory-blue", "there is no flag --memory-blue"),
        ("--grpc", "--grpc does not go with --memory-dir"),
        ("--headless", "--headless does not go with --memory-dir"),
        (
            "--scheduler-cls x.Y",
            "--scheduler-cls is set by memory splicing: drop it, or start with --memory-splice off",
        ),
        ("--kv-transfer-config {}", "--kv-transfer-config is set by memory splicing"),
        ("--kv-transfer-config.kv_role kv_both", "--kv-transfer-config is set by memory splicing"),
    ],
)
def test_bad_flag(memory: str, words: str, says: str) -> None:
    assert says in error_of(memory, *words.split())


def test_a_refused_start_leaves_no_vault(tmp_path: Path) -> None:
    error_of(f"--memory-dir={tmp_path / 'memory'}", "--memory-repair=most")
    assert not (tmp_path / "memory").exists()


def test_memory_flags_need_a_directory() -> None:
    assert error_of("--memory-top-k=3") == "--memory-top-k needs --memory-dir DIR: memory is off without it"


def test_rust_frontend(memory: str) -> None:
    assert "unset it, or drop --memory-dir" in error_of(memory, VLLM_USE_RUST_FRONTEND="1")


def test_bad_environment(memory: str) -> None:
    assert error_of(memory, MEMOS_TOP_K="few").startswith("MEMOS_TOP_K must be a whole number")


def test_directory_is_no_vault(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "neither empty nor a vault" in error_of(f"--memory-dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_directory_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "memory").touch()
    assert str(tmp_path / "memory") in error_of(f"--memory-dir={tmp_path / 'memory'}")


def test_directory_of_a_newer_version(tmp_path: Path) -> None:
    Vault.open(tmp_path).close()
    marker = tmp_path / "memos.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema": 99}))
    assert "upgrade memos-vllm" in error_of(f"--memory-dir={tmp_path}")


def test_directory_is_unwritable() -> None:
    assert "/sys/memory" in error_of("--memory-dir=/sys/memory")  # root cannot write there either


def test_vault_is_full(tmp_path: Path) -> None:
    with Vault.open(tmp_path) as vault:
        vault.add([MemCube.plaintext("x" * 60_000, owner="maya") for _ in range(20)], actor="maya")
    error = error_of(f"--memory-dir={tmp_path}", "--memory-max-gib=0.001")
    assert "is full" in error
    assert "raise --memory-max-gib" in error


@pytest.mark.parametrize("text", ["not toml", "[[key]]\nuser = 'maya'\n", "[[key]]\nkey = 7\n"])
def test_keys_file_is_bad(tmp_path: Path, memory: str, text: str) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(text)
    assert str(keys) in error_of(memory, f"--memory-keys={keys}")


def test_keys_file_is_missing(tmp_path: Path, memory: str) -> None:
    assert str(tmp_path / "keys.toml") in error_of(memory, f"--memory-keys={tmp_path / 'keys.toml'}")


@pytest.mark.server
@pytest.mark.parametrize(("model", "says"), [(SLIDING, "sliding-window"), (MLA, "MLA")], ids=["sliding", "mla"])
def test_model_that_splicing_does_not_support(tmp_path: Path, memory: str, model: dict[str, Any], says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model))
    result = serve(str(tmp_path), memory, "--skip-tokenizer-init", "--load-format=dummy")
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("memos-vllm: error: ")
    assert says in last
    assert "--memory-splice off" in last
    assert "Traceback" not in result.stderr


@pytest.mark.server
def test_bad_value_in_a_config_file(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"memory-dir: {tmp_path / 'memory'}\nmemory-repair: most\n")
    result = serve("model", "--config", str(config))
    assert result.returncode == 2, result.stderr
    assert "memos-vllm: error: --memory-repair: 'most' is no repair policy" in result.stderr.splitlines()[-1]
