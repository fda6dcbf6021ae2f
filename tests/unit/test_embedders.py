from collections.abc import Iterator

import numpy as np
import pytest

from memos_vllm.errors import BadInput, EmbedderUnavailable, StartError
from memos_vllm.retrieval.embedders import Embedder, QueryEmbedder, check_embedder, make_embedder
from memos_vllm.retrieval.embedders.remote import RemoteEmbedder
from tests.unit.embed_cases import Answer, WordEmbedder, embedding_server, minilm, openai_answer


@pytest.fixture(scope="module")
def local() -> Embedder:
    embedder = make_embedder(minilm())
    assert embedder is not None
    return embedder


@pytest.fixture
def remote() -> Iterator[RemoteEmbedder]:
    with embedding_server(openai_answer) as (url, _):
        embedder = RemoteEmbedder(url)
        yield embedder
        embedder.close()


def test_a_local_model_knows_what_is_alike(local: Embedder) -> None:
    assert (local.name, local.dimensions) == ("model/384", 384)
    vectors = local.embed(["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rise."])
    question = local.embed(["Where does the pet rest?"], query=True)[0]
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    alike = (vectors @ question).tolist()
    assert min(alike[:2]) > alike[2] + 0.05


def test_no_embedder() -> None:
    assert make_embedder("none") is None


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nor-this"])
def test_a_missing_folder_is_named(spec: str) -> None:
    with pytest.raises(StartError, match="there is no such folder"):
        check_embedder(spec)


def test_a_folder_without_a_model_is_refused(tmp_path: object) -> None:
    with pytest.raises(StartError, match="is no sentence-transformers model"):
        make_embedder(str(tmp_path))


def test_a_remote_embedder_puts_vectors_into_the_order_of_the_texts(remote: RemoteEmbedder) -> None:
    assert (remote.name, remote.dimensions) == ("first/32", 32)
    texts = ["tea by the lake", "trains", "sofa"]
    assert remote.embed(texts) == pytest.approx(WordEmbedder().embed(texts))


def test_model_and_key_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOS_EMBEDDER_KEY", "secret")
    with embedding_server(openai_answer) as (url, seen):
        embedder = make_embedder(f"{url}/v1/#second")
        assert isinstance(embedder, RemoteEmbedder)
        assert embedder.name == "second/32"
        embedder.close()
    assert {headers["authorization"] for headers in seen} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (500, {"error": "broken"}, EmbedderUnavailable),
        (401, {"error": "no key"}, EmbedderUnavailable),
        (400, {"error": "too long"}, BadInput),
        (413, {"error": "too long"}, BadInput),
        (200, b"<html>", EmbedderUnavailable),
        (200, {"data": []}, EmbedderUnavailable),
        (200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}, EmbedderUnavailable),
    ],
)
def test_a_server_that_fails_is_no_success(status: int, content: object, error: type[Exception]) -> None:
    broken = False

    def answer(path: str, body: dict[str, object]) -> Answer:
        return (status, content) if broken else openai_answer(path, body)

    with embedding_server(answer) as (url, _):
        embedder = RemoteEmbedder(url)
        broken = True
        with pytest.raises(error):
            embedder.embed(["tea"])
        with pytest.raises(StartError, match="--memory-embedder"):
            RemoteEmbedder(url)
        embedder.close()


def test_a_server_that_is_gone() -> None:
    with embedding_server(openai_answer) as (url, _):
        embedder = RemoteEmbedder(url)
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        embedder.embed(["tea"])
    embedder.close()


def test_a_question_asked_before_takes_as_long_as_a_new_one() -> None:
    embedder = WordEmbedder()
    queries = QueryEmbedder(embedder)
    first, again = queries.embed_query("tea?"), queries.embed_query("tea?")
    assert first is not None and again is not None and np.array_equal(first, again)
    assert queries.embed_query("  ") is None
    assert embedder.calls == 2
