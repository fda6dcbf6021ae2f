"""The calls about a person rather than one memory: plan, export, snapshots, pipelines, log, usage, consolidation, being
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from memos_vllm.client.call import Call, given, words
from memos_vllm.client.models import (
    Forgotten,
    LogPage,
    Memory,
    Plan,
    Proposal,
    Restored,
    Snapshot,
    Usage,
    Verification,
)


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
    body = given(
        query=query, messages=None if messages is None else [dict(message) for message in messages], policy=policy
    )
    return Call("POST", "/v1/memories/plan", Plan, user_id, body=body)


def export(
    recipient: str,
    *,
    redact: bool | None = None,
    watermark: bool | None = None,
    clearance: Iterable[str] | None = None,
    user_id: str | None = None,
) -> Call[dict[str, Any]]:
    """The user's own memories in the form in which they leave, one after another, as they come in.

    recipient: who gets them, for the audit log; redact, watermark: whether sensitive content is taken out, and whether
    invisible marks tell of this export (unless said, both); clearance: sensitivity tags that may leave.
    """
    body = given(recipient=recipient, redact=redact, watermark=watermark, clearance=words(clearance))
    return Call("POST", "/v1/memories/export", dict[str, Any], user_id, body=body)


def snapshots(*, owner: str | None = None, user_id: str | None = None) -> Call[list[Snapshot]]:
    """The user's snapshots, or those of a group of theirs, as in all calls about snapshots."""
    return Call("GET", "/v1/snapshots", Snapshot, user_id, given(owner=owner), many=True)


def snapshot(
    name: str, *, namespace: str | None = None, owner: str | None = None, user_id: str | None = None
) -> Call[Snapshot]:
    """Keep the present state of all of the user's memories (or of a namespace) under a name."""
    body = given(name=name, namespace=namespace)
    return Call("POST", "/v1/snapshots", Snapshot, user_id, given(owner=owner), body)


def restore_snapshot(name: str, *, owner: str | None = None, user_id: str | None = None) -> Call[Restored]:
    """Bring the user's memories back to a snapshot: changed ones get a new version, newer ones go to the archive."""
    return Call("POST", f"/v1/snapshots/{quote(name, safe='')}/restore", Restored, user_id, given(owner=owner))


def drop_snapshot(name: str, *, owner: str | None = None, user_id: str | None = None) -> Call[dict[str, str]]:
    """Delete a snapshot; the memories stay."""
    return Call("DELETE", f"/v1/snapshots/{quote(name, safe='')}", dict[str, str], user_id, given(owner=owner))


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
    params = given(
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
    return Call("GET", "/v1/audit/verify", Verification, user_id, params=given(anchor=anchor))


def usage(*, user_id: str | None = None) -> Call[Usage]:
    """What the user's memories take, and how much they may."""
    return Call("GET", "/v1/me/usage", Usage, user_id)


def consolidation(*, user_id: str | None = None) -> Call[Proposal]:
    """Which of the user's memories an adapter should know, so that prompts can do without them.

    Raises ConflictError where the server proposes nothing.
    """
    return Call("GET", "/v1/me/consolidation", Proposal, user_id)


def allow_consolidation(allowed: bool = True, *, user_id: str | None = None) -> Call[Proposal]:
    """Allow the server to make such an adapter by itself, or allow it no more. Raises ConflictError as before."""
    return Call("PUT", "/v1/me/consolidation", Proposal, user_id, body={"allowed": allowed})


def forget_me(*, user_id: str | None = None) -> Call[Forgotten]:
    """Delete everything about the user: memories, versions, K/V, keys, grants to them. It cannot be undone."""
    return Call("DELETE", "/v1/me", Forgotten, user_id)
