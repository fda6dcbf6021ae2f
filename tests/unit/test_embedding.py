"""Vectors in the background, and searches by meaning."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import EmbedderUnavailable
from memos_vllm.retrieval import MemOperator, embedding, meaning
from memos_vllm.retrieval.embedders import QueryEmbedder
from memos_vllm.retrieval.embedding import EmbeddingWorker
from memos_vllm.vault import Vault, index
from memos_vllm.vault.lookup import Floats
from memos_vllm.vault.vectors import Vector
from tests.unit.embed_cases import WordEmbedder


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def add(vault: Vault, *texts: str, owner: str = "maya", **fields: Any) -> list[MemCube]:
    return vault.add([MemCube.plaintext(text, owner=owner, **fields) for text in texts], actor=owner)


def drained(vault: Vault, embedder: WordEmbedder) -> int:
    worker = EmbeddingWorker(vault, embedder)
    vault.adopt_embedder(embedder.name)
    total = 0
    while stored := worker.round():
        total += stored
    assert vault.read(lambda txn: list(index.problems(txn))) == []
    return total


def found(vault: Vault, query: str, principal: str = "maya", **options: Any) -> list[str]:
    operator = MemOperator(vault, QueryEmbedder(WordEmbedder()))
    return [hit.cube.text for hit in operator.search(principal, query, top_k=10, using=["dense"], **options)]


def test_without_an_embedder_nothing_is_awaited(vault: Vault) -> None:
    add(vault, "tea")
    assert vault.vector_counts() == (0, 0)


def test_every_memory_gets_its_vector(vault: Vault) -> None:
    add(vault, *(f"tea {n}" for n in range(70)))
    assert drained(vault, WordEmbedder()) == 70
    cube = add(vault, "lake")[0]
    assert vault.vector_counts() == (70, 1)
    assert found(vault, "lake") != ["lake"]
    assert drained(vault, WordEmbedder()) == 1
    assert found(vault, "lake") == ["lake"]
    assert set(vault.vectors_of([cube.id, "0" * 32])) == {cube.id}


def test_a_new_text_gets_a_new_vector_and_a_header_keeps_it(vault: Vault) -> None:
    cube = add(vault, "tea")[0]
    drained(vault, WordEmbedder())
    vault.edit(cube.id, actor="maya", tags=["x"], access=["bo"])
    assert vault.vector_counts() == (1, 0)
    assert found(vault, "tea", "bo") == ["tea"]
    vault.update(cube.id, "lake", actor="maya")
    assert vault.vector_counts() == (0, 1)
    assert drained(vault, WordEmbedder()) == 1
    assert found(vault, "lake") == ["lake"]
    vault.transition(cube.id, "archived", actor="maya")
    assert vault.vector_counts() == (0, 0)


def test_a_vector_of_an_older_text_is_not_stored(vault: Vault) -> None:
    vault.adopt_embedder("words/32")
    cube = add(vault, "tea")[0]
    late = Vector("tea", bytes(64))
    vault.update(cube.id, "lake", actor="maya")
    assert vault.put_vectors("words/32", {cube.id: late}) == 0
    assert vault.put_vectors("other/32", {cube.id: Vector("lake", bytes(64))}) == 0
    vault.delete(cube.id, actor="maya")
    assert vault.put_vectors("words/32", {cube.id: late}) == 0
    assert vault.vector_counts() == (0, 0)


def test_another_embedder_makes_all_vectors_anew(vault: Vault) -> None:
    add(vault, "tea", "lake", access=["bo"])
    drained(vault, WordEmbedder())
    vault.adopt_embedder("words/32")
    assert vault.vector_counts() == (2, 0)
    vault.adopt_embedder("other/32")
    assert vault.vector_counts() == (0, 2)
    assert drained(vault, WordEmbedder("other/32")) == 2
    vault.reindex()
    assert vault.vector_counts() == (2, 0)


def test_a_refused_text_holds_up_no_other(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "BATCH", 3)
    add(vault, "tea", "endless", "lake", "train", "sofa")
    worker = EmbeddingWorker(vault, WordEmbedder(refuses="endless"))
    vault.adopt_embedder("words/32")
    assert [worker.round() for _ in range(4)] == [2, 2, 0, 0]
    assert vault.vector_counts() == (4, 1)


@pytest.mark.parametrize("error", [EmbedderUnavailable("500"), RuntimeError("index out of range")])
def test_a_text_that_a_working_embedder_fails_on_holds_up_no_other(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Choking(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            if "endless" in texts:
                raise error
            return super().embed(texts)

    add(vault, "tea", "endless", "lake", "train", "sofa")
    worker = EmbeddingWorker(vault, Choking())
    vault.adopt_embedder("words/32")
    assert [worker.round() for _ in range(2)] == [4, 0]
    assert vault.vector_counts() == (4, 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + embedding.ASIDE_SECONDS)
    worker._embedder = WordEmbedder()
    assert worker.round() == 1


def test_an_embedder_that_fails_on_all_texts_is_waited_for(vault: Vault) -> None:
    class Down(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            raise EmbedderUnavailable("down")

    add(vault, "tea", "lake")
    vault.adopt_embedder("words/32")
    worker = EmbeddingWorker(vault, Down())
    with pytest.raises(EmbedderUnavailable):
        worker.round()
    worker._embedder = WordEmbedder()
    assert worker.round() == 2


def test_of_two_embedders_the_one_that_came_later_makes_the_vectors(
    vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    worker = EmbeddingWorker(vault, WordEmbedder())
    worker.start()
    vault.adopt_embedder("other/32")
    worker._thread.join(10)
    assert not worker._thread.is_alive() and "another embedder" in caplog.text


def test_the_thread_works_until_it_is_stopped(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(embedding, "FAILED_SECONDS", 0.01)

    troubles = [EmbedderUnavailable("not yet"), EmbedderUnavailable("not yet"), RuntimeError("a bug"), TypeError()]

    class Failing(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            if troubles:
                raise troubles.pop(0)
            return super().embed(texts)

    add(vault, *(f"tea {n}" for n in range(100)))
    worker = EmbeddingWorker(vault, Failing())
    worker.start()
    add(vault, "lake")
    deadline = time.monotonic() + 20
    while vault.vector_counts() != (101, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.stop()
    assert vault.vector_counts() == (101, 0)
    assert threading.active_count() == 1 or all(t.name != "memos-embedding" for t in threading.enumerate())


def test_where_the_embedder_fails_words_decide(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(WordEmbedder):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
            raise EmbedderUnavailable("the server is down")

    add(vault, "tea", "lake")
    hits = MemOperator(vault, QueryEmbedder(Broken())).search("maya", "tea", top_k=5)
    assert [hit.cube.text for hit in hits] == ["tea"]
    assert "dense" not in hits[0].parts
    assert "searching by words alone: the server is down" in caplog.text


def test_kept_vectors_follow_every_change(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large partition, whose vectors stay in RAM, the answers are those of a fresh operator."""
    monkeypatch.setattr(meaning, "LARGE", 4)
    embedder = WordEmbedder()
    operator = MemOperator(vault, QueryEmbedder(embedder))
    cubes = add(vault, *(f"{word} and {other}" for word in ("tea", "lake", "train") for other in ("sofa", "mate")))

    def check() -> None:
        drained(vault, embedder)
        for query in ("tea sofa", "mate", "violin"):
            kept = operator.search("maya", query, top_k=20)
            fresh = MemOperator(vault, QueryEmbedder(embedder)).search("maya", query, top_k=20)
            assert [hit.cube for hit in kept] == [hit.cube for hit in fresh]
            assert [hit.score for hit in kept] == pytest.approx([hit.score for hit in fresh])

    check()
    vault.update(cubes[0].id, "violin", actor="maya")
    assert operator.search("maya", "violin", top_k=3)[0].cube.id == cubes[0].id
    check()
    add(vault, "a violin on the sofa", *(f"lake {n}" for n in range(40)))
    check()
    for cube in vault.list("maya")[3:]:
        vault.delete(cube.id, actor="maya")
    add(vault, "mate", "tea")
    check()
    assert max(len(kept.stamps) for kept in operator._meanings._kept.values()) <= 12


def test_no_vector_of_a_forgotten_user_is_kept(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own partition's, and those in the partitions of whom they shared with; others' stay."""
    monkeypatch.setattr(meaning, "LARGE", 1)
    embedder = WordEmbedder()
    operator = MemOperator(vault, QueryEmbedder(embedder))
    add(vault, "tea", "lake", access=["bo"])
    add(vault, "hill", owner="ana")
    drained(vault, embedder)
    for name in ("maya", "bo", "ana"):
        assert operator.search(name, "tea", top_k=3)
    assert len(operator._meanings._kept) == 3
    with operator.forgetting("maya"):
        vault.forget("maya", actor="maya")
        assert operator.search("bo", "tea", top_k=3) == []
    (left,) = operator._meanings._kept.values()
    assert len(left.stamps) == 1
    assert [hit.cube.text for hit in operator.search("ana", "hill", top_k=3)] == ["hill"]


def test_who_watches_is_told_how_many_memories_wait(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "IDLE_SECONDS", 0.01)
    add(vault, *(f"tea {n}" for n in range(70)))
    told: list[int] = []
    worker = EmbeddingWorker(vault, WordEmbedder(), tell=told.append)
    worker.start()
    try:
        deadline = time.monotonic() + 30
        while told[-1:] != [0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        worker.stop()
    assert [*dict.fromkeys(told)] == [70, 38, 6, 0]


def test_kept_vectors_are_bounded(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meaning, "LARGE", 1)
    operator = MemOperator(vault, QueryEmbedder(WordEmbedder()))
    monkeypatch.setattr(operator._meanings, "_max_bytes", 3 * 32 * 4)
    for owner in ("maya", "bo", "cy"):
        add(vault, "tea", "lake", owner=owner)
    drained(vault, WordEmbedder())
    for owner in ("maya", "bo", "cy", "maya"):
        assert operator.search(owner, "tea", top_k=1)[0].cube.text == "tea"
    assert len(operator._meanings._kept) == 1
