"""Bodies of the adapter routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from memos_vllm.parameter.registry import AdapterEntry, AdapterVersion
from memos_vllm.server.schemas import EXAMPLE_ID, GrantBody, Metadata, examples

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
