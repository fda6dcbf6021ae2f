"""What the two halves of the connector tell each other, once per engine step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass
class Fetch:
    """Read the KV cube `key` of `length` tokens from its file into RAM, in the background."""

    key: str
    tokens: str
    """Hash of the cube's token ids and its adapter: what the file must say of itself."""
    length: int


@dataclass
class Load:
    """Splice tokens `[start, end)` of a request from the KV cube `key`, which as a whole lies at `cube_start`."""

    key: str
    tokens: str
    cube_start: int
    start: int
    end: int


@dataclass
class Capture:
    """Keep tokens `[start, start + length)` of a request as the KV cube `key`, in RAM and in a file as is said."""

    key: str
    tokens: str
    start: int
    length: int
    in_ram: bool
    on_disk: bool


@dataclass
class Compare:
    """Set tokens `[start, start + length)` of a request against the KV cube `key`, token by token."""

    key: str
    tokens: str
    start: int
    length: int


@dataclass
class RequestWork:
    """One request's part of a step; `block_ids` are all of its blocks, in order."""

    request_id: str
    block_ids: list[int]
    loads: list[Load] = field(default_factory=list)
    captures: list[Capture] = field(default_factory=list)
    compares: list[Compare] = field(default_factory=list)


@dataclass
class StepWork(KVConnectorMetadata):
    """Scheduler half → worker half. Drops come first, then fetches, loads before the forward, the rest after it."""

    drops: list[str] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    loads: list[RequestWork] = field(default_factory=list)
    builds: list[RequestWork] = field(default_factory=list)


@dataclass
class Tally:
    """How many ranks are done with a file, and what went wrong with it on any of them."""

    ranks: int = 0
    error: str = ""

    def add(self, other: Tally) -> Tally:
        return Tally(self.ranks + other.ranks, self.error or other.error)


@dataclass
class StepNews(KVConnectorWorkerMetadata):
    """Worker half → scheduler half: files that were read and written, by key; requests with a failed load;
    keys of cubes whose capture failed.
    """

    fetched: dict[str, Tally] = field(default_factory=dict)
    written: dict[str, Tally] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepNews:
        assert isinstance(other, StepNews)
        return StepNews(
            add_tallies(self.fetched, other.fetched),
            add_tallies(self.written, other.written),
            self.failed | other.failed,
            self.lost | other.lost,
        )


def add_tallies(one: dict[str, Tally], other: dict[str, Tally]) -> dict[str, Tally]:
    return one | {key: one.get(key, Tally()).add(tally) for key, tally in other.items()}
