"""What the two halves of the connector tell each other, once per engine step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass
class Load:
    """Splice tokens `[start, end)` of a request from the KV cube `key`, which as a whole lies at
    `[cube_start, cube_start + cube_length)`.
    """

    key: str
    tokens: str
    """sha256 of the cube's token ids: what the file must say of itself."""
    cube_start: int
    cube_length: int
    start: int
    end: int


@dataclass
class Capture:
    """Keep tokens `[start, start + length)` of a request as the KV cube `key`."""

    key: str
    tokens: str
    start: int
    length: int


@dataclass
class RequestWork:
    """One request's loads or captures; `block_ids` are all of its blocks, in order."""

    request_id: str
    block_ids: list[int]
    loads: list[Load] = field(default_factory=list)
    captures: list[Capture] = field(default_factory=list)


@dataclass
class StepWork(KVConnectorMetadata):
    """Scheduler half → worker half."""

    loads: list[RequestWork] = field(default_factory=list)
    captures: list[RequestWork] = field(default_factory=list)


@dataclass
class LoadResult:
    """Where a request's cubes came from; `failed` counts the ones that could not be used."""

    ram: int = 0
    disk: int = 0
    failed: int = 0

    def worst(self, other: LoadResult) -> LoadResult:
        """Of two ranks' results, the slower tier and the more failures."""
        return LoadResult(min(self.ram, other.ram), max(self.disk, other.disk), max(self.failed, other.failed))


@dataclass
class StepNews(KVConnectorWorkerMetadata):
    """Worker half → scheduler half: load results by request id."""

    results: dict[str, LoadResult]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepNews:
        assert isinstance(other, StepNews)
        merged = dict(self.results)
        for request_id, result in other.results.items():
            merged[request_id] = merged[request_id].worst(result) if request_id in merged else result
        return StepNews(merged)
