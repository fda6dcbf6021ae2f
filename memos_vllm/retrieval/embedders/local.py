"""A sentence-transformers model in this process."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memos_vllm.errors import StartError
from memos_vllm.retrieval.embedders.base import unit
from memos_vllm.vault.lookup import Floats

BATCH = 32


class LocalEmbedder:
    """model: a folder, or a name on the Hugging Face hub. Raises StartError where it cannot be loaded."""

    def __init__(self, model: str) -> None:
        self._model = _load(model)
        self.dimensions: int = self._model.get_embedding_dimension()
        self.name = f"{Path(model).name}/{self.dimensions}"
        self._one_at_a_time = threading.Lock()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """See `Embedder.embed`. A text longer than the model reads is cut."""
        encode = self._model.encode_query if query else self._model.encode_document
        with self._one_at_a_time:
            vectors = encode([*texts], batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        return unit(vectors)


def _load(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model, device="cpu")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise StartError(f"--memory-embedder {model!r} is no sentence-transformers model ({reason}).") from error
