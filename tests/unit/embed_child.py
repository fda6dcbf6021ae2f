"""A process like `crash_child`, in which an embedder makes the vectors of what is written meanwhile."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from memos_vllm.retrieval import embedding
from memos_vllm.retrieval.embedding import EmbeddingWorker
from memos_vllm.vault import Vault
from memos_vllm.vault.lookup import Floats
from tests.unit.crash_child import Child
from tests.unit.embed_cases import WordEmbedder


class Slow(WordEmbedder):
    """Falls behind what is written."""

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        time.sleep(0.02)
        return super().embed(texts, query=query)


if __name__ == "__main__":
    embedding.BATCH, embedding.IDLE_SECONDS = 4, 0.001
    sys.stdin.readline()
    vault = Vault.open(Path(sys.argv[1]), map_bytes=65536)
    EmbeddingWorker(vault, Slow()).start()
    for name in sys.argv[2].split(","):
        threading.Thread(target=Child(vault, name, int(sys.argv[3])).run).start()
