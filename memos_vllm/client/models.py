"""What the server answers, as typed structs. Fields that a newer server adds are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

Scalar = str | int | float | bool | None


class Grant(msgspec.Struct, frozen=True):
    """What a principal (`tom`, `group:kitchen`) may do with a memory: read, write, share."""

    principal: str
    rights: tuple[str, ...] = ("read",)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One memory. `score` is there in search results, `event` (ADD, UPDATE, NONE) in answers to writes.

    Times are ISO-8601, UTC. accesses, last_access: its uses in prompts, activation: in which form it enters them; for
    its owner.
    """

    id: str
    memory: str
    user_id: str
    version: int
    created_at: str
    updated_at: str
    metadata: dict[str, Scalar] = {}
    tags: tuple[str, ...] = ()
    access: tuple[str, ...] = ()
    state: str = "generated"
    semantic_type: str = "fact"
    priority: str = "mid"
    namespace: str = "user"
    source: str = ""
    happened: str = ""
    expires: str = ""
    sensitivity: tuple[str, ...] = ()
    accesses: int | None = None
    last_access: str | None = None
    score: float | None = None
    parts: dict[str, float] | None = None
    event: str | None = None
    activation: dict[str, Any] | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a memory's history."""

    memory_id: str
    version: int
    event: str
    actor: str
    created_at: str
    operation: str | None = None
    old_memory: str | None = None
    new_memory: str | None = None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a memory. parents: `id@version` of what it was made from."""

    version: int
    memory: str
    operation: str
    author: str
    created_at: str
    parents: tuple[str, ...] = ()
    metadata: dict[str, Scalar] = {}


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """A memory version that another one comes from; depth 0 is the memory itself."""

    id: str
    version: int
    operation: str
    author: str
    at: str
    depth: int


class Deleted(msgspec.Struct, frozen=True):
    """How many memories were deleted. in_snapshots: copies of named ones that snapshots still hold."""

    message: str
    deleted: int
    in_snapshots: int = 0


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A memory that a prompt would be given: its tokens there, its form (text, kv, adapter), and why."""

    memory: Memory
    score: float
    tokens: int
    form: str
    why: str
    parts: dict[str, float] = {}


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A memory that a prompt would not be given, and why. parts: what its score is made of."""

    id: str
    why: str
    score: float = 0.0
    parts: dict[str, float] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt would be given for a query. tokens, budget: tokens taken and allowed; considered: candidates."""

    chosen: tuple[Choice, ...]
    left_out: tuple[LeftOut, ...]
    considered: int
    tokens: int
    budget: int
    policy: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A named state of all of a user's memories."""

    name: str
    created_at: str
    memories: int
    bytes: int
    namespace: str | None = None


class Restored(msgspec.Struct, frozen=True):
    """What a restored snapshot did: memories with the content of then, those back from deletion, those put into the
    archive because they are newer, and how many were the same.
    """

    results: tuple[Memory, ...]
    revived: tuple[Memory, ...]
    archived: tuple[Memory, ...]
    unchanged: int


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit log. It never holds content. seq, hash: for those who may read the whole log."""

    at: str
    actor: str
    action: str
    target: str
    owner: str
    principals: tuple[str, ...] = ()
    detail: dict[str, Scalar] = {}
    seq: int | None = None
    hash: str | None = None


class LogPage(msgspec.Struct, frozen=True):
    """Entries of the audit log; `next` is the `after` of the page behind them, where there may be one."""

    results: tuple[LogEntry, ...]
    next: str | None = None


class Verification(msgspec.Struct, frozen=True):
    """Whether the audit log is whole, what is wrong with it, and its head (`seq:hash`) to keep elsewhere."""

    ok: bool
    problems: tuple[str, ...]
    head: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a user's memories take; a limit is None where there is none."""

    user_id: str
    cubes: int
    bytes: int
    max_cubes: int | None = None
    max_bytes: int | None = None
    requests_per_second: float | None = None


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted of a user, and how many rows of each kind still name them: all 0."""

    user_id: str
    deleted: dict[str, int]
    traces: dict[str, int]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether memory works. splice: whether K/V are spliced; vault: what it holds, for those who look after it."""

    status: str
    splice: bool
    vault: dict[str, Any] | None = None


class AdapterVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an adapter. model: the name that a request gives to be answered by it.

    base, digest: of the model it was made for, and of its files; author, parents, tags, metadata: for its owner.
    """

    version: int
    model: str
    rank: int
    scale: float
    dtype: str
    bytes: int
    target_modules: tuple[str, ...]
    base: str
    digest: str
    created: str
    author: str | None = None
    parents: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    metadata: dict[str, Scalar] | None = None


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter. model: what a request names to be answered by the version that is `active`.

    default: whether it answers in the base model's place.
    """

    id: str
    name: str
    owner: str
    model: str
    default: bool
    state: str
    versions: tuple[AdapterVersion, ...]
    created: str
    updated: str
    active: int | None = None
    access: tuple[Grant, ...] | None = None


class AdapterRemoved(msgspec.Struct, frozen=True):
    """What was removed: one version of an adapter, or all of it."""

    name: str
    version: int | None = None


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A training. phase: what it does now, `done` of `total` of it; adapter: the version that was stored.

    problems: why its adapter was refused.
    """

    id: str
    name: str
    owner: str
    state: str
    created: str
    updated: str
    phase: str = ""
    done: int = 0
    total: int = 0
    adapter: str | None = None
    figures: dict[str, float] = {}
    problems: tuple[str, ...] = ()
    error: str | None = None


class Learn(msgspec.Struct, frozen=True, kw_only=True):
    """A memory that an adapter should know. saves: prompt tokens a day; known: whether one does already."""

    id: str
    version: int
    tokens: int
    uses_a_day: float
    saves: float
    known: bool
    why: str


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What the user's adapter should know, and the prompt tokens that it saves.

    gained_tokens: of a prompt, by what no adapter knows yet; lost: what the adapter was made of and has changed, as
    `id@version`; worth: whether a training pays; why_not: why none begins by itself.
    """

    user_id: str
    mode: str
    allowed: bool
    adapter: str
    memories: tuple[Learn, ...]
    saved_tokens: float
    gained_tokens: float
    saved_tokens_a_day: float
    lost: tuple[str, ...]
    training_seconds: float
    worth: bool
    why_not: str | None = None
    training: Training | None = None
