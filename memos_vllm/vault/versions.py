"""How a cube follows from another: its first, next, earlier or merged version. Nothing is stored here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from memos_vllm.cube import (
    Grant,
    MemCube,
    Namespace,
    Operation,
    Parameter,
    Plaintext,
    Right,
    Scalar,
    completed,
    new_id,
    now,
)
from memos_vllm.errors import BadInput, Conflict

UpdateOperation = Literal["overwrite", "append", "merge", "purify"]

DESCRIPTIVE = ("source", "origin", "semantic_type", "tags", "model", "happened", "metadata", "fingerprint")
"""Header fields that belong to the content, and return with it."""


def reference(cube: MemCube) -> str:
    """How `parents` name a version."""
    return f"{cube.id}@{cube.version}"


def first(cube: MemCube, actor: str, operation: Operation = "add") -> MemCube:
    """A cube as it enters the vault. Raises BadInput, TooLarge."""
    if not cube.owner:
        raise BadInput("A memory needs an owner.")
    header = msgspec.structs.replace(cube.header, version=1, operation=operation, author=actor)
    return completed(MemCube(header, cube.payload))


def following(
    old: MemCube,
    text: str,
    actor: str,
    operation: UpdateOperation = "overwrite",
    *,
    metadata: Mapping[str, Scalar] | None = None,
    **fields: Any,
) -> MemCube:
    """The next version of a cube. metadata is added to what there is, `fields` replace theirs.

    Raises BadInput, TooLarge, and Conflict where the content cannot change.
    """
    header = msgspec.structs.replace(
        _numbered(old, actor, operation, reference(old)),
        metadata={**old.header.metadata, **(metadata or {})},
        **fields,
    )
    payload = msgspec.structs.replace(old.plain(), content=_combined(old.text, text, operation))
    return completed(MemCube(header, payload))


def replaced(old: MemCube, draft: MemCube, actor: str) -> MemCube:
    """The next version of a cube with the content of a draft, whose parents are added. Access and rules stay.

    Raises BadInput, TooLarge, and Conflict where the content cannot change.
    """
    content = {name: getattr(draft.header, name) for name in DESCRIPTIVE}
    header = msgspec.structs.replace(_numbered(old, actor, "overwrite", reference(old)), **content)
    header = msgspec.structs.replace(
        header,
        parents=(*header.parents, *draft.header.parents),
        licence=draft.header.licence or header.licence,
    )
    return completed(MemCube(header, draft.payload))


def returned(old: MemCube, then: MemCube, actor: str, operation: Operation) -> MemCube:
    """The next version of a cube, with the content of an earlier one and as delicate as both. Other rules stay.

    Raises Conflict where the content cannot change.
    """
    content = {name: getattr(then.header, name) for name in DESCRIPTIVE}
    content["sensitivity"] = _union((old.header.sensitivity, then.header.sensitivity))
    header = msgspec.structs.replace(_numbered(old, actor, operation, reference(then)), **content)
    return completed(MemCube(header, then.payload))


def edited(cube: MemCube, metadata: Mapping[str, Scalar], fields: Mapping[str, Any]) -> MemCube:
    """The same version with metadata added and header fields replaced. Raises BadInput, TooLarge."""
    merged_metadata = {**cube.header.metadata, **metadata}
    return completed(MemCube(msgspec.structs.replace(cube.header, metadata=merged_metadata, **fields), cube.payload))


def given_fields(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def same_content(one: MemCube, other: MemCube) -> bool:
    return one.payload == other.payload and all(
        getattr(one.header, name) == getattr(other.header, name) for name in DESCRIPTIVE
    )


def merged(cubes: Sequence[MemCube], text: str | None, actor: str) -> MemCube:
    """A new cube made of several of one owner; without a text it has every line of theirs once.

    Only who may read all of them may read it, and it expires with the first. Raises BadInput, Conflict, TooLarge.
    """
    if len({cube.id for cube in cubes}) < 2:
        raise BadInput("A merge needs two memories or more.")
    if len({cube.owner for cube in cubes}) > 1:
        raise Conflict("Memories of different owners cannot be merged; transfer them first.")
    base = cubes[-1].header
    metadata: dict[str, Scalar] = {}
    for cube in cubes:
        metadata.update(cube.header.metadata)
    header = msgspec.structs.replace(
        base,
        id=new_id(),
        created="",
        updated="",
        tags=_union(cube.header.tags for cube in cubes),
        metadata=metadata,
        access=_common(cubes),
        sensitivity=_union(cube.header.sensitivity for cube in cubes),
        expires=min((cube.header.expires for cube in cubes if cube.header.expires), default=""),
        happened=max(cube.header.happened for cube in cubes),
        fingerprint="",
        accesses=0,
        last_access="",
        state="generated",
        parents=tuple(reference(cube) for cube in cubes),
    )
    content = text if text is not None else _lines(cubes)
    return first(MemCube(header, Plaintext(content)), actor, "merge")


def given(cube: MemCube, owner: str, namespace: Namespace | None, actor: str) -> MemCube:
    """A cube as its new owner gets it: another id, no history and no grants. Raises BadInput, Conflict."""
    if isinstance(cube.payload, Parameter):
        raise Conflict(f"Memory {cube.id} is an adapter: export it, and let its new owner add it.")
    if owner == cube.owner:
        raise Conflict(f"Memory {cube.id} belongs to that owner already.")
    header = msgspec.structs.replace(
        cube.header,
        id=new_id(),
        owner=owner,
        namespace=namespace or cube.header.namespace,
        access=(),
        accesses=0,
        last_access="",
        state="generated",
        parents=(reference(cube),),
    )
    return first(MemCube(header, cube.payload), actor, "transfer")


def check_seen(cube: MemCube, expect: int | None) -> None:
    """Raises Conflict where the caller has seen another version than the newest."""
    if expect is not None and expect != cube.version:
        raise Conflict(f"Memory {cube.id} is at version {cube.version}, not {expect}; read it again.")


def _numbered(old: MemCube, actor: str, operation: Operation, parent: str) -> Any:
    """The header of the next version. Raises Conflict where the content cannot change."""
    if old.header.state in ("frozen", "expired"):
        remedy = "activate it first" if old.header.state == "frozen" else "store it anew"
        raise Conflict(f"Memory {old.id} is {old.header.state}: its content cannot change; {remedy}.")
    return msgspec.structs.replace(
        old.header,
        updated=max(now(), old.header.updated),
        version=old.version + 1,
        operation=operation,
        author=actor,
        parents=(parent,),
    )


def _combined(old: str, new: str, operation: UpdateOperation) -> str:
    match operation:
        case "overwrite" | "purify":
            return new
        case "append":
            return f"{old}\n{new}"
        case "merge":
            held = {line.strip().casefold() for line in old.splitlines()}
            return "\n".join([old, *(line for line in new.splitlines() if line.strip().casefold() not in held)])
    raise BadInput(f"An update overwrites, appends, merges or purifies; {operation!r} is unknown.")


def _lines(cubes: Sequence[MemCube]) -> str:
    """Every line once, in order; which case it is written in does not count."""
    held: dict[str, str] = {}
    for line in (line.strip() for cube in cubes for line in cube.text.splitlines()):
        if line:
            held.setdefault(line.casefold(), line)
    return "\n".join(held.values())


def _union(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def _common(cubes: Sequence[MemCube]) -> tuple[Grant, ...]:
    """The rights that hold for each of the cubes."""
    held = [{grant.principal: set(grant.rights) for grant in cube.header.access} for cube in cubes]
    order: tuple[Right, ...] = ("read", "write", "share")
    shared = [name for name in held[0] if all(name in rights for rights in held)]
    common = {name: set.intersection(*(rights[name] for rights in held)) for name in shared}
    return tuple(Grant(name, tuple(right for right in order if right in common[name])) for name in shared)
