"""Runs a scenario in a process of its own: one process can hold one in-process engine."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from tests import forked
from tests.engine.harness import SECRET

TIMEOUT = 300.0
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "MEMOS_PLAN_SECRET": SECRET.hex(),
}


def run(scenario: Callable[..., None], *args: Any, environ: dict[str, str] | None = None) -> None:
    """Call a function at module level in a new process. Raises AssertionError with a traceback."""
    context = forked.context()
    queue = context.SimpleQueue()
    process = context.Process(target=_main, args=(queue, scenario, args, environ or {}))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{scenario.__name__} took more than {TIMEOUT:.0f} s")
    assert not queue.empty(), f"{scenario.__name__} ended with exit code {process.exitcode}"
    if problem := queue.get():
        raise AssertionError(problem)


def _main(queue: Any, scenario: Callable[..., None], args: tuple[Any, ...], environ: dict[str, str]) -> None:
    os.environ.update(SETTINGS | environ)
    try:
        scenario(*args)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells
        queue.put(traceback.format_exc())
    else:
        queue.put("")
