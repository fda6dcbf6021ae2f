"""Groups: names under which rights are granted to several users."""

import msgspec

from memos_vllm.cube import MAX_PRINCIPAL_CHARS, checked_principal
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.governance.identity import GROUP_PREFIX, checked_user, group_principal
from memos_vllm.vault import Usage, Vault

KIND = "group"


class Group(msgspec.Struct, frozen=True):
    """The users in a group."""

    members: tuple[str, ...] = ()


def add(vault: Vault, name: str, users: list[str], *, actor: str) -> Group:
    """Put users into a group, which is made when it is not there. Raises BadInput."""
    entry = _entry_name(name)
    old = vault.get_entry(KIND, entry, Group) or Group()
    group = Group(tuple(sorted({*old.members, *map(checked_user, users)})))
    vault.put_entry(KIND, entry, group, actor=actor)
    return group


def remove(vault: Vault, name: str, users: list[str], *, actor: str) -> Group | None:
    """Take users out of a group, or remove the group (None) where none are named, with all that was shared with it.

    Raises NotFound, BadInput, and Conflict for a group that still owns memories.
    """
    entry = _entry_name(name)
    old = vault.get_entry(KIND, entry, Group)
    if old is None:
        raise NotFound(f"There is no group {name!r}; `memos-vllm group list` shows them.")
    if not users:
        if vault.usage(entry) != Usage():
            raise Conflict(f"The group {name!r} owns memories or snapshots; transfer or delete them first.")
        vault.delete_entry(KIND, entry, actor=actor)
        vault.forget(entry, actor=actor)  # or a later group of this name would have its rights
        return None
    strangers = sorted(set(users) - set(old.members))
    if strangers:
        raise NotFound(f"{strangers[0]!r} is not in the group {name!r}.")
    group = Group(tuple(member for member in old.members if member not in users))
    vault.put_entry(KIND, entry, group, actor=actor)
    return group


def listed(vault: Vault) -> dict[str, Group]:
    """Every group by its name, in order."""
    return {name.removeprefix(GROUP_PREFIX): group for name, group in sorted(vault.entries(KIND, Group).items())}


def _entry_name(name: str) -> str:
    """A group's principal, and its name in the registry, where no user's name can meet it. Raises BadInput."""
    if len(name) > MAX_PRINCIPAL_CHARS - len(GROUP_PREFIX):
        raise BadInput(f"A group's name has at most {MAX_PRINCIPAL_CHARS - len(GROUP_PREFIX)} characters.")
    if name.startswith(GROUP_PREFIX):
        raise BadInput(f"Name the group without {GROUP_PREFIX!r}: {name.removeprefix(GROUP_PREFIX)!r}.")
    checked_principal(name)
    return group_principal(name)
