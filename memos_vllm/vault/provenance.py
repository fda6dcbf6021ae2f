"""What a cube derives from: its earlier versions, and the cubes that were merged, transferred or restored into it."""

from collections import deque
from collections.abc import Iterator

import msgspec

from memos_vllm.cube import Operation, is_id
from memos_vllm.vault import keys, tables
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Event

LIMIT = 1000


class Ancestor(msgspec.Struct, frozen=True):
    """A version that a cube derives from, `depth` steps back.

    operation, author, at: how, by whom and when it was made; None and "" where that is not known
    owner: "" where the version is gone, with its text
    """

    id: str
    version: int
    operation: Operation | None
    author: str
    at: str
    depth: int
    owner: str


def ancestors(txn: Txn, cube_id: str) -> Iterator[Ancestor]:
    """The newest version of a cube, then what it derives from, nearest first and each once. Raises NotFound."""
    start = cube_id, tables.newest(txn, cube_id).version
    seen, waiting = {start}, deque([(start, 0)])
    while waiting:
        place, depth = waiting.popleft()
        ancestor, parents = _look_up(txn, place, depth)
        yield ancestor
        new = [parent for parent in dict.fromkeys(map(_split, parents)) if parent not in seen]
        seen.update(new)
        waiting.extend((parent, depth + 1) for parent in new)


def _look_up(txn: Txn, place: tuple[str, int], depth: int) -> tuple[Ancestor, tuple[str, ...]]:
    """A version and its parents; of a version that is gone, what its event tells."""
    cube_id, version = place
    cube = tables.held(txn, cube_id, version)
    if cube is None:
        event = tables.load(txn, "events", keys.numbered(cube_id, version), Event) if is_id(cube_id) else None
        if event is None:
            return Ancestor(cube_id, version, None, "", "", depth, ""), ()
        return Ancestor(cube_id, version, event.how, event.actor, event.at, depth, ""), event.parents
    made = cube.header
    return Ancestor(cube_id, version, made.operation, made.author, made.updated, depth, cube.owner), made.parents


def _split(parent: str) -> tuple[str, int]:
    """Id and version of a parent; a name that is no reference to a version has version 0."""
    cube_id, _, version = parent.rpartition("@")
    if is_id(cube_id) and version.isascii() and version.isdigit() and len(version) < 10:
        return cube_id, int(version)
    return parent, 0
