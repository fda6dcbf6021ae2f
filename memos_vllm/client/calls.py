"""Every call of the memory API once: its arguments, the HTTP request they become, and what the answer is.

`user_id` names whose memories a call means, where the client does not say it and the key is bound to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec

from memos_vllm.client.models import (
    Ancestor,
    Change,
    Deleted,
    Forgotten,
    Grant,
    LogPage,
    Memory,
    Plan,
    Restored,
    Scalar,
    Snapshot,
    Usage,
    Verification,
    Version,
)

Answer = TypeVar("Answer")
Item = TypeVar("Item")
State = Literal["generated", "activated", "merged", "archived", "expired", "frozen"]
Right = Literal["read", "write", "share"]


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request. `type`: what the answer's JSON decodes to, or, with `many`, each item of its `results`."""

    method: str
    path: str
    type: Any
    user_id: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    many: bool = False

    def decode(self, answer: bytes) -> Answer:
        """Raises msgspec.MsgspecError where the answer is not what the API promises."""
        if self.many:
            answer = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])["results"]
        kind = GenericAlias(list, (self.type,)) if self.many else self.type
        decoded: Answer = msgspec.json.decode(answer, type=kind)
        return decoded


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _words(values: Iterable[str] | None) -> list[str] | None:
    """The values as a list. Raises TypeError for a text, which would be taken for its letters."""
    if isinstance(values, str):
        raise TypeError(f"give a list of texts, [{values!r}], instead of the text {values!r}")
    return None if values is None else [*values]


def _at(memory_id: str, *rest: str) -> str:
    return "/".join(["/v1/memories", quote(memory_id, safe=""), *rest])


def add(
    messages: str | Sequence[Mapping[str, Any]],
    *,
    user_id: str | None = None,
    run_id: str | None = None,
    agent_id: str | None = None,
    metadata: Mapping[str, Scalar] | None = None,
    infer: bool | None = None,
    tags: Iterable[str] | None = None,
    access: Iterable[str] | None = None,
    expires: str | None = None,
    happened: str | None = None,
    semantic_type: str | None = None,
    priority: str | None = None,
    sensitivity: Iterable[str] | None = None,
) -> Call[list[Memory]]:
    """Remember a text, or messages: each user message word for word, or, with `infer`, what the reader finds in them.

    run_id: the session; its memories are neighbours in their order. access: who else may read. happened, expires:
    ISO-8601. Returns the memories written.
    """
    body = _given(
        messages=messages if isinstance(messages, str) else [dict(message) for message in messages],
        run_id=run_id,
        agent_id=agent_id,
        metadata=None if metadata is None else dict(metadata),
        infer=infer,
        tags=_words(tags),
        access=_words(access),
        expires=expires,
        happened=happened,
        semantic_type=semantic_type,
        priority=priority,
        sensitivity=_words(sensitivity),
    )
    return Call("POST", "/v1/memories", Memory, user_id, body=body, many=True)


def search(
    query: str,
    *,
    top_k: int = 10,
    filters: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    since: str | None = None,
    until: str | None = None,
    types: Iterable[str] | None = None,
    tags: Iterable[str] | None = None,
    using: Iterable[str] | None = None,
    archived: bool | None = None,
    user_id: str | None = None,
) -> Call[list[Memory]]:
    """The memories that fit a query best, best first, among all that the user may read; where none fits, the latest
    ones, with score 0.

    filters: metadata and header values they must have; threshold: least score; since, until: when it happened;
    types, tags: any of these; using: parts of the ranking; archived: among the user's own archived memories instead.
    """
    body = _given(
        query=query,
        top_k=top_k,
        filters=None if filters is None else dict(filters),
        threshold=threshold,
        since=since,
        until=until,
        types=_words(types),
        tags=_words(tags),
        using=_words(using),
        archived=archived,
    )
    return Call("POST", "/v1/memories/search", Memory, user_id, body=body, many=True)


def get(memory_id: str, *, user_id: str | None = None) -> Call[Memory]:
    """One memory. Raises NotFoundError."""
    return Call("GET", _at(memory_id), Memory, user_id)


def get_all(
    *, limit: int = 100, after: str | None = None, as_of: str | None = None, user_id: str | None = None
) -> Call[list[Memory]]:
    """The user's own memories, oldest first; `after`: id of the last one of the page before; `as_of`: as of a time."""
    return Call("GET", "/v1/memories", Memory, user_id, params=_given(limit=limit, after=after, as_of=as_of), many=True)


def update(
    memory_id: str,
    text: str | None = None,
    *,
    operation: Literal["overwrite", "append", "merge"] | None = None,
    metadata: Mapping[str, Scalar] | None = None,
    expect: int | None = None,
    user_id: str | None = None,
) -> Call[Memory]:
    """A new version of a memory. `expect`: the version it must be at, else ConflictError."""
    body = _given(text=text, operation=operation, metadata=None if metadata is None else dict(metadata), expect=expect)
    return Call("PUT", _at(memory_id), Memory, user_id, body=body)


def edit(
    memory_id: str,
    *,
    tags: Iterable[str] | None = None,
    priority: str | None = None,
    expires: str | None = None,
    sensitivity: Iterable[str] | None = None,
    metadata: Mapping[str, Scalar] | None = None,
    half_life_days: float | None = None,
    user_id: str | None = None,
) -> Call[Memory]:
    """Change what is known about a memory, without a new version."""
    body = _given(
        tags=_words(tags),
        priority=priority,
        expires=expires,
        sensitivity=_words(sensitivity),
        metadata=None if metadata is None else dict(metadata),
        half_life_days=half_life_days,
    )
    return Call("PATCH", _at(memory_id), Memory, user_id, body=body)


def delete(memory_id: str, *, snapshots: bool = False, user_id: str | None = None) -> Call[Deleted]:
    """Delete a memory with every version. snapshots: with its copies in snapshots, which could bring it back."""
    return Call("DELETE", _at(memory_id), Deleted, user_id, params=_given(snapshots=snapshots or None))


def delete_many(memory_ids: Iterable[str], *, snapshots: bool = False, user_id: str | None = None) -> Call[Deleted]:
    """Delete several memories, all or none. snapshots: with their copies in snapshots."""
    params = _given(snapshots=snapshots or None)
    return Call("POST", "/v1/memories/delete", Deleted, user_id, body={"ids": _words(memory_ids)}, params=params)


def delete_all(
    *,
    run_id: str | None = None,
    agent_id: str | None = None,
    snapshots: bool = False,
    user_id: str | None = None,
) -> Call[Deleted]:
    """Delete all of the user's own memories, or those that were added with a run or an agent.

    snapshots: with their copies in snapshots.
    """
    params = _given(run_id=run_id, agent_id=agent_id, snapshots=snapshots or None)
    return Call("DELETE", "/v1/memories", Deleted, user_id, params=params)


def history(memory_id: str, *, user_id: str | None = None) -> Call[list[Change]]:
    """What happened to a memory, oldest first."""
    return Call("GET", _at(memory_id, "history"), Change, user_id, many=True)


def versions(memory_id: str, *, user_id: str | None = None) -> Call[list[Version]]:
    """The versions of a memory, oldest first."""
    return Call("GET", _at(memory_id, "versions"), Version, user_id, many=True)


def rollback(memory_id: str, version: int, *, user_id: str | None = None) -> Call[Memory]:
    """A new version with the content of an older one."""
    return Call("POST", _at(memory_id, "rollback"), Memory, user_id, body={"version": version})


def set_state(memory_id: str, state: State, *, user_id: str | None = None) -> Call[Memory]:
    """Move a memory to another state of its life. Raises ConflictError where it cannot go there."""
    return Call("PUT", _at(memory_id, "state"), Memory, user_id, body={"state": state})


def pin(memory_id: str, *, user_id: str | None = None) -> Call[Memory]:
    """Make a memory's K/V at once, and keep them before all others."""
    return Call("POST", _at(memory_id, "pin"), Memory, user_id)


def unpin(memory_id: str, *, user_id: str | None = None) -> Call[Memory]:
    """Let a memory's K/V go when room is short."""
    return Call("DELETE", _at(memory_id, "pin"), Memory, user_id)


def access(memory_id: str, *, user_id: str | None = None) -> Call[list[Grant]]:
    """Who else may do what with a memory."""
    return Call("GET", _at(memory_id, "access"), Grant, user_id, many=True)


def share(
    memory_id: str, principal: str, rights: Iterable[Right] = ("read",), *, user_id: str | None = None
) -> Call[list[Grant]]:
    """Let a user or a group (`group:NAME`) read, write or share a memory. Returns who may do what now."""
    body = {"principal": principal, "rights": _words(rights)}
    return Call("POST", _at(memory_id, "access"), Grant, user_id, body=body, many=True)


def revoke(memory_id: str, principal: str, *, user_id: str | None = None) -> Call[list[Grant]]:
    """Take a user's or group's rights away. Returns who may do what now."""
    params = {"principal": principal}
    return Call("DELETE", _at(memory_id, "access"), Grant, user_id, params=params, many=True)


def provenance(memory_id: str, *, user_id: str | None = None) -> Call[list[Ancestor]]:
    """What a memory comes from, the nearest first, as far as the user may read it."""
    return Call("GET", _at(memory_id, "provenance"), Ancestor, user_id, many=True)


def plan(
    query: str,
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    policy: str | None = None,
    user_id: str | None = None,
) -> Call[Plan]:
    """Which memories a prompt with this question would be given, in which form, and why others not.

    messages: the conversation before, whose memories keep their places; policy: see `--memory-policy`.
    """
    body = _given(
        query=query, messages=None if messages is None else [dict(message) for message in messages], policy=policy
    )
    return Call("POST", "/v1/memories/plan", Plan, user_id, body=body)


def snapshots(*, user_id: str | None = None) -> Call[list[Snapshot]]:
    """The user's snapshots."""
    return Call("GET", "/v1/snapshots", Snapshot, user_id, many=True)


def snapshot(name: str, *, namespace: str | None = None, user_id: str | None = None) -> Call[Snapshot]:
    """Keep the present state of all of the user's memories (or of a namespace) under a name."""
    return Call("POST", "/v1/snapshots", Snapshot, user_id, body=_given(name=name, namespace=namespace))


def restore_snapshot(name: str, *, user_id: str | None = None) -> Call[Restored]:
    """Bring the user's memories back to a snapshot: changed ones get a new version, newer ones go to the archive."""
    return Call("POST", f"/v1/snapshots/{quote(name, safe='')}/restore", Restored, user_id)


def drop_snapshot(name: str, *, user_id: str | None = None) -> Call[dict[str, str]]:
    """Delete a snapshot; the memories stay."""
    return Call("DELETE", f"/v1/snapshots/{quote(name, safe='')}", dict[str, str], user_id)


def pipeline(steps: Iterable[Mapping[str, Any]], *, user_id: str | None = None) -> Call[list[Memory]]:
    """Apply operations in their order, all or none: `{"type": "add", …}`, `merge`, `purify`, … Returns what is new."""
    return Call("POST", "/v1/pipelines", Memory, user_id, body={"steps": [dict(step) for step in steps]}, many=True)


def log(
    *,
    actor: str | None = None,
    owner: str | None = None,
    target: str | None = None,
    action: str | None = None,
    since: str | None = None,
    until: str | None = None,
    after: str | None = None,
    limit: int = 100,
    newest_first: bool | None = None,
    user_id: str | None = None,
) -> Call[LogPage]:
    """Entries of the audit log about the user's memories, oldest first; an admin's or auditor's key reads those of all.

    after: `next` of the page before.
    """
    params = _given(
        actor=actor,
        owner=owner,
        target=target,
        action=action,
        since=since,
        until=until,
        after=after,
        limit=limit,
        newest_first=newest_first,
    )
    return Call("GET", "/v1/audit", LogPage, user_id, params=params)


def verify_log(anchor: str | None = None, *, user_id: str | None = None) -> Call[Verification]:
    """Whether the audit log is whole, for a key with the role admin or auditor.

    anchor: an earlier head, which the log must still hold.
    """
    return Call("GET", "/v1/audit/verify", Verification, user_id, params=_given(anchor=anchor))


def usage(*, user_id: str | None = None) -> Call[Usage]:
    """What the user's memories take, and how much they may."""
    return Call("GET", "/v1/me/usage", Usage, user_id)


def forget_me(*, user_id: str | None = None) -> Call[Forgotten]:
    """Delete everything about the user: memories, versions, K/V, keys, grants to them. It cannot be undone."""
    return Call("DELETE", "/v1/me", Forgotten, user_id)
