"""A sentence-transformers model in this process."""

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
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


@dataclass
class _Batch:
    """Texts that wait for the model, BATCH at most, and the vectors that they get. since: when they began to."""

    texts: list[str]
    query: bool
    vectors: Future[Floats] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class LocalEmbedder:
    """model: a folder, or a name on the Hugging Face hub. Raises StartError where it cannot be loaded.

    One thread runs the model. Questions that come while it is busy are embedded together: that takes little longer than
    one of them.
    """

    def __init__(self, model: str) -> None:
        self._model = _load(model)
        self.dimensions: int = self._model.get_embedding_dimension()
        self.name = f"{Path(model).name}/{self.dimensions}/{_digest(self._model)}"
        self._waiting: dict[bool, deque[_Batch]] = {True: deque(), False: deque()}
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="memos-embedder", daemon=True).start()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """See `Embedder.embed`. A text longer than the model reads is cut."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # a batch takes as long as its longest text
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            places = order[start : start + BATCH]
            batch = _Batch([texts[at] for at in places], query)
            with self._changed:
                self._waiting[query].append(batch)
                self._changed.notify()
            vectors[places] = batch.vectors.result()
        return unit(vectors)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(self._waiting.values()))
                taken = self._take()
            texts = [text for batch in taken for text in batch.texts]
            encode = self._model.encode_query if taken[0].query else self._model.encode_document
            try:
                found = encode(texts, batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
            except BaseException as error:  # noqa: BLE001 - it is raised where the vectors are waited for
                for batch in taken:
                    batch.vectors.set_exception(error)
                continue
            for batch in taken:
                batch.vectors.set_result(found[: len(batch.texts)])
                found = found[len(batch.texts) :]

    def _take(self) -> list[_Batch]:
        """What is embedded next: a batch of memories, or as many questions as one batch holds."""
        questions, memories = self._waiting[True], self._waiting[False]
        if memories and (not questions or time.monotonic() - memories[0].since > PATIENCE):
            return [memories.popleft()]
        taken = [questions.popleft()]
        room = BATCH - len(taken[0].texts)
        while questions and len(questions[0].texts) <= room:
            taken.append(questions.popleft())
            room -= len(taken[-1].texts)
        return taken


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
