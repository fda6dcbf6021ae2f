"""The calls about memories: their arguments, the HTTP request they become, and what the answer is.

`user_id` names whose memories a call means, where the client does not say it and the key is bound to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from memos_vllm.client.call import Call, given, words
from memos_vllm.client.models import Ancestor, Change, Deleted, Grant, Health, Memory, Scalar, Version

State = Literal["generated", "activated", "merged", "archived", "expired", "frozen"]
Right = Literal["read", "write", "share"]
Access = str | Grant | Mapping[str, Any]
"""A principal who may read, or what a principal may do."""


def _at(memory_id: str, *rest: str) -> str:
    return "/".join(["/v1/memories", quote(memory_id, safe=""), *rest])


def add(
    messages: str | Sequence[Mapping[str, Any]],
    *,
    user_id: str | None = None,
    run_id: str | None = None,
    agent_id: str | None = None,
    app_id: str | None = None,
    metadata: Mapping[str, Scalar] | None = None,
    infer: bool | None = None,
    tags: Iterable[str] | None = None,
    access: Iterable[Access] | None = None,
    expires: str | None = None,
    happened: str | None = None,
    semantic_type: str | None = None,
    priority: str | None = None,
    namespace: str | None = None,
    sensitivity: Iterable[str] | None = None,
) -> Call[list[Memory]]:
    """Remember a text, or messages: each user message word for word, or, with `infer`, what the reader finds in them.

    run_id: the session; its memories are neighbours in their order. access: who else may read, or do what. happened,
    expires: ISO-8601. Returns the memories written.
    """
    body = given(
        messages=messages if isinstance(messages, str) else [dict(message) for message in messages],
        run_id=run_id,
        agent_id=agent_id,
        app_id=app_id,
        metadata=None if metadata is None else dict(metadata),
        infer=infer,
        tags=words(tags),
        access=_granted(access),
        expires=expires,
        happened=happened,
        semantic_type=semantic_type,
        priority=priority,
        namespace=namespace,
        sensitivity=words(sensitivity),
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
    neighbours: bool | None = None,
    run_id: str | None = None,
    agent_id: str | None = None,
    user_id: str | None = None,
) -> Call[list[Memory]]:
    """The memories that fit a query best, best first, among all that the user may read; where none fits, the latest
    ones, with score 0.

    filters: metadata and header values they must have; threshold: least score; since, until: when it happened;
    types, tags: any of these; using: parts of the ranking; archived: among the user's own archived memories instead;
    neighbours: whether the turns around a hit are found with it; run_id, agent_id: only those added with it.
    """
    body = given(
        query=query,
        top_k=top_k,
        filters=None if filters is None else dict(filters),
        threshold=threshold,
        since=since,
        until=until,
        types=words(types),
        tags=words(tags),
        using=words(using),
        archived=archived,
        neighbours=neighbours,
        run_id=run_id,
        agent_id=agent_id,
    )
    return Call("POST", "/v1/memories/search", Memory, user_id, body=body, many=True)


def get(memory_id: str, *, user_id: str | None = None) -> Call[Memory]:
    """One memory. Raises NotFoundError."""
    return Call("GET", _at(memory_id), Memory, user_id)


def get_all(
    *,
    limit: int = 100,
    after: str | None = None,
    as_of: str | None = None,
    owner: str | None = None,
    run_id: str | None = None,
    agent_id: str | None = None,
    app_id: str | None = None,
    user_id: str | None = None,
) -> Call[list[Memory]]:
    """The user's own memories, oldest first; `after`: id of the last one of the page before; `as_of`: as of a time.

    owner: those of a group of the user's instead; run_id, agent_id, app_id: only those added with it.
    """
    params = given(limit=limit, after=after, as_of=as_of, owner=owner, run_id=run_id, agent_id=agent_id, app_id=app_id)
    return Call("GET", "/v1/memories", Memory, user_id, params=params, many=True)


def update(
    memory_id: str,
    text: str | None = None,
    *,
    operation: Literal["overwrite", "append", "merge"] | None = None,
    metadata: Mapping[str, Scalar] | None = None,
    happened: str | None = None,
    expires: str | None = None,
    expect: int | None = None,
    user_id: str | None = None,
) -> Call[Memory]:
    """A new version of a memory. `expect`: the version it must be at, else ConflictError.

    happened: when what the new text tells was, ISO-8601; expires: its expiry from now on, "" for none.
    """
    body = given(
        text=text,
        operation=operation,
        metadata=None if metadata is None else dict(metadata),
        happened=happened,
        expiration_date=expires,
        expect=expect,
    )
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
    expect: int | None = None,
    user_id: str | None = None,
) -> Call[Memory]:
    """Change what is known about a memory, without a new version. `expect`: as in `update`."""
    body = given(
        tags=words(tags),
        priority=priority,
        expires=expires,
        sensitivity=words(sensitivity),
        metadata=None if metadata is None else dict(metadata),
        half_life_days=half_life_days,
        expect=expect,
    )
    return Call("PATCH", _at(memory_id), Memory, user_id, body=body)


def delete(memory_id: str, *, snapshots: bool = False, user_id: str | None = None) -> Call[Deleted]:
    """Delete a memory with every version. snapshots: with its copies in snapshots, which could bring it back."""
    return Call("DELETE", _at(memory_id), Deleted, user_id, params=given(snapshots=snapshots or None))


def delete_many(memory_ids: Iterable[str], *, snapshots: bool = False, user_id: str | None = None) -> Call[Deleted]:
    """Delete several memories, all or none. snapshots: with their copies in snapshots."""
    params = given(snapshots=snapshots or None)
    return Call("POST", "/v1/memories/delete", Deleted, user_id, body={"ids": words(memory_ids)}, params=params)


def delete_all(
    *,
    run_id: str | None = None,
    agent_id: str | None = None,
    app_id: str | None = None,
    snapshots: bool = False,
    user_id: str | None = None,
) -> Call[Deleted]:
    """Delete all of the user's own memories, or those that were added with a run, an agent or an app.

    snapshots: with their copies in snapshots.
    """
    params = given(run_id=run_id, agent_id=agent_id, app_id=app_id, snapshots=snapshots or None)
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


def set_access(memory_id: str, access: Iterable[Access], *, user_id: str | None = None) -> Call[list[Grant]]:
    """Say who has access to a memory from now on; everybody else loses it. A name alone may read."""
    return Call("PUT", _at(memory_id, "access"), Grant, user_id, body={"access": _granted(access)}, many=True)


def share(
    memory_id: str, principal: str, rights: Iterable[Right] = ("read",), *, user_id: str | None = None
) -> Call[list[Grant]]:
    """Let a user or a group (`group:NAME`) read, write or share a memory. Returns who may do what now."""
    body = {"principal": principal, "rights": words(rights)}
    return Call("POST", _at(memory_id, "access"), Grant, user_id, body=body, many=True)


def revoke(memory_id: str, principal: str, *, user_id: str | None = None) -> Call[list[Grant]]:
    """Take a user's or group's rights away. Returns who may do what now."""
    params = {"principal": principal}
    return Call("DELETE", _at(memory_id, "access"), Grant, user_id, params=params, many=True)


def provenance(memory_id: str, *, user_id: str | None = None) -> Call[list[Ancestor]]:
    """What a memory comes from, the nearest first, as far as the user may read it."""
    return Call("GET", _at(memory_id, "provenance"), Ancestor, user_id, many=True)


def health() -> Call[Health]:
    """Whether the vault answers."""
    return Call("GET", "/v1/memories/health", Health)


def _granted(access: Iterable[Access] | None) -> list[Any] | None:
    """Names and grants as they are sent. Raises TypeError for a text, which would be taken for its letters."""
    if access is None or isinstance(access, str):
        return words(access)
    return [msgspec.to_builtins(grant) if isinstance(grant, Grant) else grant for grant in access]
