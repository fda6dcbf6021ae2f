"""Bodies of versions, states, provenance, snapshots and pipelines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from memos_vllm.cube import (
    Header,
    MemCube,
    Namespace,
    Operation,
    Plaintext,
    Priority,
    Right,
    SemanticType,
    State,
    completed,
)
from memos_vllm.server.schemas import (
    EXAMPLE_ID,
    EXAMPLE_MEMORY,
    Access,
    GrantBody,
    Memory,
    Metadata,
    examples,
    grants,
)
from memos_vllm.vault import Ancestor, Restored, Snapshot
from memos_vllm.vault.pipeline import (
    AddStep,
    DeleteStep,
    GrantStep,
    MergeStep,
    PurifyStep,
    Step,
    TransferStep,
    TransitionStep,
    UpdateStep,
)


class VersionBody(BaseModel):
    """One version of a memory. `parents`: `id@version` of what it was made from."""

    model_config = examples(
        {
            "version": 2,
            "memory": "My favourite tea is sencha.",
            "operation": "overwrite",
            "author": "maya",
            "created_at": "2025-04-11T09:30:00.000000Z",
            "parents": [f"{EXAMPLE_ID}@1"],
            "metadata": {"topic": "tea"},
        }
    )

    version: int
    memory: str
    operation: Operation
    author: str
    created_at: str
    parents: list[str]
    metadata: Metadata

    @classmethod
    def of(cls, cube: MemCube) -> VersionBody:
        header = cube.header
        return cls(
            version=cube.version,
            memory=cube.text,
            operation=header.operation,
            author=header.author,
            created_at=header.updated,
            parents=list(header.parents),
            metadata=header.metadata,
        )


class Versions(BaseModel):
    """The versions of a memory, oldest first."""

    results: list[VersionBody]


class RollbackRequest(BaseModel):
    """Which version to bring back."""

    model_config = examples({"version": 1})

    version: int = Field(ge=1, le=2**31)
    user_id: str | None = None


class StateRequest(BaseModel):
    """The state that a memory is to enter."""

    model_config = examples({"state": "frozen"})

    state: State
    user_id: str | None = None


class AncestorBody(BaseModel):
    """A memory version that another one comes from; the memory itself has depth 0."""

    model_config = examples(
        {
            "id": EXAMPLE_ID,
            "version": 1,
            "operation": "add",
            "author": "maya",
            "at": "2025-04-10T12:00:00.000000Z",
            "depth": 1,
        }
    )

    id: str
    version: int
    operation: str
    author: str
    at: str
    depth: int

    @classmethod
    def of(cls, ancestor: Ancestor) -> AncestorBody:
        return cls(
            id=ancestor.id,
            version=ancestor.version,
            operation=ancestor.operation or "",
            author=ancestor.author,
            at=ancestor.at,
            depth=ancestor.depth,
        )


class Provenance(BaseModel):
    """What a memory comes from, the nearest first."""

    results: list[AncestorBody]


class SnapshotRequest(BaseModel):
    """A name for the present state of all of a user's memories, or of those in one namespace."""

    model_config = examples({"name": "before the move"})

    name: str = Field(min_length=1, max_length=128)
    namespace: Namespace | None = None
    user_id: str | None = None


class SnapshotBody(BaseModel):
    """A named state of a user's memories. `bytes`: of the stored copies."""

    model_config = examples(
        {
            "name": "before the move",
            "namespace": None,
            "created_at": "2025-04-10T12:00:00.000000Z",
            "memories": 3,
            "bytes": 1024,
        }
    )

    name: str
    namespace: Namespace | None
    created_at: str
    memories: int
    bytes: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotBody:
        return cls(
            name=snapshot.name,
            namespace=snapshot.namespace,
            created_at=snapshot.created,
            memories=snapshot.cubes,
            bytes=snapshot.bytes,
        )


class Snapshots(BaseModel):
    """A user's snapshots."""

    results: list[SnapshotBody]


class RestoredBody(BaseModel):
    """What a restored snapshot did: memories with the content of then, those back from deletion under their ids, those
    put into the archive because they are newer, and how many were the same.
    """

    model_config = examples({"results": [EXAMPLE_MEMORY], "revived": [], "archived": [], "unchanged": 2})

    results: list[Memory]
    revived: list[Memory]
    archived: list[Memory]
    unchanged: int

    @classmethod
    def of(cls, restored: Restored, viewer: str) -> RestoredBody:
        def bodies(cubes: list[MemCube]) -> list[Memory]:
            return [Memory.of(cube, viewer) for cube in cubes]

        return cls(
            results=bodies(restored.changed),
            revived=bodies(restored.revived),
            archived=bodies(restored.archived),
            unchanged=restored.unchanged,
        )


class Dropped(BaseModel):
    """A snapshot that is gone."""

    model_config = examples({"message": "Snapshot 'before the move' deleted."})

    message: str


Id = Annotated[str, Field(description="Id of a memory, or `#n` for the memory that step n (from 0) left.")]


class AddStepBody(BaseModel):
    """Add a memory of the caller's."""

    type: Literal["add"]
    text: str
    metadata: Metadata = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    access: Access = Field(default_factory=list)
    expires: str = ""
    happened: str = ""
    source: str = ""
    semantic_type: SemanticType = "fact"
    priority: Priority = "mid"
    namespace: Namespace = "user"
    sensitivity: list[str] = Field(default_factory=list, description="Tags of what is delicate about it.")

    def step(self, user: str) -> Step:
        header = Header(
            owner=user,
            source=self.source,
            metadata=self.metadata,
            access=tuple(grants(self.access)),
            tags=tuple(self.tags),
            expires=self.expires,
            happened=self.happened,
            semantic_type=self.semantic_type,
            priority=self.priority,
            namespace=self.namespace,
            sensitivity=tuple(self.sensitivity),
        )
        return AddStep(completed(MemCube(header, Plaintext(self.text))))


class UpdateStepBody(BaseModel):
    """Give a memory a new version."""

    type: Literal["update"]
    id: Id
    text: str
    operation: Literal["overwrite", "append", "merge"] = "overwrite"
    metadata: Metadata | None = None
    expect: int | None = Field(None, ge=1, le=2**31)

    def step(self, user: str) -> Step:
        return UpdateStep(self.id, self.text, self.operation, self.metadata or {}, self.expect)


class MergeStepBody(BaseModel):
    """Make one new memory of several; they are merged then, and out of search."""

    type: Literal["merge"]
    ids: list[Id] = Field(min_length=2, max_length=100)
    text: str | None = Field(None, description="The text of the new memory; their lines, each once, unless said.")

    def step(self, user: str) -> Step:
        return MergeStep(tuple(self.ids), self.text)


class TransferStepBody(BaseModel):
    """Give a memory to a group of the caller's; an admin may give it to anybody."""

    type: Literal["transfer"]
    id: Id
    owner: str
    namespace: Namespace | None = None

    def step(self, user: str) -> Step:
        return TransferStep(self.id, self.owner, self.namespace)


class PurifyStepBody(BaseModel):
    """Replace a memory's text by a cleaned one; older versions go, and copies in snapshots are cleaned."""

    type: Literal["purify"]
    id: Id
    text: str

    def step(self, user: str) -> Step:
        return PurifyStep(self.id, self.text)


class DeleteStepBody(BaseModel):
    """Delete a memory with every version. `snapshots`: with its copies in snapshots, which could bring it back."""

    type: Literal["delete"]
    id: Id
    snapshots: bool = False

    def step(self, user: str) -> Step:
        return DeleteStep(self.id, self.snapshots)


class GrantStepBody(BaseModel):
    """Set what a user or group may do with a memory; no rights at all take them away."""

    type: Literal["grant"]
    id: Id
    principal: str
    rights: list[Right]

    def step(self, user: str) -> Step:
        return GrantStep(self.id, self.principal, tuple(self.rights))


class TransitionStepBody(BaseModel):
    """Move a memory to another state."""

    type: Literal["transition"]
    id: Id
    state: State

    def step(self, user: str) -> Step:
        return TransitionStep(self.id, self.state)


StepBody = Annotated[
    AddStepBody
    | UpdateStepBody
    | MergeStepBody
    | TransferStepBody
    | PurifyStepBody
    | DeleteStepBody
    | GrantStepBody
    | TransitionStepBody,
    Field(discriminator="type"),
]


class PipelineRequest(BaseModel):
    """Operations that are applied in their order, all of them or none."""

    model_config = examples(
        {
            "steps": [
                {"type": "add", "text": "My favourite tea is sencha."},
                {"type": "merge", "ids": [EXAMPLE_ID, "#0"]},
                {"type": "grant", "id": "#1", "principal": "group:kitchen", "rights": ["read"]},
            ]
        }
    )

    steps: list[StepBody] = Field(min_length=1, max_length=1000)
    user_id: str | None = None


class AccessBody(BaseModel):
    """Who else may do what with a memory."""

    model_config = examples({"results": [{"principal": "tom", "rights": ["read"]}]})

    results: list[GrantBody]

    @classmethod
    def of(cls, cube: MemCube) -> AccessBody:
        return cls(results=[GrantBody.of(grant) for grant in cube.header.access])


class AccessRequest(BaseModel):
    """Everyone who is to have access; those who are not named lose it."""

    model_config = examples({"access": ["tom", {"principal": "group:kitchen", "rights": ["read", "write"]}]})

    access: Access = Field(max_length=1000)
    user_id: str | None = None


class ShareRequest(GrantBody):
    """Whom to give which rights."""

    user_id: str | None = None
