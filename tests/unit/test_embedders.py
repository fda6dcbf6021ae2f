import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from memos_vllm.errors import BadInput, EmbedderUnavailable, StartError
from memos_vllm.retrieval.embedders import Embedder, QueryEmbedder, check_embedder, make_embedder
from memos_vllm.retrieval.embedders.base import MAX_QUERY, PAUSE
from memos_vllm.retrieval.embedders.local import BATCH, LocalEmbedder, _digest
from memos_vllm.retrieval.embedders.remote import RemoteEmbedder
from memos_vllm.vault.lookup import Floats
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
    assert (local.name.startswith("model/384/"), local.dimensions) == (True, 384)
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


class Model(torch.nn.Linear):
    max_seq_length = 8

    def __init__(self, **prompts: str) -> None:
        super().__init__(3, 2)
        self.prompts = prompts


def test_models_of_one_folder_name_have_names_of_their_own() -> None:
    model, other, prompted = Model(), Model(), Model(query="question: ")
    first = _digest(model)
    assert first == _digest(model) != _digest(other)
    for one in (other, prompted):
        one.load_state_dict(model.state_dict())
    assert _digest(other) == first != _digest(prompted)


def test_questions_go_before_the_rest_of_a_batch(local: Embedder) -> None:
    assert isinstance(local, LocalEmbedder)
    done: list[str] = []
    model, encode = local._model, local._model.encode_document

    def slow(texts: list[str], **options: object) -> object:
        time.sleep(0.05)
        return encode(texts, **options)

    def work() -> None:
        local.embed(["tea"] * (4 * BATCH))
        done.append("memories")

    model.encode_document = slow
    try:
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.02)
        local.embed(["Where is the cat?"], query=True)
        done.append("question")
        thread.join()
    finally:
        del model.encode_document
    assert done == ["question", "memories"]


def test_questions_that_wait_are_embedded_together_and_each_gets_its_own_vector(local: Embedder) -> None:
    assert isinstance(local, LocalEmbedder)
    questions = [f"Who lives in house number {number}?" for number in range(BATCH + 3)]
    alone = [local.embed([question], query=True)[0] for question in questions]
    sizes: list[int] = []
    encode = local._model.encode_query

    def slow(texts: list[str], **options: object) -> object:
        sizes.append(len(texts))
        time.sleep(0.2)
        return encode(texts, **options)

    local._model.encode_query = slow
    try:
        with ThreadPoolExecutor(len(questions)) as pool:
            together = list(pool.map(lambda question: local.embed([question], query=True)[0], questions))
    finally:
        del local._model.encode_query
    assert np.allclose(together, alone, atol=1e-5)
    assert sum(sizes) == len(questions) and max(sizes) == BATCH


def test_an_error_of_the_model_reaches_who_asked_and_nobody_later(local: Embedder) -> None:
    assert isinstance(local, LocalEmbedder)

    def broken(texts: list[str], **options: object) -> object:
        raise RuntimeError("out of memory")

    local._model.encode_query = broken
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            local.embed(["tea"], query=True)
    finally:
        del local._model.encode_query
    assert local.embed(["tea"], query=True).shape == (1, local.dimensions)


def test_a_question_asked_before_takes_as_long_as_a_new_one() -> None:
    embedder = WordEmbedder()
    queries = QueryEmbedder(embedder)
    first, again = queries.embed_query("tea?"), queries.embed_query("tea?")
    assert first is not None and again is not None and np.array_equal(first, again)
    assert queries.embed_query("  ") is None
    assert embedder.calls == 2


def test_of_a_long_question_the_end_is_embedded_and_a_half_character_is_no_error() -> None:
    seen: list[str] = []

    class Short(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            seen.extend(texts)
            return super().embed(texts)

    queries = QueryEmbedder(Short())
    assert queries.embed_query("page " * 10_000 + "tea?") is not None
    assert queries.embed_query("tea \ud800") is not None
    assert len(seen[0]) == MAX_QUERY and seen[0].endswith("tea?")
    assert seen[1] == "tea ?"


def test_a_refused_question_is_answered_by_words() -> None:
    queries = QueryEmbedder(WordEmbedder(refuses="endless"))
    assert queries.embed_query("endless") is None
    assert queries.embed_query("tea") is not None


def test_an_embedder_that_fails_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            if self.calls < 2:
                self.calls += 1
                raise EmbedderUnavailable("down") if self.calls == 1 else RuntimeError("a bug")
            return super().embed(texts)

    embedder, now = Down(), time.monotonic()
    queries = QueryEmbedder(embedder)
    for later, calls in ((0.0, 1), (PAUSE - 1, 1), (PAUSE + 1, 2), (PAUSE + 2, 2)):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert queries.embed_query("tea") is None and embedder.calls == calls
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * PAUSE + 3)
    assert queries.embed_query("tea") is not None


def test_no_answer_and_no_password_is_in_an_error() -> None:
    server = embedding_server(lambda path, body: (422, {"detail": "my secret diary"}))
    with server as (url, _), pytest.raises(StartError) as caught:
        RemoteEmbedder(url.replace("http://", "http://maya:hunter2@"))
    assert "diary" not in str(caught.value) and "hunter2" not in str(caught.value) and "422" in str(caught.value)
