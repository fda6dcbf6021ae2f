"""Processes forked from one that has vLLM imported, which is most of what starting a small engine or server costs."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "vllm.entrypoints.llm",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.worker.cpu_worker",
    "memos_vllm.server.launch",
    "memos_vllm.server.endpoint",
    "tests.engine.harness",
]


def context() -> ForkServerContext:
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(PRELOADED)
    return forkserver


def start_program(words: Sequence[str], log: Path, environ: Mapping[str, str]) -> BaseProcess:
    """`python WORDS…`, where they begin with `-m MODULE` or with a file, as the leader of a process group of its own.

    log: where its output goes; environ: its whole environment.
    """
    process = context().Process(target=_run, args=([*words], log, {**environ}))
    process.start()
    return process


def _run(words: list[str], log: Path, environ: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    with log.open("wb") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
