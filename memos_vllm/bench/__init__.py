"""`memos-vllm bench`: measurements of real servers over real HTTP. Loads neither vLLM nor torch in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from memos_vllm.bench.adapters_options import AdapterOptions
from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.load_options import LoadOptions
from memos_vllm.bench.options import Options, TtftOptions, read_options
from memos_vllm.bench.quality_options import QualityOptions
from memos_vllm.bench.retrieval_options import RetrievalOptions
from memos_vllm.bench.servers import ServerFailed

EXIT_CHECK_FAILED = 1
EXIT_STOPPED = 130
FILE_WIDTH = 150
"""Columns of the tables where there is no terminal."""


def run(argv: Sequence[str]) -> int:
    """Run one benchmark; 1 when a correctness check failed, in which case nothing is reported.

    Raises StartError when the options are wrong and ServerFailed when a server does not start or dies.
    """
    options = read_options(argv)
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    try:
        _measure(options, console)
    except CheckFailed as error:
        message = f"memos-vllm: check failed: {error}; nothing is reported"
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
        return EXIT_CHECK_FAILED
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except ServerFailed as error:
        Console(stderr=True).print(error.log_tail, markup=False, highlight=False, soft_wrap=True)
        raise
    return 0


def _measure(options: Options, console: Console) -> None:
    from memos_vllm.bench.adapters import bench_adapters
    from memos_vllm.bench.load import bench_load
    from memos_vllm.bench.quality import bench_quality
    from memos_vllm.bench.retrieval import bench_retrieval
    from memos_vllm.bench.ttft import bench_ttft

    match options:
        case TtftOptions():
            bench_ttft(options, console)
        case QualityOptions():
            bench_quality(options, console)
        case LoadOptions():
            bench_load(options, console)
        case RetrievalOptions():
            bench_retrieval(options, console)
        case AdapterOptions():
            bench_adapters(options, console)
