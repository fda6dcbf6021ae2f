"""`memos-vllm vault`: look after a memory directory, mostly while a server goes on using it.

Exit code 0: done, nothing wrong; 1: `check`, `verify` or `forgotten` found something; 2: an error, one line on stderr.
"""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from memos_vllm.errors import VaultInUse

if TYPE_CHECKING:
    from memos_vllm.vault.audit import LogEntry
    from memos_vllm.vault.backup import Copied

EXIT_PROBLEMS = 1


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the actions to the `vault` subcommand."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    stats = actions.add_parser("stats", help="print counts and sizes")
    check = actions.add_parser("check", help="read every record and file; exit code 1 if anything is wrong")
    backup = actions.add_parser("backup", help="copy the vault, checked, while it is in use: backup DIR TARGET")
    restore = actions.add_parser("restore", help="make a new memory directory of a backup: restore BACKUP DIR")
    compact = actions.add_parser("compact", help="give free pages back to the disk; the server has to be stopped")
    reindex = actions.add_parser(
        "reindex", help="make the search index anew from the memories; writes wait until it is done"
    )
    log = actions.add_parser("log", help="print the audit log: who did what, when")
    verify = actions.add_parser("verify", help="check the hash chain of the audit log; exit code 1 if it is broken")
    runs = {stats: _stats, check: _check, compact: _compact, reindex: _reindex, log: _log, verify: _verify}
    for action, run in runs.items():
        action.add_argument("dir", type=Path, help="the memory directory")
        action.set_defaults(run=run)
    stats.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    _add_backup(backup)
    _add_restore(restore)
    _add_log(log)
    forgotten = actions.add_parser(
        "forgotten", help="read every row for what still tells of a user: forgotten DIR USER; exit code 1 if any does"
    )
    forgotten.add_argument("dir", type=Path, help="the memory directory")
    forgotten.add_argument("user", help="who was forgotten")
    forgotten.set_defaults(run=_forgotten)
    verify.add_argument(
        "--anchor", metavar="SEQ:HASH", default="", help="an earlier `vault log --head`: it must still be in the log"
    )


def _add_backup(backup: argparse.ArgumentParser) -> None:
    backup.add_argument("dir", type=Path, help="the memory directory")
    backup.add_argument("target", type=Path, help="the folder to make; it appears when the copy is whole and checked")
    backup.add_argument("--no-kv", action="store_true", help="leave KV files out; a server makes them anew")
    backup.set_defaults(run=_backup)


def _add_restore(restore: argparse.ArgumentParser) -> None:
    restore.add_argument("backup", type=Path, help="a folder that `vault backup` made; it is left as it is")
    restore.add_argument("dir", type=Path, help="the memory directory to make; missing or empty")
    restore.set_defaults(run=_restore)


def _add_log(log: argparse.ArgumentParser) -> None:
    log.add_argument("--actor", default="", help="who did it")
    log.add_argument("--owner", default="", help="whose memories it was done to")
    log.add_argument("--target", default="", help="the id of a memory, or a name")
    log.add_argument("--did", metavar="ACTION", default="", help="what was done: add, update, delete, forget …")
    log.add_argument("--since", metavar="TIME", default="", help="from this ISO-8601 time or date on, UTC")
    log.add_argument("--until", metavar="TIME", default="", help="before this time")
    log.add_argument("--last", metavar="N", type=int, default=50, help="at most N entries, the newest (default: 50)")
    log.add_argument("--json", action="store_true", help="one JSON object a line")
    log.add_argument("--head", action="store_true", help="print number and hash of the newest entry, for `verify`")


def _stats(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        numbers = vault.stats()
    if args.json:
        _plain(msgspec.json.encode(numbers).decode())
        return 0
    table = Table("", "", box=None, show_header=False)
    for name, value in numbers.items():
        shown = f"{decimal(value)} ({value:,} bytes)" if name.endswith("_bytes") else f"{value:,}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
    return 0


def _check(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with _progress() as progress:
        task = progress.add_task("pages", total=None)
        problems = _page_problems(args.dir)
        if not problems:  # LMDB would end the process over them
            with Vault.open(args.dir, readonly=True) as vault:
                problems = vault.check(lambda part: progress.update(task, description=part))
    return _told(problems, f"{args.dir}: no problems")


def _page_problems(path: Path) -> list[str]:
    """Faults of the data file's pages, which keep still only while nobody has the vault open."""
    from memos_vllm.vault.folder import page_problems

    try:
        return page_problems(path)
    except VaultInUse:
        Console(stderr=True).print(
            "The pages of the data file were not checked: a server uses them.", style="yellow", soft_wrap=True
        )
        return []


def _backup(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with _progress() as progress, Vault.open(args.dir, create=False) as vault:
        copied = vault.backup(args.target, actor=_operator(), kv=not args.no_kv, progress=_shown(progress))
    return _copied(copied, f"{args.dir} → {args.target}")


def _restore(args: argparse.Namespace) -> int:
    from memos_vllm.vault.backup import restore

    with _progress() as progress:
        copied = restore(args.backup, args.dir, actor=_operator(), progress=_shown(progress))
    Console(stderr=True, soft_wrap=True).print(
        "It is as it was then: what was deleted, forgotten or revoked since is back, API keys included.", style="yellow"
    )
    return _copied(copied, f"{args.backup} → {args.dir}")


def _copied(copied: Copied, what: str) -> int:
    adapters = f"{copied.adapters:,} adapters, " if copied.adapters else ""
    _plain(f"{what}: {copied.cubes:,} memories, {copied.kv:,} K/V, {adapters}{decimal(copied.bytes)}, checked")
    if copied.left_out:
        _plain(f"{copied.left_out:,} K/V were left out; a server makes them anew")
    if copied.adapters_lost:
        _plain(
            f"{copied.adapters_lost:,} adapters were missing, damaged or removed meanwhile; `vault check` names those"
        )
    _plain(f"head of the audit log: {copied.log_head}")
    return 0


def _compact(args: argparse.Namespace) -> int:
    from memos_vllm.vault.backup import compact

    with _progress() as progress:
        progress.add_task("compact", total=None)
        before, after = compact(args.dir, actor=_operator())
    _plain(f"{args.dir}: {decimal(before)} → {decimal(after)}")
    return 0


def _reindex(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with _progress() as progress, Vault.open(args.dir, create=False) as vault:
        progress.add_task("index", total=None)
        searched = vault.reindex()
        vault.record(actor=_operator(), action="vault.reindex")
    _plain(f"{args.dir}: {searched:,} memories in the index")
    return 0


def _log(args: argparse.Namespace) -> int:
    from memos_vllm.cube import timestamp
    from memos_vllm.vault import LogQuery, Vault

    with Vault.open(args.dir, readonly=True) as vault:
        if args.head:
            _plain(vault.log_head())
            return 0
        wanted = LogQuery(
            actor=args.actor,
            owner=args.owner,
            target=args.target,
            action=args.did,
            since=timestamp(args.since, "since"),
            until=timestamp(args.until, "until"),
            limit=args.last,
            newest_first=True,
        )
        entries = vault.log(wanted)[::-1]
    if args.json:
        _plain(*(msgspec.json.encode(entry).decode() for entry in entries))
    else:
        Console().print(_table(entries))
    return 0


def _table(entries: list[LogEntry]) -> Table:
    table = Table("no.", "time", "actor", "did", "target", "owner", "more", box=box.SIMPLE)
    for entry in entries:
        more = [*entry.principals, *(f"{name}={value}" for name, value in entry.detail.items())]
        cells = (str(entry.seq), entry.at[:19], entry.actor, entry.action, entry.target, entry.owner, " ".join(more))
        table.add_row(*map(escape, cells))
    return table


def _verify(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with _progress() as progress, Vault.open(args.dir, readonly=True) as vault:
        progress.add_task("audit log", total=None)
        problems, head = vault.verify_log(args.anchor), vault.log_head()
    return _told(problems, f"{args.dir}: the audit log is whole; its head is {head}")


def _forgotten(args: argparse.Namespace) -> int:
    from memos_vllm.vault import Vault

    with _progress() as progress, Vault.open(args.dir, readonly=True) as vault:
        progress.add_task("rows", total=None)
        traces = vault.traces_anywhere(args.user)
    return _told(
        [f"{database}: {count:,}" for database, count in traces.items()], f"{args.dir}: no row tells of {args.user!r}"
    )


def _told(problems: list[str], sound: str) -> int:
    _plain(*(problems or [sound]))
    return EXIT_PROBLEMS if problems else 0


def _plain(*lines: str) -> None:
    """Lines as they are, for people and for scripts: no wrapping, no colours."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in lines:
        console.print(line)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shown on stderr where that is a terminal, and gone afterwards."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _shown(progress: Progress) -> Callable[[str, int, int], None]:
    task = progress.add_task("", total=None)

    def show(what: str, done: int, total: int) -> None:
        progress.update(task, description=what, completed=done, total=total or None)

    return show


def _operator() -> str:
    """Whom the audit log names for a command."""
    return f"operator:{getpass.getuser()}"
