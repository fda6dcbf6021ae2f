"""What the registry tells of adapters and their versions."""

import msgspec

from memos_vllm.cube import Grant, Licence, Parameter, Scalar, State
from memos_vllm.parameter import names
from memos_vllm.vault import HeldAdapter, HeldVersion


class AdapterVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an adapter. int_id: for vLLM; no other version of any adapter has ever had it.

    base: fingerprint of the model it was made for; bytes: of its files; parents: versions of cubes it was made from
    """

    cube_id: str
    owner: str
    name: str
    version: int
    digest: str
    int_id: int
    base: str
    base_model: str
    rank: int
    scale: float
    dtype: str
    bytes: int
    target_modules: tuple[str, ...]
    created: str
    author: str
    parents: tuple[str, ...]
    tags: tuple[str, ...]
    metadata: dict[str, Scalar]

    @property
    def served(self) -> str:
        """What its owner calls it: `alice@v7`."""
        return names.written("", self.name, self.version)

    @property
    def engine_name(self) -> str:
        """What it is called inside vLLM, which takes requests with the same adapter name for the same adapter."""
        return f"{self.cube_id}@v{self.version}"

    def name_for(self, user: str) -> str:
        """What a user calls it: `alice@v7`, or `maya/alice@v7` where it is not theirs."""
        return names.written("" if user == self.owner else self.owner, self.name, self.version)


class AdapterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter with its versions, oldest first, those left out whose files were removed.

    active: the version that a request gets which names none; default: serves its owner's requests that name no adapter
    """

    cube_id: str
    owner: str
    name: str
    active: int | None
    default: bool
    versions: tuple[AdapterVersion, ...]
    state: State
    access: tuple[Grant, ...]
    licence: Licence | None
    expires: str
    created: str
    updated: str


def version_of(held: HeldAdapter, version: HeldVersion) -> AdapterVersion:
    header, payload = version.cube.header, version.cube.payload
    assert isinstance(payload, Parameter)
    return AdapterVersion(
        cube_id=held.record.cube_id,
        owner=held.record.owner,
        name=held.record.name,
        version=version.cube.version,
        digest=payload.digest,
        int_id=version.number,
        base=payload.base,
        base_model=payload.base_model,
        rank=payload.rank,
        scale=payload.scale,
        dtype=payload.dtype,
        bytes=payload.bytes,
        target_modules=payload.target_modules,
        created=header.updated,
        author=header.author,
        parents=header.parents,
        tags=header.tags,
        metadata=header.metadata,
    )


def entry_of(held: HeldAdapter, *, owned: bool) -> AdapterEntry:
    """owned: for its owner; others are not told who else may use it, nor what it was made from."""
    header = held.newest.header
    versions = [version_of(held, version) for version in held.versions]
    if not owned:
        versions = [msgspec.structs.replace(version, parents=()) for version in versions]
    return AdapterEntry(
        cube_id=held.record.cube_id,
        owner=held.record.owner,
        name=held.record.name,
        active=held.record.active or None,
        default=held.default,
        versions=tuple(versions),
        state=header.state,
        access=header.access if owned else (),
        licence=header.licence,
        expires=header.expires,
        created=header.created,
        updated=header.updated,
    )
