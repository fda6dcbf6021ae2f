"""Bodies of the plan, the audit log, usage and forgetting."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from memos_vllm.cube import Scalar
from memos_vllm.scheduler.filling import Choice
from memos_vllm.scheduler.plan import MemoryPlan
from memos_vllm.server.schemas import EXAMPLE_ID, EXAMPLE_MEMORY, ChatMessage, Memory, examples
from memos_vllm.vault import ForgetReport, LogEntry


class PlanRequest(BaseModel):
    """A question, as it would stand in a chat; `messages` are the turns before, for the order of their memories."""

    model_config = examples({"query": "Which tea do I like?", "user_id": "maya", "policy": "semantic"})

    query: str = Field(max_length=65536)
    user_id: str | None = None
    messages: list[ChatMessage] = Field(default_factory=list)
    policy: str | None = Field(None, description="semantic, lru, label, frequency or priority; else the server's.")


class ExportRequest(BaseModel):
    """Who gets the user's memories, and how they leave."""

    model_config = examples({"recipient": "doctor", "user_id": "maya"})

    recipient: str = Field(max_length=256, description="Who gets them: stands in the audit log.")
    user_id: str | None = None
    redact: bool = Field(True, description="Whether addresses, numbers and secrets are taken out.")
    watermark: bool = Field(True, description="Whether invisible marks in the texts lead back to this export.")
    clearance: list[str] | None = Field(
        None, max_length=64, description="Sensitivity tags that may leave; else all that the key is cleared for."
    )


EXPORTED: dict[str, Any] = {
    "meta": {
        "id": EXAMPLE_ID,
        "created": "2025-04-10T12:00:00.000000Z",
        "semantic_type": "user_preference",
        "access": [],
        "watermark": "5f0c9d1e",
    },
    "payload": {"type": "plaintext", "format": "text", "content": "My favourite tea is oolong."},
}
"""An example of a line of an export, without most of its header."""


class ChoiceBody(BaseModel):
    """A memory that the prompt would be given. `parts`: what its score is made of; `form`: text, kv or adapter."""

    memory: Memory
    score: float
    parts: dict[str, float]
    tokens: int
    form: Literal["text", "kv", "adapter"]
    why: str

    @classmethod
    def of(cls, choice: Choice, viewer: str) -> ChoiceBody:
        return cls(
            memory=Memory.of(choice.cube, viewer),
            score=choice.score,
            parts=dict(choice.parts),
            tokens=choice.tokens,
            form=choice.form,
            why=choice.why,
        )


class LeftOutBody(BaseModel):
    """A memory that the prompt would not be given, and why."""

    id: str
    score: float
    parts: dict[str, float]
    why: str


class PlanBody(BaseModel):
    """What a prompt would be given. `considered`: candidates of the search; `tokens` of the `budget` are taken."""

    model_config = examples(
        {
            "policy": "semantic",
            "budget": 1024,
            "tokens": 14,
            "considered": 2,
            "chosen": [
                {
                    "memory": EXAMPLE_MEMORY,
                    "score": 0.91,
                    "parts": {"relevance": 0.91},
                    "tokens": 14,
                    "form": "text",
                    "why": "short: computing it costs less than loading K/V",
                }
            ],
            "left_out": [{"id": EXAMPLE_ID, "score": 0.1, "parts": {"relevance": 0.1}, "why": "over the token budget"}],
        }
    )

    policy: str
    budget: int
    tokens: int
    considered: int
    chosen: list[ChoiceBody]
    left_out: list[LeftOutBody]

    @classmethod
    def of(cls, plan: MemoryPlan, viewer: str) -> PlanBody:
        left_out = [
            LeftOutBody(id=item.cube_id, score=item.score, parts=dict(item.parts), why=item.why)
            for item in plan.left_out
        ]
        return cls(
            policy=plan.policy,
            budget=plan.budget,
            tokens=plan.tokens,
            considered=plan.considered,
            chosen=[ChoiceBody.of(choice, viewer) for choice in plan.chosen],
            left_out=left_out,
        )


class LogEntryBody(BaseModel):
    """One entry of the audit log.

    For those who may read the whole log: `seq`, its number, and `hash`, of the entry and through it of all before it.
    """

    model_config = examples(
        {
            "seq": 7,
            "at": "2025-04-10T12:00:00.000000Z",
            "actor": "maya",
            "action": "add",
            "target": EXAMPLE_ID,
            "owner": "maya",
            "principals": [],
            "detail": {"version": 1},
            "hash": "5f0c…",
        }
    )

    seq: int | None = None
    at: str
    actor: str
    action: str
    target: str
    owner: str
    principals: list[str]
    detail: dict[str, Scalar]
    hash: str | None = None

    @classmethod
    def of(cls, entry: LogEntry, whole: bool) -> LogEntryBody:
        return cls(
            seq=entry.seq if whole else None,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            target=entry.target,
            owner=entry.owner,
            principals=list(entry.principals),
            detail=entry.detail,
            hash=entry.hash if whole else None,
        )


class Log(BaseModel):
    """Entries of the audit log. `next`: what to send as `after` for those behind them, where there may be some."""

    results: list[LogEntryBody]
    next: str | None = None


class Verification(BaseModel):
    """Whether the audit log is whole.

    `head`: `seq:hash` of its newest entry. Kept elsewhere and sent as `anchor` next time, it shows whether anything up
    to it was written anew.
    """

    model_config = examples({"ok": True, "problems": [], "head": "7:5f0c…"})

    ok: bool
    problems: list[str]
    head: str


class UsageBody(BaseModel):
    """What a user's memories take up, and the limits, null where there is none. `bytes`: with older versions and
    snapshots; a memory counts once more for each grant.
    """

    model_config = examples(
        {
            "user_id": "maya",
            "cubes": 12,
            "bytes": 20480,
            "max_cubes": 10000,
            "max_bytes": None,
            "requests_per_second": 20.0,
        }
    )

    user_id: str
    cubes: int
    bytes: int
    max_cubes: int | None
    max_bytes: int | None
    requests_per_second: float | None


class Forgotten(BaseModel):
    """What was deleted of a user, and how many rows of each kind still belong to them or name them: none."""

    model_config = examples(
        {
            "user_id": "maya",
            "deleted": {"cubes": 12, "versions": 15, "kv_files": 2, "index_rows": 140, "snapshots": 1, "grants": 3},
            "traces": {},
        }
    )

    user_id: str
    deleted: Annotated[dict[str, int], Field(description="Rows and files that are gone, by kind.")]
    traces: Annotated[
        dict[str, int], Field(description="Rows that still tell of the user, by kind; empty where none do.")
    ]

    @classmethod
    def of(cls, user: str, report: ForgetReport, traces: dict[str, int]) -> Forgotten:
        deleted = {
            "cubes": report.cubes,
            "versions": report.versions,
            "kv_files": len(report.kv_keys),
            "index_rows": report.index_rows,
            "snapshots": report.snapshots,
            "grants": report.grants,
            "mentions": report.mentions,
            "registry": report.registry,
            "log_names": report.log_names,
        }
        return cls(user_id=user, deleted=deleted, traces=traces)
