"""Which memories an adapter is made of, and what is made of an adapter's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from memos_vllm.cube import Header, MemCube, Plaintext, State, completed, now
from memos_vllm.errors import BadInput
from memos_vllm.parameter.entries import AdapterVersion
from memos_vllm.parameter.learned import made_of
from memos_vllm.vault import Vault

if TYPE_CHECKING:
    from memos_vllm.parameter.decode import Decoded

LEARNED: frozenset[State] = frozenset(("generated", "activated", "merged", "frozen"))
"""States of memories that may be learned: neither archived nor expired."""


def choose(vault: Vault, owner: str, *, tags: Collection[str] = (), ids: Collection[str] = ()) -> list[MemCube]:
    """An owner's texts that may be learned, oldest first. tags, ids: only those with one of them. Raises BadInput."""
    moment = now()
    found = [
        cube
        for cube in vault.list(owner, states=LEARNED)
        if isinstance(cube.payload, Plaintext) and cube.payload.format == "text" and not cube.expired(moment)
    ]
    wanted = [cube for cube in found if (not tags or {*tags} & {*cube.header.tags}) and (not ids or cube.id in ids)]
    if missing := {*ids} - {cube.id for cube in wanted}:
        raise BadInput(f"Memory {min(missing)} is no text of {owner!r} that can be learned; leave it out.")
    if not wanted:
        raise BadInput(f"{owner!r} has no such memories; choose others, or store some first.")
    return wanted


def parted(vault: Vault, version: AdapterVersion, without: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an adapter was made of, as `id@version`: what stays, and what is forgotten. Raises BadInput.

    Memories that were deleted since are forgotten with the others.
    """
    there = {cube.id for cube in vault.list(version.owner)}
    ids = {source: source.partition("@")[0] for source in made_of(version)}
    if unknown := {*without} - {*ids.values()}:
        raise BadInput(f"{version.served} was not made of memory {min(unknown)}; leave it out.")
    gone = tuple(source for source, cube_id in ids.items() if cube_id in without or cube_id not in there)
    return tuple(source for source in ids if source not in gone), gone


def decoded_cubes(found: Sequence[Decoded], version: AdapterVersion) -> list[MemCube]:
    """What was decoded as memories of the adapter's owner, with confidence and where it comes from."""
    made = []
    for each in found:
        header = Header(
            owner=version.owner,
            source=version.served,
            origin="parameter_fine_tuning",
            parents=(f"{version.cube_id}@{version.version}",),
            tags=("decoded",),
            metadata={
                "confidence": round(each.confidence, 4),
                "base_confidence": round(each.base, 4),
                "question": each.question,
            },
        )
        made.append(completed(MemCube(header, Plaintext(each.text))))
    return made
