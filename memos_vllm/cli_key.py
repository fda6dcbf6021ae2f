"""`memos-vllm key`, `group` and `quota`: who may use a memory directory, while a server goes on using it.

A server sees a change within a second. Exit code 0: done; 2: an error, in one line on stderr.
"""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from memos_vllm.errors import BadInput

if TYPE_CHECKING:
    from memos_vllm.governance.quota import Quota

ROLES = ("reader", "auditor", "admin")


def add_key_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, once; from then on every request needs a key")
    listing = actions.add_parser("list", help="print the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="make a key worthless")
    require = actions.add_parser("require", help="whether requests need a key: require DIR on|off")
    for action, run in ((create, _create), (listing, _list_keys), (revoke, _revoke), (require, _require)):
        action.add_argument("dir", type=Path, help="the memory directory")
        action.set_defaults(run=run)
    holder = create.add_mutually_exclusive_group(required=True)
    holder.add_argument("--user", default="", help="the key speaks for this user and nobody else")
    holder.add_argument("--service", action="store_true", help="the key speaks for every user that a request names")
    create.add_argument("--name", default="", help="what the key is for, shown by `list`")
    create.add_argument(
        "--role",
        action="append",
        choices=ROLES,
        default=[],
        help="reader: changes nothing; auditor: reads, the whole audit log too; admin: writes too, "
        "and gives memories to others (default: what a user may do with their own memories)",
    )
    create.add_argument(
        "--clearance",
        metavar="TAGS",
        help="sensitivity tags that the key may read, with commas between; '' for none (default: all)",
    )
    create.add_argument(
        "--expires", metavar="TIME", default="", help="ISO-8601 time or date at which the key ends, UTC"
    )
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    revoke.add_argument("id", help="the key's id, as `create` and `list` print it")
    require.add_argument("needed", choices=("on", "off"))


def add_group_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="put users into a group: add DIR GROUP USER …")
    remove = actions.add_parser(
        "remove", help="take users out of a group; where none are named remove it, with every right it has"
    )
    listing = actions.add_parser("list", help="print the groups and who is in them")
    for action, run in ((add, _add_members), (remove, _remove_members), (listing, _list_groups)):
        action.add_argument("dir", type=Path, help="the memory directory")
        action.set_defaults(run=run)
    for action, count in ((add, "+"), (remove, "*")):
        action.add_argument("group", help="its name; memories are shared with it as 'group:NAME'")
        action.add_argument("users", nargs=count, metavar="user")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")


def add_quota_parser(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    put = actions.add_parser("set", help="give a user limits of their own; 0 means no limit")
    clear = actions.add_parser("clear", help="let the server's limits hold for a user again")
    listing = actions.add_parser("list", help="print the users with limits of their own, and what they use")
    for action, run in ((put, _set_quota), (clear, _clear_quota), (listing, _list_quotas)):
        action.add_argument("dir", type=Path, help="the memory directory")
        action.set_defaults(run=run)
    for action in (put, clear):
        action.add_argument("user")
    put.add_argument(
        "--cubes", metavar="N", type=int, help="most memories (default: the server's --memory-quota-cubes)"
    )
    put.add_argument("--mib", metavar="MIB", type=float, help="most MiB of memories (default: --memory-quota-mib)")
    put.add_argument("--rps", metavar="N", type=float, help="most requests a second (default: --memory-quota-rps)")


def _create(args: argparse.Namespace) -> int:
    from memos_vllm.governance import keys
    from memos_vllm.vault import Vault
    from memos_vllm.vault.folder import MARKER

    clearance = None if args.clearance is None else tags(args.clearance)
    if not (args.dir / MARKER).exists():
        told(f"There is no memory directory {args.dir} yet: it is made.")
    with Vault.open(args.dir) as vault:
        first = not keys.required(vault)
        key_id, key = keys.create(
            vault,
            user=args.user,
            name=args.name,
            roles=args.role,
            clearance=clearance,
            expires=args.expires,
            actor=operator(),
        )
    whom = f"user {args.user!r}" if args.user else "every user (a service key)"
    told(f"Key {key_id} speaks for {whom}. It is shown this once:")
    plain(key)
    if first:
        told("From now on every request to this memory directory's server needs a key.")
    return 0


def _list_keys(args: argparse.Namespace) -> int:
    from memos_vllm.governance import keys
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        listed, required = keys.listed(vault), keys.required(vault)
    if args.json:
        for key_id, key in listed.items():
            shown = {name: value for name, value in msgspec.to_builtins(key).items() if name != "sha256"}
            plain(msgspec.json.encode({"id": key_id, "state": key.state(), **shown}).decode())
        return 0
    table = Table(
        Column("id", min_width=12), "user", "name", "roles", "clearance", "made", "ends", "state", box=box.SIMPLE
    )
    for key_id, key in listed.items():
        clearance = "all" if key.clearance is None else ", ".join(key.clearance) or "none"
        cells = (key.user or "(service)", key.name, ", ".join(key.roles) or "member", clearance)
        table.add_row(key_id, *map(escape, cells), key.created[:10], key.expires[:10], key.state())
    Console().print(table)
    plain("Requests need a key." if required else "Requests need no key.")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from memos_vllm.governance import keys
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, create=False) as vault:
        key = keys.revoke(vault, args.id, actor=operator())
    plain(f"Key {args.id} is worthless since {key.revoked[:19]}.")
    return 0


def _require(args: argparse.Namespace) -> int:
    from memos_vllm.governance import keys
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, create=False) as vault:
        if args.needed == "on" and not any(key.state() == "live" for key in keys.listed(vault).values()):
            told("There is no live key in the vault: only keys of a key file will be let in.")
        keys.require(vault, args.needed == "on", actor=operator())
    plain("Requests need a key." if args.needed == "on" else "Requests need no key.")
    return 0


def _add_members(args: argparse.Namespace) -> int:
    from memos_vllm.governance import groups
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, create=False) as vault:
        group = groups.add(vault, args.group, args.users, actor=operator())
    plain(f"{args.group}: {', '.join(group.members)}")
    return 0


def _remove_members(args: argparse.Namespace) -> int:
    from memos_vllm.governance import groups
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, create=False) as vault:
        group = groups.remove(vault, args.group, args.users, actor=operator())
    plain(f"{args.group}: removed" if group is None else f"{args.group}: {', '.join(group.members) or 'nobody'}")
    return 0


def _list_groups(args: argparse.Namespace) -> int:
    from memos_vllm.governance import groups
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, readonly=True) as vault:
        listed = groups.listed(vault)
    if args.json:
        for name, group in listed.items():
            plain(msgspec.json.encode({"group": name, "members": group.members}).decode())
        return 0
    table = Table("group", "members", box=box.SIMPLE)
    for name, group in listed.items():
        table.add_row(escape(name), escape(", ".join(group.members)))
    Console().print(table)
    return 0


def _set_quota(args: argparse.Namespace) -> int:
    from memos_vllm.governance import quota
    from memos_vllm.vault import Vault

    limits = quota.Quota(args.cubes, args.mib, args.rps)
    if limits == quota.Quota():
        raise BadInput("Say which limit: --cubes, --mib or --rps.")
    with Vault.open(args.dir, create=False) as vault:
        quota.put(vault, args.user, limits, actor=operator())
    plain(f"{args.user}: {_shown(limits)}")
    return 0


def _clear_quota(args: argparse.Namespace) -> int:
    from memos_vllm.governance import quota
    from memos_vllm.vault import Vault

    with Vault.open(args.dir, create=False) as vault:
        cleared = quota.clear(vault, args.user, actor=operator())
    plain(f"{args.user}: {'the limits of the server hold again' if cleared else 'had no limits of their own'}")
    return 0


def _list_quotas(args: argparse.Namespace) -> int:
    from memos_vllm.governance import quota
    from memos_vllm.vault import Vault

    table = Table("user", "limits", "memories", "MiB", box=box.SIMPLE)
    with Vault.open(args.dir, readonly=True) as vault:
        for user, limits in quota.listed(vault).items():
            usage = vault.usage(user)
            table.add_row(escape(user), _shown(limits), f"{usage.cubes:,}", f"{usage.bytes / quota.MIB:.2f}")
    Console().print(table)
    return 0


def _shown(limits: Quota) -> str:
    given = ((limits.cubes, "memories"), (limits.mib, "MiB"), (limits.rps, "requests/s"))
    parts = [(value, unit) for value, unit in given if value is not None]
    return ", ".join(f"{value:g} {unit}" if value else f"no limit of {unit}" for value, unit in parts)


def tags(listed: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def operator() -> str:
    """Whom the audit log names for a command."""
    return f"operator:{getpass.getuser()}"


def plain(*lines: str) -> None:
    """Lines as they are: no markup, no wrapping, so that a program can read them."""
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def told(*lines: str) -> None:
    """Lines for a person, beside the output."""
    for line in lines:
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
