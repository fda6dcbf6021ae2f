"""One in-process vLLM engine with the connector, shared by all engine tests, and the oracle beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.harness import SECRET, Engine, make_random_llama


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights: 4 layers, 4 heads, 2 KV heads of 64, vocabulary 512."""
    return make_random_llama(tmp_path_factory.mktemp("random-llama"))


@pytest.fixture(scope="session")
def engine(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """float32, blocks of 64 tokens, 32 rows a step, room for 68 blocks."""
    before = dict(os.environ)
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="WARNING",
        HF_HUB_OFFLINE="1",
        MEMOS_PLAN_SECRET=SECRET.hex(),
    )
    with hidden("llvmlite"):
        built = Engine(random_llama, tmp_path_factory.mktemp("memory"))
    yield built
    built.close()
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Take a loaded package out of `sys.modules` for a while.

    A vLLM worker that starts looks into the attributes of every loaded module (`triton_utils/dispatcher.py`, 0.32), and
    llvmlite's, which other tests may load, have a `__dict__` that is no dict.
    """
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == package}
    try:
        yield
    finally:
        sys.modules.update(taken)
