"""Vectors made in the background. What is still to be made stands in the vault, so a crash loses none of it."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, EmbedderUnavailable, VaultFull, VaultUnavailable
from memos_vllm.retrieval.embedders import Embedder
from memos_vllm.vault import Vault
from memos_vllm.vault.vectors import Vector
from memos_vllm.vault.words import spoken_text

log = logging.getLogger(__name__)

BATCH = 32
IDLE_SECONDS = 0.5
"""Between two looks at what is to be made, when there was nothing."""
FAILED_SECONDS = 10.0
"""After the embedder or the vault has failed."""
ASIDE_SECONDS = 3600.0
"""Until a text on which an embedder failed that works for others is tried again."""
MAX_CHARS = 8192
"""Characters of a text that are embedded: models read some hundred words."""
PROBE = "tea"
"""A text on which an embedder that works does not fail."""


Tell = Callable[[int], None]


def _to_nobody(_: int) -> None:
    """For a worker whose queue nobody watches."""


def _always() -> AbstractContextManager[bool]:
    return nullcontext(True)


class EmbeddingWorker:
    """A thread that gives every cube of the index its vector.

    claim: says whether this process may work, while others on the same vault do not.
    tell: is told again and again how many cubes await a vector, also while another process works.
    """

    def __init__(
        self,
        vault: Vault,
        embedder: Embedder,
        claim: Callable[[], AbstractContextManager[bool]] = _always,
        tell: Tell = _to_nobody,
    ) -> None:
        self._vault = vault
        self._embedder = embedder
        self._claim = claim
        self._tell = tell
        self._stopped = threading.Event()
        self._after = ""
        self._aside: dict[tuple[str, int], float] = {}
        self._thread = threading.Thread(target=self._run, name="memos-embedding", daemon=True)

    def start(self) -> None:
        """Raises VaultUnavailable, VaultFull."""
        self._vault.adopt_embedder(self._embedder.name)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the batch in hand."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def round(self) -> int:
        """Embed one batch; returns how many vectors were stored, 0 when none is awaited.

        Raises EmbedderUnavailable, VaultUnavailable, VaultFull.
        """
        cubes = self._vault.awaiting_vectors(after=self._after, limit=BATCH)
        if not cubes and self._after:
            self._after = ""
            cubes = self._vault.awaiting_vectors(limit=BATCH)
        now = time.monotonic()
        wanted = [cube for cube in cubes if self._aside.get((cube.id, cube.version), 0.0) <= now]
        vectors = self._vectors(wanted)
        stored = self._vault.put_vectors(self._embedder.name, vectors) if vectors else 0
        self._after = cubes[-1].id if cubes else ""
        return stored

    def _vectors(self, cubes: Sequence[MemCube]) -> dict[str, Vector]:
        """By cube id. A text on which an embedder that works fails is left out, so that it holds up no other.

        Raises EmbedderUnavailable.
        """
        if not cubes:
            return {}
        try:
            rows = self._embedder.embed([spoken_text(cube)[:MAX_CHARS] for cube in cubes])
        except BadInput as error:
            return self._apart(cubes, error, math.inf)
        except Exception as error:  # noqa: BLE001 - a model's own; of one that is down the next line tells
            self._embedder.embed([PROBE])
            return self._apart(cubes, error, time.monotonic() + ASIDE_SECONDS)
        halves = rows.astype("<f2")
        return {cube.id: Vector(spoken_text(cube), row.tobytes()) for cube, row in zip(cubes, halves, strict=True)}

    def _apart(self, cubes: Sequence[MemCube], error: Exception, until: float) -> dict[str, Vector]:
        """The vectors of two halves of a batch that failed; a text that fails alone is put aside."""
        if len(cubes) > 1:
            half = len(cubes) // 2
            return self._vectors(cubes[:half]) | self._vectors(cubes[half:])
        log.warning("memory %s is found by its words alone: %s", cubes[0].id, error)
        self._aside[cubes[0].id, cubes[0].version] = until
        return {}

    def _tell_waiting(self) -> None:
        _, waiting = self._vault.vector_counts()
        self._tell(waiting)

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            try:
                if not self._vault.is_embedder(self._embedder.name):
                    log.error("no more vectors: another server on this memory directory has another embedder")
                    return
                self._tell_waiting()
                with self._claim() as mine:
                    while mine and self.round() and not self._stopped.is_set():
                        self._tell_waiting()
                pause = IDLE_SECONDS
            except (EmbedderUnavailable, VaultUnavailable, VaultFull, OSError) as error:
                log.error("embedding stands still: %s", error)
                pause = FAILED_SECONDS
            except Exception:  # the thread must outlive any one batch
                log.exception("embedding stands still")
                pause = FAILED_SECONDS
