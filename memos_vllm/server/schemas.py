"""Bodies of the memory routes, in mem0's shape. Fields that other clients send and nothing here needs are ignored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memos_vllm.cube import Grant, MemCube, Namespace, Operation, Priority, Right, SemanticType, State
from memos_vllm.errors import BadInput
from memos_vllm.retrieval.base import Hit
from memos_vllm.server.injection import ActivationState
from memos_vllm.vault import Event

Metadata = dict[str, str | int | float | bool | None]
Written = Literal["ADD", "UPDATE", "DELETE", "NONE"]
MAX_MESSAGES = 1000
"""Of one add, which is one transaction."""
EXAMPLE_ID = "0198c0de7a1b7c3d9e5f6a7b8c9d0e1f"
EXAMPLE_MEMORY: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "memory": "My favourite tea is oolong.",
    "user_id": "maya",
    "metadata": {"topic": "tea"},
    "tags": [],
    "access": [],
    "version": 1,
    "state": "generated",
    "semantic_type": "user_preference",
    "priority": "mid",
    "namespace": "user",
    "source": "session-7",
    "happened": "2025-04-10",
    "expires": "",
    "sensitivity": [],
    "created_at": "2025-04-10T12:00:00.000000Z",
    "updated_at": "2025-04-10T12:00:00.000000Z",
}


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


class ChatMessage(BaseModel):
    """A message as chat clients send it; `content` is text or a list of parts. `name`: who spoke."""

    role: str
    content: str | list[dict[str, Any]]
    name: str | None = None

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))


class GrantBody(BaseModel):
    """What a user or a group (`group:NAME`) may do with a memory. Every right includes reading."""

    model_config = examples({"principal": "tom", "rights": ["read", "write"]})

    principal: str
    rights: list[Right] = ["read"]

    def grant(self) -> Grant:
        return Grant(self.principal, tuple(self.rights))

    @classmethod
    def of(cls, grant: Grant) -> GrantBody:
        return cls(principal=grant.principal, rights=list(grant.rights))


Access = list[str | GrantBody]


def grants(access: Access) -> list[Grant]:
    """A name alone may read."""
    return [Grant(entry) if isinstance(entry, str) else entry.grant() for entry in access]


class AddRequest(BaseModel):
    """Memories to add: a text, or messages of which each user message becomes one memory, word for word."""

    model_config = examples(
        {"text": "My favourite tea is oolong.", "user_id": "maya", "metadata": {"topic": "tea"}},
        {"messages": [{"role": "user", "content": "I live in Lisbon."}], "user_id": "maya", "infer": False},
    )

    messages: str | Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)] | None = Field(
        None, description="Messages (the user's are kept), or a text."
    )
    text: str | None = Field(None, description="One memory.")
    content: str | None = Field(None, description="Another name of `text`.")
    user_id: str | None = Field(None, description="Whose memories; needed unless the key or a header says it.")
    agent_id: str | None = Field(None, description="Kept in the metadata.")
    app_id: str | None = Field(None, description="Kept in the metadata.")
    run_id: str | None = Field(None, description="The session; kept in the metadata, and as the memory's source.")
    metadata: Metadata | None = Field(None, description="Flat values, returned with the memory and usable as filters.")
    infer: bool | None = Field(
        None, description="true: the server's reader finds what to remember in the messages; else they are kept as is."
    )
    access: Access = Field(default_factory=list, description="Others who may read the memories, or more.")
    tags: list[str] = Field(default_factory=list)
    expires: str = Field("", description="ISO-8601 date or time from which on the memories are not used.")
    expiration_date: str | None = Field(None, description="mem0's name of `expires`.")
    happened: str = Field("", description="ISO-8601 date or time of what they tell.")
    timestamp: float | str | None = Field(None, description="mem0's name of `happened`: Unix seconds, or ISO-8601.")
    semantic_type: SemanticType = "fact"
    priority: Priority = "mid"
    namespace: Namespace = "user"
    sensitivity: list[str] = Field(default_factory=list, description="Tags of what is delicate about them.")

    def spoken(self) -> list[ChatMessage]:
        """What was said, as messages; a text counts as the user's."""
        said = self.messages if isinstance(self.messages, list) else []
        lone = [self.messages if isinstance(self.messages, str) else None, self.text, self.content]
        return [*said, *(ChatMessage(role="user", content=text) for text in lone if text is not None)]

    def kept(self) -> list[ChatMessage]:
        """The messages of which each becomes a memory."""
        return [message for message in self.spoken() if message.role == "user" and message.text().strip()]

    def all_metadata(self, speaker: str | None = None) -> Metadata:
        extra = {"agent_id": self.agent_id, "app_id": self.app_id, "run_id": self.run_id, "speaker": speaker}
        return {**(self.metadata or {}), **{name: value for name, value in extra.items() if value is not None}}

    def time(self) -> str:
        """When it happened, "" where nothing says it. Raises BadInput."""
        return self.happened or moment(self.timestamp)

    def expiry(self) -> str:
        return self.expires or self.expiration_date or ""


def moment(value: float | str | None) -> str:
    """Unix seconds, or ISO-8601 text, as ISO-8601 text. Raises BadInput."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return datetime.fromtimestamp(value, UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise BadInput(f"timestamp is no time in Unix seconds: {value!r}.") from error


class UpdateRequest(BaseModel):
    """A new version of a memory; without a text, other metadata or another expiry for the version that is there."""

    model_config = examples({"text": "My favourite tea is sencha.", "expect": 1})

    text: str | None = None
    content: str | None = Field(None, description="Another name of `text`.")
    operation: Literal["overwrite", "append", "merge"] = "overwrite"
    metadata: Metadata | None = Field(None, description="These keys replace those of the same name.")
    happened: str | None = Field(None, description="ISO-8601 date or time of what the new text tells.")
    timestamp: float | str | None = Field(None, description="mem0's name of `happened`: Unix seconds, or ISO-8601.")
    expiration_date: str | None = Field(None, description="mem0's way to set `expires`; null clears it.")
    expect: int | None = Field(None, ge=1, le=2**31, description="The version it must be at; 409 where it is not.")
    user_id: str | None = None

    def new_text(self) -> str | None:
        return self.text if self.text is not None else self.content

    def time(self) -> str | None:
        return self.happened if self.timestamp is None else moment(self.timestamp)

    def expiry(self) -> str | None:
        """The new expiry, "" for none, None where the request does not say."""
        return (self.expiration_date or "") if "expiration_date" in self.model_fields_set else None


class EditRequest(BaseModel):
    """What to change about a memory, without a new version; what is left out stays."""

    model_config = examples({"tags": ["tea"], "priority": "high", "expires": "2030-01-01"})

    tags: list[str] | None = None
    priority: Priority | None = None
    expires: str | None = Field(None, description='ISO-8601; "" clears it.')
    half_life_days: float | None = Field(
        None, ge=0, description="Days in which it fades by half, 0.001 at least; 0 clears it."
    )
    sensitivity: list[str] | None = None
    metadata: Metadata | None = Field(None, description="These keys replace those of the same name.")
    expect: int | None = Field(None, ge=1, le=2**31, description="The version it must be at; 409 where it is not.")
    user_id: str | None = None


class DeleteRequest(BaseModel):
    """Memories to delete together."""

    model_config = examples({"ids": [EXAMPLE_ID]})

    ids: list[str] = Field(min_length=1, max_length=1000)
    user_id: str | None = None


class SearchRequest(BaseModel):
    """What to look for among the memories that the caller may read."""

    model_config = examples({"query": "tea", "user_id": "maya", "top_k": 3})

    query: str = Field(max_length=65536)
    user_id: str | None = None
    agent_id: str | None = Field(None, description="A filter: the metadata value.")
    run_id: str | None = Field(None, description="A filter: the metadata value.")
    top_k: int | None = Field(None, ge=1, le=1000, description="Most memories to return; 10 unless said.")
    limit: int | None = Field(None, ge=1, le=1000, description="Another name of `top_k`.")
    filters: dict[str, Any] | None = Field(
        None, description="Header or metadata values that a memory must have; a list allows any of its values."
    )
    threshold: float | None = Field(None, description="Least score.")
    since: str = Field("", description="ISO-8601: what happened then or later.")
    until: str = Field("", description="ISO-8601: what happened before.")
    types: list[SemanticType] | None = None
    tags: list[str] | None = Field(None, description="Any of these tags.")
    neighbours: bool = Field(True, description="Whether the turns around a hit raise it and are found with it.")
    archived: bool = Field(False, description="Look among the user's own archived memories instead.")
    using: list[str] | None = Field(None, description="The parts of the ranking to use; else all that there are.")

    def count(self) -> int:
        return self.top_k or self.limit or 10


class Memory(BaseModel):
    """One memory. `score` is there in search results, `event` in answers to writes, `activation` for its owner."""

    model_config = examples(EXAMPLE_MEMORY)

    id: str
    memory: str
    user_id: str
    metadata: Metadata
    tags: list[str]
    access: list[str]
    version: int
    state: State
    semantic_type: SemanticType
    priority: Priority
    namespace: Namespace
    source: str
    happened: str
    expires: str
    sensitivity: list[str]
    created_at: str
    updated_at: str
    accesses: int | None = Field(None, description="Prompts that it entered, for its owner.")
    last_access: str | None = Field(None, description="When it entered one last, for its owner.")
    score: float | None = None
    parts: dict[str, float] | None = None
    event: Written | None = None
    activation: ActivationState | None = None

    @classmethod
    def of(
        cls,
        cube: MemCube,
        viewer: str,
        *,
        event: Written | None = None,
        activation: ActivationState | None = None,
    ) -> Memory:
        """The memory as `viewer` sees it: who else may read it is the owner's to know."""
        header = cube.header
        return cls(
            id=cube.id,
            memory=cube.text,
            user_id=cube.owner,
            metadata=header.metadata,
            tags=list(header.tags),
            access=list(cube.readers()[1:]) if viewer == cube.owner else [],
            version=cube.version,
            state=header.state,
            semantic_type=header.semantic_type,
            priority=header.priority,
            namespace=header.namespace,
            source=header.source,
            happened=header.happened,
            expires=header.expires,
            sensitivity=list(header.sensitivity),
            created_at=header.created,
            updated_at=header.updated,
            accesses=header.accesses or None if viewer == cube.owner else None,
            last_access=header.last_access or None if viewer == cube.owner else None,
            event=event,
            activation=activation,
        )

    @classmethod
    def found(cls, hit: Hit, viewer: str) -> Memory:
        return cls.of(hit.cube, viewer).model_copy(update={"score": hit.score, "parts": dict(hit.parts)})


class Memories(BaseModel):
    """Several memories."""

    model_config = examples({"results": [EXAMPLE_MEMORY]})

    results: list[Memory]


_EVENTS: dict[str, Written] = {"add": "ADD", "update": "UPDATE", "delete": "DELETE"}


class Change(BaseModel):
    """One entry of a memory's history, oldest first. `operation`: how the version came about."""

    memory_id: str
    version: int
    event: Written
    operation: Operation | None = None
    actor: str
    created_at: str
    old_memory: str | None
    new_memory: str | None

    @classmethod
    def of(cls, event: Event) -> Change:
        return cls(
            memory_id=event.cube_id,
            version=event.version,
            event=_EVENTS[event.operation],
            operation=event.how,
            actor=event.actor,
            created_at=event.at,
            old_memory=event.old_text,
            new_memory=event.new_text,
        )


class History(BaseModel):
    """What happened to a memory."""

    results: list[Change]


class Deleted(BaseModel):
    """How much was deleted."""

    model_config = examples({"message": "Memory deleted.", "deleted": 1, "in_snapshots": 0})

    message: str
    deleted: int
    in_snapshots: Annotated[int, Field(description="Copies of named memories that snapshots still hold.")] = 0


class Health(BaseModel):
    """Whether memory works."""

    status: Literal["ok"]
    splice: bool
    vault: dict[str, Any] | None = None


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None = None
    code: Annotated[int, Field(description="The HTTP status.")]


class ErrorBody(BaseModel):
    """Every error answer, in OpenAI's shape."""

    error: ErrorDetail
