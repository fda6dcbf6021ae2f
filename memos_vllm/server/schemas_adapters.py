"""Bodies of the adapter routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from memos_vllm.errors import BadInput
from memos_vllm.parameter.job import JobStatus
from memos_vllm.parameter.recipe import MAX_SEED, Recipe
from memos_vllm.parameter.registry import AdapterEntry, AdapterVersion
from memos_vllm.server.schemas import EXAMPLE_ID, GrantBody, Metadata, examples

DEFAULTS = Recipe()
EXAMPLE_VERSION: dict[str, Any] = {
    "version": 7,
    "model": "style@v7",
    "rank": 8,
    "scale": 2.0,
    "dtype": "float32",
    "bytes": 98304,
    "target_modules": ["q_proj", "v_proj"],
    "base": "5f2b7a0c9d1e4a3b8c6d7e8f90a1b2c3",
    "digest": "0c9d1e4a3b8c6d7e8f90a1b2c35f2b7a",
    "created": "2025-04-10T12:00:00.000000Z",
    "author": "maya",
    "parents": [],
    "tags": [],
    "metadata": {},
}
EXAMPLE_ADAPTER: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "name": "style",
    "owner": "maya",
    "model": "style",
    "active": 7,
    "default": True,
    "state": "generated",
    "versions": [EXAMPLE_VERSION],
    "access": [],
    "created": "2025-04-10T12:00:00.000000Z",
    "updated": "2025-04-10T12:00:00.000000Z",
}


class AdapterVersionBody(BaseModel):
    """One version of an adapter, with its weights. `model`: the name that a request gives to be answered by it.

    `base` is the fingerprint of the model it was made for, `digest` that of its files. Who made it, and of what, is for
    its owner to know.
    """

    model_config = examples(EXAMPLE_VERSION)

    version: int
    model: str
    rank: int
    scale: float
    dtype: str
    bytes: int
    target_modules: list[str]
    base: str
    digest: str
    created: str
    author: str | None = None
    parents: list[str] | None = None
    tags: list[str] | None = None
    metadata: Metadata | None = None

    @classmethod
    def of(cls, version: AdapterVersion, user: str) -> AdapterVersionBody:
        body = cls(
            version=version.version,
            model=version.name_for(user),
            rank=version.rank,
            scale=version.scale,
            dtype=version.dtype,
            bytes=version.bytes,
            target_modules=[*version.target_modules],
            base=version.base,
            digest=version.digest,
            created=version.created,
        )
        if version.owner == user:
            body.author, body.parents, body.tags = version.author, [*version.parents], [*version.tags]
            body.metadata = dict(version.metadata)
        return body


class AdapterBody(BaseModel):
    """An adapter. `model`: the name that a request gives to be answered by the active version; `active`: which that is,
    nothing where none is; `default`: whether it answers in the base model's place (`--memory-adapters auto`).
    """

    model_config = examples(EXAMPLE_ADAPTER)

    id: str
    name: str
    owner: str
    model: str
    active: int | None = None
    default: bool
    state: str
    versions: list[AdapterVersionBody]
    access: list[GrantBody] | None = None
    created: str
    updated: str

    @classmethod
    def of(cls, entry: AdapterEntry, user: str) -> AdapterBody:
        own = entry.owner == user
        return cls(
            id=entry.cube_id,
            name=entry.name,
            owner=entry.owner,
            model=entry.name if own else f"{entry.owner}/{entry.name}",
            active=entry.active,
            default=entry.default,
            state=entry.state,
            versions=[AdapterVersionBody.of(version, user) for version in entry.versions],
            access=[GrantBody.of(grant) for grant in entry.access] if own else None,
            created=entry.created,
            updated=entry.updated,
        )


class Adapters(BaseModel):
    """The caller's own adapters, then those that others share with them."""

    results: list[AdapterBody]


class ActivateRequest(BaseModel):
    """Which version answers from now on: the newest where none is named.

    `default`: whether the adapter answers in the base model's place; the first one that is activated does.
    """

    model_config = examples({"user_id": "maya", "version": 7, "default": True})

    user_id: str | None = None
    version: int | None = Field(None, ge=1)
    default: bool | None = None


class OwnerRequest(BaseModel):
    """Whose adapter is meant; needed unless the key or a header says it."""

    model_config = examples({"user_id": "maya"})

    user_id: str | None = None


class AdapterRemoved(BaseModel):
    """What was removed: one version, or the adapter with all of them."""

    name: str
    version: int | None = None


class RecipeBody(BaseModel):
    """How an adapter is trained; what is missing has its default.

    rank: of its matrices, up to the server's limit, which is the default where it is below 16
    epochs: passes over the facts; seed: of everything that is drawn
    learning_rate: 0 for one that fits the model; replay_weight: how much other answers are held to the base model's
    min_accuracy: right answers below which nothing is stored; default: 0.9, of what stays after forgetting 0.88
    """

    model_config = examples({"rank": DEFAULTS.rank, "epochs": DEFAULTS.epochs, "seed": DEFAULTS.seed})

    rank: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=DEFAULTS.epochs, ge=1, le=200)
    learning_rate: float = Field(default=DEFAULTS.learning_rate, ge=0, le=1)
    replay_weight: float = Field(default=DEFAULTS.replay_weight, ge=0, le=100)
    seed: int = Field(default=DEFAULTS.seed, ge=0, le=MAX_SEED)
    min_accuracy: float | None = Field(default=None, ge=0, le=1)

    def fields(self, max_rank: int) -> dict[str, Any]:
        """The recipe of a training on a processor, beside an engine that has the GPU. Raises BadInput."""
        rank = min(DEFAULTS.rank, max_rank) if self.rank is None else self.rank
        if rank > max_rank:
            raise BadInput(f"recipe.rank is {rank}; this server runs adapters up to rank {max_rank}.")
        return {**self.model_dump(exclude_none=True), "rank": rank, "device": "cpu"}


class TrainRequest(BaseModel):
    """What to learn, and the adapter that knows it then: its next version, where there is one of that name.

    The memories: all texts of the user, or those with one of the `tags`, or those of `memory_ids`.
    """

    model_config = examples({"user_id": "maya", "name": "style", "tags": ["work"], "activate": False})

    user_id: str | None = None
    name: str
    tags: list[str] = Field(default_factory=list, max_length=64)
    memory_ids: list[str] = Field(default_factory=list, max_length=10_000)
    recipe: RecipeBody = RecipeBody()
    activate: bool = False


class RetrainRequest(BaseModel):
    """An adapter, `NAME` or `NAME@vN`, and the ids of the memories that its next version is not to know."""

    model_config = examples({"user_id": "maya", "adapter": "style", "without": [EXAMPLE_ID]})

    user_id: str | None = None
    adapter: str
    without: list[str] = Field(min_length=1, max_length=10_000)
    recipe: RecipeBody = RecipeBody()
    activate: bool = False


class TrainingBody(BaseModel):
    """A training. phase: what it does now, `done` of `total` of it; problems: why its adapter was refused.

    memories: that it learns; seconds: that it worked so far; proposed: whether the server began it by itself.
    """

    model_config = examples(
        {
            "id": EXAMPLE_ID,
            "name": "style",
            "owner": "maya",
            "state": "running",
            "phase": "train",
            "done": 120,
            "total": 640,
            "memories": 12,
            "seconds": 60.0,
            "proposed": False,
            "figures": {},
            "problems": [],
            "created": "2025-04-10T12:00:00.000000Z",
            "updated": "2025-04-10T12:01:00.000000Z",
        }
    )

    id: str
    name: str
    owner: str
    state: str
    phase: str
    done: int
    total: int
    memories: int
    seconds: float
    proposed: bool
    adapter: str | None = Field(None, description="The version that was stored, as NAME@vN.")
    figures: dict[str, float]
    problems: list[str]
    error: str | None = None
    created: str
    updated: str

    @classmethod
    def of(cls, status: JobStatus) -> TrainingBody:
        return cls(
            id=status.id,
            name=status.name,
            owner=status.owner,
            state=status.state,
            phase=status.phase,
            done=status.done,
            total=status.total,
            memories=status.memories,
            seconds=status.seconds,
            proposed=status.proposed,
            adapter=status.adapter or None,
            figures=status.figures,
            problems=[*status.problems],
            error=status.error or None,
            created=status.created,
            updated=status.updated,
        )


class Trainings(BaseModel):
    """Trainings, oldest first."""

    results: list[TrainingBody]
