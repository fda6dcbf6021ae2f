"""Bodies of the memory routes, in mem0's shape. Fields that other clients send and nothing here needs are ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memos_vllm.cube import MemCube
from memos_vllm.retrieval.base import Hit
from memos_vllm.server.injection import ActivationState
from memos_vllm.vault import Event

Metadata = dict[str, str | int | float | bool | None]


class ChatMessage(BaseModel):
    """A message as chat clients send it; `content` is text or a list of parts."""

    role: str
    content: str | list[dict[str, Any]]

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if isinstance(part.get("text"), str))


class AddRequest(BaseModel):
    """Memories to add: a text, or messages of which each user message becomes one memory, word for word."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "My favourite tea is oolong.", "user_id": "maya", "metadata": {"topic": "tea"}},
                {"messages": [{"role": "user", "content": "I live in Lisbon."}], "user_id": "maya", "infer": False},
            ]
        }
    )

    messages: str | list[ChatMessage] | None = Field(None, description="Messages (the user's are kept), or a text.")
    text: str | None = Field(None, description="One memory.")
    content: str | None = Field(None, description="Another name of `text`.")
    user_id: str | None = Field(None, description="Whose memories; needed unless the key or a header says it.")
    agent_id: str | None = Field(None, description="Kept in the metadata.")
    run_id: str | None = Field(None, description="Kept in the metadata, and as the memory's source.")
    metadata: Metadata | None = Field(None, description="Flat values, returned with the memory and usable as filters.")
    infer: bool | None = Field(None, description="For mem0's clients; messages are kept word for word either way.")
    access: list[str] = Field(default_factory=list, description="Other users who may read the memories.")
    tags: list[str] = Field(default_factory=list)
    expires: str = Field("", description="ISO-8601 date or time from which on the memories are not used.")

    def texts(self) -> list[str]:
        """What to remember, one text per memory."""
        if isinstance(self.messages, list):
            spoken = [message.text() for message in self.messages if message.role == "user"]
        else:
            spoken = [self.messages or ""]
        return [text for text in (*spoken, self.text or "", self.content or "") if text.strip()]

    def all_metadata(self) -> Metadata:
        extra = {"agent_id": self.agent_id, "run_id": self.run_id}
        return {**(self.metadata or {}), **{name: value for name, value in extra.items() if value is not None}}


class UpdateRequest(BaseModel):
    """A new version of a memory."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "My favourite tea is sencha."}]})

    text: str | None = None
    content: str | None = Field(None, description="Another name of `text`.")
    operation: Literal["overwrite", "append", "merge"] = "overwrite"
    metadata: Metadata | None = None
    user_id: str | None = None


class SearchRequest(BaseModel):
    """What to look for among the memories that the caller may read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "tea", "user_id": "maya", "top_k": 3}]})

    query: str = Field(max_length=65536)
    user_id: str | None = None
    top_k: int | None = Field(None, ge=1, le=1000, description="Most memories to return; 10 unless said.")
    limit: int | None = Field(None, ge=1, le=1000, description="Another name of `top_k`.")
    filters: dict[str, Any] | None = Field(None, description="Metadata values that a memory must have.")

    def count(self) -> int:
        return self.top_k or self.limit or 10

    def metadata_filters(self) -> dict[str, Any]:
        """The filters without `user_id`, which says who is asking."""
        return {name: value for name, value in (self.filters or {}).items() if name != "user_id"}


class Memory(BaseModel):
    """One memory. `score` is there in search results, `event` in answers to writes, `activation` for its owner."""

    id: str
    memory: str
    user_id: str
    metadata: Metadata
    tags: list[str]
    access: list[str]
    version: int
    created_at: str
    updated_at: str
    score: float | None = None
    event: Literal["ADD", "UPDATE"] | None = None
    activation: ActivationState | None = None

    @classmethod
    def of(
        cls,
        cube: MemCube,
        viewer: str,
        *,
        event: Literal["ADD", "UPDATE"] | None = None,
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
            created_at=header.created,
            updated_at=header.updated,
            event=event,
            activation=activation,
        )

    @classmethod
    def found(cls, hit: Hit, viewer: str) -> Memory:
        return cls.of(hit.cube, viewer).model_copy(update={"score": hit.score})


class Memories(BaseModel):
    """Several memories."""

    results: list[Memory]


_EVENTS: dict[str, Literal["ADD", "UPDATE", "DELETE"]] = {"add": "ADD", "update": "UPDATE", "delete": "DELETE"}


class Change(BaseModel):
    """One entry of a memory's history, oldest first."""

    memory_id: str
    version: int
    event: Literal["ADD", "UPDATE", "DELETE"]
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

    message: str
    deleted: int


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
    code: int


class ErrorBody(BaseModel):
    """Every error answer, in OpenAI's shape."""

    error: ErrorDetail
