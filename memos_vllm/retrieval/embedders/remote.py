"""Any server with OpenAI's `/v1/embeddings`."""

from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
import numpy as np

from memos_vllm.errors import BadInput, EmbedderUnavailable, StartError
from memos_vllm.retrieval.embedders.base import unit
from memos_vllm.vault.lookup import Floats

TIMEOUT = 30.0
"""Seconds for one request."""
QUERY_TIMEOUT = 5.0
"""Seconds for a question: somebody waits for the answer, and words can answer it too."""
CONNECT = 2.0
"""Seconds for a connection."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class RemoteEmbedder:
    """url: where the server answers, with or without `/v1`; `#MODEL` at its end names the model, else the first served.

    key: sent as the bearer token. Raises StartError where the server does not answer.
    """

    def __init__(self, url: str, *, key: str = "") -> None:
        address, _, model = url.partition("#")
        base = address.rstrip("/").removesuffix("/embeddings").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=f"{base}/v1/", headers=headers, timeout=TIMEOUT)
        self._shown = str(self._client.base_url.copy_with(userinfo=b""))
        try:
            self._model = model or self._first_model()
            self.dimensions = len(self._ask(["dimensions"], TIMEOUT)[0])
        except (EmbedderUnavailable, BadInput) as error:
            self._client.close()
            raise StartError(f"--memory-embedder: {error}") from error
        self.name = f"{self._model}/{self.dimensions}"

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        """See `Embedder.embed`."""
        vectors = self._ask(texts, QUERY_TIMEOUT if query else TIMEOUT)
        if vectors.shape != (len(texts), self.dimensions):
            raise EmbedderUnavailable(f"{self._shown} answered vectors of shape {vectors.shape}.")
        return unit(vectors)

    def close(self) -> None:
        self._client.close()

    def _first_model(self) -> str:
        models: _Models = self._decoded(self._request("GET", "models", None, TIMEOUT), _Models)
        if not models.data:
            raise EmbedderUnavailable(f"{self._shown} serves no model.")
        return models.data[0].id

    def _ask(self, texts: Sequence[str], timeout: float) -> Floats:
        body = {"model": self._model, "input": [*texts], "encoding_format": "float"}
        answer: _Embeddings = self._decoded(self._request("POST", "embeddings", body, timeout), _Embeddings)
        rows = [row.embedding for row in sorted(answer.data, key=lambda row: row.index)]
        if len(rows) != len(texts) or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise EmbedderUnavailable(f"{self._shown} answered {len(rows)} vectors for {len(texts)} texts.")
        return np.asarray(rows, dtype=np.float32)

    def _request(self, method: str, path: str, body: Any, timeout: float) -> httpx.Response:
        """Raises BadInput where the server refuses the texts, EmbedderUnavailable where it fails."""
        try:
            response = self._client.request(method, path, json=body, timeout=httpx.Timeout(timeout, connect=CONNECT))
        except httpx.HTTPError as error:
            raise EmbedderUnavailable(f"{self._shown} does not answer ({error}); start it.") from error
        if response.status_code in (400, 413, 422):
            raise BadInput(f"{self._shown} refuses a text ({response.status_code}).")  # its answer may repeat the text
        if response.status_code != 200:
            raise EmbedderUnavailable(f"{self._shown} answers {response.status_code}.")
        return response

    def _decoded(self, response: httpx.Response, kind: Any) -> Any:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.MsgspecError as error:
            raise EmbedderUnavailable(f"{self._shown} does not speak OpenAI's API ({error}).") from error
