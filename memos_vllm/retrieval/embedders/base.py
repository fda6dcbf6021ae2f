"""The contract of embedders, and how a search uses one."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from memos_vllm.errors import EmbedderUnavailable
from memos_vllm.vault.lookup import Floats
from memos_vllm.vault.vectors import embedder_digest

log = logging.getLogger(__name__)


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

    def embed_query(self, query: str) -> Floats | None:
        """float32 `[dimensions]`, None for a blank query or when the embedder fails."""
        if not query.strip():
            return None
        try:
            vector: Floats = self._embedder.embed([query], query=True)[0]
        except EmbedderUnavailable as error:
            log.warning("searching by words alone: %s", error)
            return None
        return vector


def unit(vectors: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Floats:
    """The vectors as float32 of length 1; those of length 0 stay."""
    floats = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    units: Floats = np.divide(floats, lengths, out=floats.copy(), where=lengths > 0)
    return units
