"""The contract of embedders, and how a search uses one."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from memos_vllm.errors import BadInput, EmbedderUnavailable
from memos_vllm.vault.lookup import Floats
from memos_vllm.vault.vectors import embedder_digest

log = logging.getLogger(__name__)

MAX_QUERY = 2000
"""Characters at a question's end that are embedded: what is asked stands behind a pasted page, and servers refuse texts
that are longer than their model reads.
"""
PAUSE = 10.0
"""Seconds without questions to an embedder that failed; then one question tries it again."""


class Embedder(Protocol):
    """Turns texts into vectors; texts of like meaning have a high cosine. Safe for several threads."""

    name: str
    """What makes equal vectors of equal texts: model and dimensions. Vectors under another name are made anew."""
    dimensions: int

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """float32 `[len(texts), dimensions]`, each of length 1. Raises EmbedderUnavailable, BadInput for a text.

        query: the texts are questions, which some models read differently.
        """
        ...


class QueryEmbedder:
    """The embedder as a search uses it: where it fails, words alone decide, and the log says so.

    It remembers no question: how long a search takes would tell one tenant what another asked.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.digest = embedder_digest(embedder.name)
        self._embedder = embedder
        self._failed, self._again = False, 0.0
        self._lock = threading.Lock()

    def embed_query(self, query: str) -> Floats | None:
        """float32 `[dimensions]`; None for a blank query, one that the embedder refuses, and while it fails."""
        text = query.strip()[-MAX_QUERY:].encode(errors="replace").decode()
        if not text:
            return None
        with self._lock:
            if self._rests():
                return None
        return self._asked(text)

    def _rests(self) -> bool:
        """Whether the embedder is left alone; after a failure one question at a time finds out whether it works."""
        now = time.monotonic()
        if now < self._again:
            return True
        if self._failed:
            self._again = now + PAUSE
        return False

    def _asked(self, text: str) -> Floats | None:
        failed = True
        try:
            vector: Floats = self._embedder.embed([text], query=True)[0]
            failed = False
            return vector
        except BadInput as error:
            failed = False
            log.warning("searching by words alone: %s", error)
        except EmbedderUnavailable as error:
            log.warning("searching by words alone: %s", error)
        except Exception:  # whatever a model does, words can answer too
            log.exception("searching by words alone")
        finally:
            with self._lock:
                self._failed, self._again = failed, time.monotonic() + PAUSE if failed else 0.0
        return None


def unit(vectors: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Floats:
    """The vectors as float32 of length 1; those of length 0 stay."""
    floats = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    units: Floats = np.divide(floats, lengths, out=floats.copy(), where=lengths > 0)
    return units
