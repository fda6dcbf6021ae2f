"""`memos-vllm adapter`: the LoRA adapters of a memory directory, while a server goes on using it.

Adapters are named `OWNER/NAME`, and one version of them `OWNER/NAME@vN`. A server sees a change at its next request.
Exit code 0: done; 2: an error, in one line on stderr.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from memos_vllm.cli_key import operator, plain, told
from memos_vllm.errors import BadInput

if TYPE_CHECKING:
    from memos_vllm.governance.identity import Caller
    from memos_vllm.parameter.registry import AdapterEntry, AdapterRegistry, AdapterVersion

Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns; argparse has no public name for it."""


def add_adapter_parser(parser: argparse.ArgumentParser) -> Actions:
    """Add the actions to the `adapter` subcommand, and return what further ones are added to."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="check and store an adapter, or the next version of one: add DIR NAME FOLDER")
    listing = actions.add_parser("list", help="print the adapters and which version of each is active")
    show = actions.add_parser("show", help="print an adapter with all its versions")
    activate = actions.add_parser("activate", help="let requests get a version, from the next request on")
    deactivate = actions.add_parser("deactivate", help="let an adapter serve only requests that name a version")
    rollback = actions.add_parser("rollback", help="activate the version that was active before")
    remove = actions.add_parser("remove", help="remove an adapter, or the files of one version")
    export = actions.add_parser("export", help="write an adapter's files to a new folder, as PEFT reads them")
    runs = {add: _add, listing: _list, show: _show, activate: _activate, deactivate: _deactivate}
    runs |= {rollback: _rollback, remove: _remove, export: _export}
    for action, run in runs.items():
        action.add_argument("dir", type=Path, help="the memory directory")
        action.set_defaults(run=run)
    for action in (add, show, deactivate, rollback):
        action.add_argument("name", metavar="OWNER/NAME")
    for action in (activate, remove, export):
        action.add_argument("name", metavar="OWNER/NAME[@vN]")
    _add_options(add)
    listing.add_argument("--owner", default="", help="of this user alone")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="one JSON object for each adapter, a line each")
    activate.add_argument(
        "--default",
        action=argparse.BooleanOptionalAction,
        help="whether it serves its owner's requests that name no adapter (default: if no other does)",
    )
    remove.add_argument("--snapshots", action="store_true", help="out of its owner's snapshots too")
    export.add_argument("target", type=Path, help="the folder to make")
    return actions


def _add_options(add: argparse.ArgumentParser) -> None:
    add.add_argument("folder", type=Path, help="with adapter_config.json and adapter_model.safetensors")
    add.add_argument("--model", required=True, help="the base model that the server runs: a folder or a hub name")
    add.add_argument(
        "--base",
        metavar="FINGERPRINT",
        default="",
        help="the base model's fingerprint, where the adapter names its model differently",
    )
    add.add_argument("--max-rank", metavar="N", type=int, help="the server's --max-lora-rank (default: 64)")
    add.add_argument("--tag", action="append", default=[], help="may be given several times")
    add.add_argument("--activate", action="store_true", help="let requests get it from now on")


@contextmanager
def _registry(args: argparse.Namespace, *, readonly: bool = False) -> Iterator[AdapterRegistry]:
    from memos_vllm.parameter.registry import MAX_RANK, AdapterRegistry, BaseModel
    from memos_vllm.vault import Vault

    model, max_rank = getattr(args, "model", None), getattr(args, "max_rank", None)
    base = BaseModel.read(model) if model else None
    with Vault.open(args.dir, readonly=readonly) as vault:
        yield AdapterRegistry(vault, base=base, max_rank=max_rank or MAX_RANK)


def _named(text: str) -> tuple[Caller, str, int | None]:
    """An adapter's owner, who the command speaks for, its name, and the version. Raises BadInput."""
    from memos_vllm.cube import checked_principal
    from memos_vllm.governance.identity import Caller
    from memos_vllm.parameter.names import parsed

    named = parsed(text)
    if named is None or not named.owner:
        raise BadInput(f"{text[:80]!r} names no adapter: write OWNER/NAME, or OWNER/NAME@vN for one version.")
    return Caller(checked_principal(named.owner), bound=True), named.name, named.version


def _whole(text: str) -> tuple[Caller, str]:
    """The same where no version may be named."""
    caller, name, version = _named(text)
    if version is not None:
        raise BadInput(f"Name the adapter without a version: {caller.user}/{name}.")
    return caller, name


def _add(args: argparse.Namespace) -> int:
    from memos_vllm.parameter.registry import AdapterFiles

    caller, name = _whole(args.name)
    files = AdapterFiles.read(args.folder, base=args.base)
    with _registry(args) as registry:
        added = registry.add(caller.user, name, files, author=operator(), tags=args.tag, activate=args.activate)
        active = registry.get(caller, name).active
    _say(added, "stored")
    if active is None:
        told(f"It serves nobody yet; `memos-vllm adapter activate {args.dir} {args.name}` lets it.")
    return 0


def _list(args: argparse.Namespace) -> int:
    with _registry(args, readonly=True) as registry:
        entries = [entry for entry in registry.all() if args.owner in ("", entry.owner)]
    if args.json:
        plain(*(msgspec.json.encode(entry).decode() for entry in entries))
        return 0
    table = Table(
        "adapter", "active", "versions", "rank", "base model", Column("bytes", justify="right"), box=box.SIMPLE
    )
    for entry in entries:
        newest = entry.versions[-1] if entry.versions else None
        size = decimal(sum({version.digest: version.bytes for version in entry.versions}.values()))
        cells = [f"{entry.owner}/{entry.name}", _active(entry), str(len(entry.versions))]
        cells += [str(newest.rank), newest.base_model] if newest else ["", ""]
        table.add_row(*map(escape, cells), size)
    Console().print(table)
    return 0


def _active(entry: AdapterEntry) -> str:
    shown = f"v{entry.active}" if entry.active else "none"
    return f"{shown}, default" if entry.default else shown


def _show(args: argparse.Namespace) -> int:
    caller, name = _whole(args.name)
    with _registry(args, readonly=True) as registry:
        entry = registry.get(caller, name)
    if args.json:
        plain(msgspec.json.encode(entry).decode())
        return 0
    readers = ", ".join(grant.principal for grant in entry.access) or "nobody else"
    plain(f"{entry.owner}/{entry.name}, {entry.state}, active: {_active(entry)}", f"memory {entry.cube_id}")
    plain(f"shared with: {readers}")
    columns = ("version", "made", "by", "rank", "scale", "type", "layers", "base model", "bytes", "more")
    table = Table(*columns, box=box.SIMPLE)
    for version in entry.versions:
        more = " ".join((*version.tags, *(f"{name}={value}" for name, value in version.metadata.items())))
        cells = [f"v{version.version}", version.created[:19], version.author, str(version.rank), f"{version.scale:g}"]
        cells += [version.dtype, " ".join(version.target_modules), version.base_model, decimal(version.bytes), more]
        table.add_row(*map(escape, cells))
    Console().print(table)
    return 0


def _activate(args: argparse.Namespace) -> int:
    caller, name, version = _named(args.name)
    with _registry(args) as registry:
        active = registry.activate(caller, name, version, default=args.default, actor=operator())
    _say(active, "active")
    return 0


def _deactivate(args: argparse.Namespace) -> int:
    caller, name = _whole(args.name)
    with _registry(args) as registry:
        registry.deactivate(caller, name, actor=operator())
    plain(f"{args.name}: no version is active")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    caller, name = _whole(args.name)
    with _registry(args) as registry:
        active = registry.rollback(caller, name, actor=operator())
    _say(active, "active")
    return 0


def _remove(args: argparse.Namespace) -> int:
    caller, name, version = _named(args.name)
    with _registry(args) as registry:
        registry.remove(caller, name, version, snapshots=args.snapshots, actor=operator())
    plain(f"{args.name}: removed")
    return 0


def _export(args: argparse.Namespace) -> int:
    caller, name, version = _named(args.name)
    with _registry(args, readonly=True) as registry:
        exported = registry.export(caller, name, args.target, version)
    _say(exported, f"written to {args.target}")
    return 0


def _say(version: AdapterVersion, what: str) -> None:
    plain(f"{version.owner}/{version.served}: {what}, rank {version.rank}, {decimal(version.bytes)}")
