"""The server of `memos-vllm serve` without its engine: `python api_server.py MODEL --port PORT …`, as for `serve`.

Command line, app, routes, middleware, renderer and vault are those of production, made by the same functions. Chat has
nobody to answer it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvicorn
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.render.app_state import init_render_app_state
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from memos_vllm import config as settings
from memos_vllm.errors import MemosError
from memos_vllm.server import metrics
from memos_vllm.server.endpoint import open_service
from memos_vllm.server.launch import MemoryServe
from memos_vllm.server.prompt import PromptBuilder
from memos_vllm.server.rendering import ChatRenderer


async def serve(argv: Sequence[str]) -> None:
    """Serve until the process is stopped."""
    command = MemoryServe()
    parser = FlexibleArgumentParser()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *argv, "--memory-splice", "off"])
    args.model = args.model_tag
    command.validate(args)
    app = build_app(args, ("generate",))
    vllm_config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    await init_render_app_state(vllm_config, app.state, args)
    metrics.create()
    prompts = PromptBuilder(app.state.online_renderer.renderer.get_tokenizer())
    renderer = ChatRenderer(app.state.online_renderer, prompts)
    app.state.memos = await open_service(settings.from_env(), vllm_config, None, prompts, renderer)
    await uvicorn.Server(uvicorn.Config(app, host=args.host, port=args.port, log_level="warning")).serve()


if __name__ == "__main__":
    try:
        asyncio.run(serve(sys.argv[1:]))
    except MemosError as error:
        sys.exit(str(error))
