"""A sentence-transformers model in this process."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from memos_vllm.errors import StartError
from memos_vllm.retrieval.embedders.base import unit
from memos_vllm.vault.lookup import Floats

BATCH = 8
"""Texts that are embedded at a time. Between two batches questions go first."""
PATIENCE = 1.0
"""Seconds after which a batch of memories goes before questions that wait."""


class LocalEmbedder:
    """model: a folder, or a name on the Hugging Face hub. Raises StartError where it cannot be loaded."""

    def __init__(self, model: str) -> None:
        self._model = _load(model)
        self.dimensions: int = self._model.get_embedding_dimension()
        self.name = f"{Path(model).name}/{self.dimensions}/{_digest(self._model)}"
        self._turn = threading.Condition()
        self._busy, self._asking = False, 0

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """See `Embedder.embed`. A text longer than the model reads is cut."""
        encode = self._model.encode_query if query else self._model.encode_document
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # a batch takes as long as its longest text
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            places = order[start : start + BATCH]
            with self._alone(query):
                batch = [texts[at] for at in places]
                vectors[places] = encode(batch, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        return unit(vectors)

    @contextmanager
    def _alone(self, query: bool) -> Iterator[None]:
        """The model for this thread alone."""
        with self._turn:
            self._asking += query
            if not query:
                self._turn.wait_for(lambda: not self._busy and not self._asking, PATIENCE)
            self._turn.wait_for(lambda: not self._busy)
            self._asking -= query
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()


def _digest(model: Any) -> str:
    """Of the weights, and of what is put before texts: models of one folder name are not one model."""
    import torch

    digest = xxhash.xxh3_64(json.dumps([model.max_seq_length, model.prompts], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _load(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model, device="cpu")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise StartError(f"--memory-embedder {model!r} is no sentence-transformers model ({reason}).") from error
