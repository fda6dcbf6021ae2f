"""What the adapter that answers a request knows of its caller's memories, and whether it may still answer.

An adapter that the scheduler had made answers only while every memory it was made of is as it was then: nobody asked
for it memory by memory, so what its owner changes, archives or deletes takes it out of use at once, until it is made
anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memos_vllm.cube import MemCube
from memos_vllm.errors import AdapterInactive, AdapterUnusable, NotFound
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.learned import is_proposed, made_of, sources_of
from memos_vllm.scheduler.consolidation import lasts
from memos_vllm.server import metrics

if TYPE_CHECKING:
    from memos_vllm.parameter.registry import AdapterRegistry, AdapterVersion
    from memos_vllm.server.prompt import PromptBuilder
    from memos_vllm.server.uses import UseBook

MAX_LOOKED_UP = 10_000
"""Versions of which it is remembered whether they are as they were."""


class Knowledge:
    """Thread-safe. auto: whether callers' default adapters answer; leave_out: whether what one knows is left out."""

    def __init__(
        self, registry: AdapterRegistry, uses: UseBook, prompts: PromptBuilder, *, auto: bool, leave_out: bool
    ) -> None:
        self.registry, self.auto, self.leave_out = registry, auto, leave_out
        self._uses, self._prompts = uses, prompts
        self._fresh: dict[int, tuple[int, bool]] = {}
        self._lock = threading.Lock()

    def of(self, version: AdapterVersion, caller: Caller) -> frozenset[str]:
        """The caller's memories, as `id@version`, that an adapter answers for."""
        return sources_of(version) if self.leave_out and version.owner == caller.user else frozenset()

    def of_default(self, caller: Caller) -> frozenset[str]:
        """The same, of the adapter that answers where the caller names none. Raises VaultUnavailable."""
        version = self.default_of(caller)
        return self.of(version, caller) if version is not None else frozenset()

    def default_of(self, caller: Caller) -> AdapterVersion | None:
        """The adapter that answers where the caller names none. Raises VaultUnavailable."""
        if not self.auto:
            return None
        try:
            version = self.registry.default_of(caller)
            return version if version is None else self.checked(version)
        except (AdapterInactive, AdapterUnusable):
            return None

    def checked(self, version: AdapterVersion) -> AdapterVersion:
        """The version, if it may answer. Raises AdapterInactive, VaultUnavailable."""
        if is_proposed(version) and not self._is_fresh(version):
            raise AdapterInactive(
                f"A memory that {version.served} was made of has changed, or is gone: it rests until it is made anew."
            )
        return version

    def left_out(self, cubes: Sequence[MemCube]) -> None:
        """An adapter answers for these in a prompt: they are in use as if they stood there."""
        self._uses.note(cube.id for cube in cubes)
        tokens = sum(self._prompts.count(cube.text, cube.owner) for cube in cubes)
        metrics.learned().labels("memories").inc(len(cubes))
        metrics.learned().labels("tokens").inc(tokens)

    def _is_fresh(self, version: AdapterVersion) -> bool:
        """Whether all memories are as they were; looked up once for each state of their owner's memories."""
        revision = self.registry.vault.revision(version.owner)
        with self._lock:
            known = self._fresh.get(version.int_id)
        if known is not None and known[0] == revision:
            return known[1]
        fresh = all(self._is_there(source) for source in made_of(version))
        with self._lock:
            if len(self._fresh) >= MAX_LOOKED_UP:
                self._fresh.clear()
            self._fresh[version.int_id] = revision, fresh
        return fresh

    def _is_there(self, source: str) -> bool:
        cube_id, _, number = source.partition("@")
        try:
            cube = self.registry.vault.get(cube_id)
        except NotFound:
            return False
        return f"{cube.version}" == number and lasts(cube)
