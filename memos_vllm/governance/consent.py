"""Who allows the server to make an adapter of their memories without being asked each time."""

import msgspec

from memos_vllm.vault import Vault

KIND = "consolidation"
"""Of registry entries; a user's is named after them, and is forgotten with them."""


class Consent(msgspec.Struct, frozen=True):
    """An owner's word; no entry is a no."""

    allowed: bool


def allow(vault: Vault, owner: str, allowed: bool, *, actor: str) -> None:
    """Note what an owner wants, with an entry in the audit log. Raises MemosError."""
    if allowed:
        vault.put_entry(KIND, owner, Consent(True), actor=actor, owner=owner)
    else:
        vault.delete_entry(KIND, owner, actor=actor)


def allows(vault: Vault, owner: str) -> bool:
    """Raises VaultUnavailable."""
    held = vault.get_entry(KIND, owner, Consent)
    return held is not None and held.allowed


def willing(vault: Vault) -> list[str]:
    """Everybody who allows it. Raises VaultUnavailable."""
    return sorted(owner for owner, held in vault.entries(KIND, Consent).items() if held.allowed)
