"""`memos-vllm serve`: vLLM's own serve command with memory flags."""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import vllm
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.plugins import (
    DEFAULT_PLUGINS_GROUP,
    IO_PROCESSOR_PLUGINS_GROUP,
    PLATFORM_PLUGINS_GROUP,
    STAT_LOGGER_PLUGINS_GROUP,
)
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from memos_vllm import config
from memos_vllm.config import GIB, MemoryConfig
from memos_vllm.engine.compat import REMEDY, SUPPORTED_VLLM, check_engine
from memos_vllm.errors import StartError
from memos_vllm.parameter.staging import STAGE_ENV, new_folder, sweep
from memos_vllm.server.preflight import BYPASSES, SPLICE_OWNS, check_start

PLUGIN = "memos"
GONE_AFTER = 5.0
"""Seconds that API servers have to end after their launcher was told to."""
LOADED_BY_DEFAULT = (
    DEFAULT_PLUGINS_GROUP,
    IO_PROCESSOR_PLUGINS_GROUP,
    PLATFORM_PLUGINS_GROUP,
    STAT_LOGGER_PLUGINS_GROUP,
)


class MemoryServe(ServeSubcommand):
    """Adds the memory flags and, where they turn memory on, sets up this process for its children to inherit."""

    def subparser_init(self, subparsers: argparse._SubParsersAction[FlexibleArgumentParser]) -> FlexibleArgumentParser:
        parser = super().subparser_init(subparsers)
        parser.usage = "memos-vllm serve [model_tag] [options]"
        config.add_arguments(parser)
        return parser

    def validate(self, args: argparse.Namespace) -> None:
        super().validate(args)
        memory = config.from_args(args)
        check_start(memory, _given(args))
        if memory.memory_dir is None:
            return
        _share(memory)
        _cap_cpu_cache(args)
        if memory.adapters != "off":
            args.enable_lora = True
        if memory.splice:
            _turn_on_splicing(memory, args)


def serve(argv: Sequence[str]) -> None:
    """Run the server until it stops. `argv`: what follows `serve`. Raises StartError before anything is started."""
    cli_env_setup()
    parser = FlexibleArgumentParser(prog="memos-vllm", description="vLLM with memory")
    command = MemoryServe()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *argv])
    configure_logging_from_args(args)
    command.validate(args)
    try:
        command.cmd(args)
    finally:
        _remove_copies()


def _remove_copies() -> None:
    """Remove what API servers leave of adapters' copies that were ended before they tidied up, once they are gone."""
    deadline = time.monotonic() + GONE_AFTER
    folder = os.environ.get(STAGE_ENV)
    while folder is not None and Path(folder).exists() and time.monotonic() < deadline:
        sweep()
        time.sleep(0.1)


def _given(args: argparse.Namespace) -> set[str]:
    """The options among those the check asks for that are in use, be it from the command line or a config file."""
    return {option for option in (*BYPASSES, *SPLICE_OWNS) if getattr(args, option[2:].replace("-", "_"), None)}


def _share(memory: MemoryConfig) -> None:
    """Put into the environment what vLLM's child processes need: the settings, and that our plugin is to be loaded."""
    os.environ.update(memory.to_env())
    # Keys cache salts and signs splice plans between API server and engine; a new one for every start.
    os.environ["MEMOS_PLAN_SECRET"] = secrets.token_hex(32)
    if memory.adapters != "off":
        os.environ[STAGE_ENV] = str(new_folder(memory.adapter_bytes))
    os.environ["VLLM_PLUGINS"] = ",".join(_plugins(os.environ.get("VLLM_PLUGINS")))


def _plugins(allowed: str | None) -> list[str]:
    """The allow-list with our plugin. Unset it means every plugin that is not an endpoint plugin: keep that meaning."""
    if allowed is not None:
        names = {name for name in allowed.split(",") if name}
    else:
        names = {plugin.name for group in LOADED_BY_DEFAULT for plugin in entry_points(group=group)}
    return sorted(names | {PLUGIN})


def _cap_cpu_cache(args: argparse.Namespace) -> None:
    """On a CPU vLLM's KV cache would take most of the RAM; unless told otherwise, take a quarter, 4 GiB at most."""
    untouched = args.kv_cache_memory_bytes is None and not os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if untouched and current_platform.is_cpu():
        args.kv_cache_memory_bytes = min(4 * GIB, psutil.virtual_memory().available // 4)


def _turn_on_splicing(memory: MemoryConfig, args: argparse.Namespace) -> None:
    """Set vLLM's flags for the splice engine. Raises StartError when model, engine or vLLM do not allow it."""
    if not vllm.__version__.startswith(SUPPORTED_VLLM):
        raise StartError(f"KV splicing needs vLLM {SUPPORTED_VLLM}*, this is {vllm.__version__}; {REMEDY}")
    args.scheduler_cls = "memos_vllm.engine.splice_scheduler.make_scheduler"
    args.kv_transfer_config = KVTransferConfig(
        kv_connector="MemosConnector",
        kv_connector_module_path="memos_vllm.engine.connector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={
            "memory_dir": str(memory.memory_dir),
            "ram_bytes": memory.kv_ram_bytes,
            "disk_bytes": memory.kv_disk_bytes,
            "eviction": memory.kv_eviction,
            "kv_dtype": memory.kv_dtype,
        },
    )
    model = getattr(args, "model_tag", None) or args.model
    engine_args = AsyncEngineArgs.from_cli_args(argparse.Namespace(**{**vars(args), "model": model}))
    engine_config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    check_engine(engine_config)
    keep_cores(engine_config.parallel_config.local_world_size)


def keep_cores(workers: int) -> None:
    """Have vLLM compute on as many cores of a CPU as without a connector, unless told otherwise.

    It leaves one to its scheduler for each worker, and another one where there is a KV connector: ours runs in the
    worker's own steps.
    """
    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", str(workers))
