"""`memos-vllm export` and `trace`: memories leave redacted and marked, and a leaked text is led back to its export."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from memos_vllm.cli_key import operator, plain, tags, told
from memos_vllm.errors import StartError

EXIT_NOTHING = 1


def add_export_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the memory directory")
    parser.add_argument("user", help="whose memories")
    parser.add_argument("--to", metavar="WHOM", required=True, help="who gets them: stands in the audit log")
    parser.add_argument("--output", type=Path, help="file to write, one cube as JSON a line (default: standard output)")
    parser.add_argument(
        "--clearance",
        metavar="TAGS",
        help="sensitivity tags that may leave, with commas between; '' for none (default: all)",
    )
    parser.add_argument("--no-redact", action="store_true", help="leave addresses, numbers and secrets in")
    parser.add_argument("--no-watermark", action="store_true", help="put no invisible marks into the texts")
    parser.set_defaults(run=_export)


def add_trace_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the memory directory")
    parser.add_argument("file", type=Path, nargs="?", help="a text that came from an export (default: standard input)")
    parser.set_defaults(run=_trace)


def _export(args: argparse.Namespace) -> int:
    from memos_vllm.governance.export import export
    from memos_vllm.governance.identity import checked_user
    from memos_vllm.vault import Vault

    clearance = None if args.clearance is None else frozenset(tags(args.clearance))
    with Vault.open(args.dir, create=False) as vault, _output(args.output) as file:
        number, cubes = export(
            vault,
            checked_user(args.user),
            recipient=args.to,
            actor=operator(),
            clearance=clearance,
            redacted=not args.no_redact,
            marked=not args.no_watermark,
        )
        count = sum(bool(file.write(msgspec.json.encode(cube) + b"\n")) for cube in cubes)
    told(f"Export {number}: {count:,} memories of {args.user} to {args.to}.")
    return 0


@contextmanager
def _output(path: Path | None) -> Iterator[IO[bytes]]:
    """A new file for this user alone, or standard output. Raises StartError."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        path.touch(mode=0o600, exist_ok=False)
        file = path.open("wb")
    except OSError as error:
        raise StartError(f"Cannot write {path}: {error.strerror}.") from error
    with file:
        yield file


def _trace(args: argparse.Namespace) -> int:
    from memos_vllm.governance.export import trace
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        found = trace(vault, _text(args.file))
    for number, export in found.items():
        if export is None:
            plain(f"export {number}, whose entry was forgotten")
        else:
            plain(f"export {number}: memories of {export.user} to {export.recipient}, {export.made[:19]}")
    if not found:
        plain("no mark of an export of this memory directory")
    return 0 if found else EXIT_NOTHING


def _text(path: Path | None) -> str:
    """What the file holds, or standard input. Raises StartError."""
    try:
        stored = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise StartError(f"Cannot read {path}: {error.strerror}.") from error
    return stored.decode("utf-8", "replace")
