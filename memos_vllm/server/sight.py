"""What there is for a caller whose key is not cleared for everything: the rest is neither shown nor counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from memos_vllm.cube import MemCube, Plaintext
from memos_vllm.errors import Forbidden, NotFound
from memos_vllm.governance.identity import Caller
from memos_vllm.vault import Event, LogEntry, LogQuery, Snapshot, Usage, Vault
from memos_vllm.vault.base import Covers


class Sight(ABC):
    """The part of a service that looks for callers. All methods raise MemosError."""

    vault: Vault

    @abstractmethod
    def caller(self, user: str) -> Caller:
        """Who is asking."""

    def covers(self, user: str) -> Covers | None:
        """Which cubes the user's key is cleared for; None for all."""
        context = self.caller(user).context("api")
        return None if context.clearance is None else context.covers

    def require_clearance(self, user: str) -> None:
        """Raises Forbidden for a key that is not cleared for everything."""
        if self.covers(user) is not None:
            raise Forbidden("This API key is not cleared for all memories of the user: use one that is.")

    def usage(self, user: str) -> Usage:
        """What the user's cubes take up."""
        return self.vault.usage(user, covers=self.covers(user))

    def snapshots(self, user: str, owner: str) -> list[Snapshot]:
        """The snapshots of an owner, the user or their group."""
        return self.vault.snapshots(owner, covers=self.covers(user))

    def log(self, user: str, wanted: LogQuery) -> list[LogEntry]:
        """Entries of the audit log."""
        return self.vault.log(wanted, covers=self.covers(user))

    def listed(
        self, user: str, owner: str, *, limit: int | None = None, after: str = "", as_of: str = ""
    ) -> list[MemCube]:
        """The memories of an owner, the user or their group, that the user's key is cleared for, oldest first.

        Adapters are listed elsewhere. as_of: a time, to have them as they were then.
        """
        found: list[MemCube] = []
        while limit is None or len(found) < limit:
            if as_of:
                page = self.vault.as_of(owner, as_of, limit=limit, after=after)
            else:
                page = self.vault.list(owner, limit=limit, after=after)
            found += self.cleared(user, [cube for cube in page if isinstance(cube.payload, Plaintext)])
            if limit is None or len(page) < limit:
                break
            after = page[-1].id
        return found[:limit]

    def cleared(self, user: str, cubes: Sequence[MemCube]) -> list[MemCube]:
        """Those of the cubes that the user's key is cleared for: older versions as they were and as they are now."""
        covers = self.covers(user)
        if covers is None:
            return [*cubes]
        return [cube for cube in cubes if covers(cube) and covers(self._now(cube))]

    def _now(self, cube: MemCube) -> MemCube:
        """The newest version; the given one where the cube is gone."""
        try:
            return self.vault.get(cube.id)
        except NotFound:
            return cube

    def history(self, user: str, cube_id: str) -> list[Event]:
        """What happened to a cube, without the texts that the user's key is not cleared for. Raises NotFound."""
        events = self.vault.history(cube_id)
        if self.covers(user) is None:
            return events
        versions = self.cleared(user, self.vault.versions(cube_id))
        shown = {cube.version: cube.payload.content for cube in versions if isinstance(cube.payload, Plaintext)}
        return [
            msgspec.structs.replace(event, old_text=shown.get(event.version - 1), new_text=shown.get(event.version))
            if event.operation != "delete"
            else event
            for event in events
        ]
