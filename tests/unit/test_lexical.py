import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memos_vllm.cube import Header, MemCube, Parameter, completed
from memos_vllm.errors import BadInput
from memos_vllm.retrieval import LexicalOperator
from memos_vllm.vault import Vault


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def add(vault: Vault, *texts: str, owner: str = "maya", **fields: object) -> list[MemCube]:
    cubes = [MemCube.plaintext(text, owner=owner, **fields) for text in texts]  # type: ignore[arg-type]
    return vault.add(cubes, actor=owner)


def texts(operator: LexicalOperator, query: str, principal: str = "maya", top_k: int = 10) -> list[str]:
    return [hit.cube.text for hit in operator.search(principal, query, top_k=top_k)]


def test_the_best_match_comes_first(vault: Vault) -> None:
    add(vault, "The cat sleeps on the sofa", "Cats and cats and a cat", "The train leaves at nine")
    hits = LexicalOperator(vault).search("maya", "cat", top_k=10)
    assert [hit.cube.text for hit in hits] == ["Cats and cats and a cat", "The cat sleeps on the sofa"]
    assert hits[0].score > hits[1].score > 0


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("She was running late", "Who runs?"),
        ("Straße nach Köln", "STRASSE"),
        ("Ich wohne in Köln", "köln"),
        ("Call 7 times", "7?"),
        ("東京タワーに行きました", "東京"),
        ("内存操作系统", "操作"),
        ("緑茶が好き", "茶"),
        ("снег_идёт", "снег"),
    ],
)
def test_words_match_over_forms_and_scripts(vault: Vault, text: str, query: str) -> None:
    add(vault, "Nothing of interest", text)
    assert texts(LexicalOperator(vault), query) == [text]


def test_without_a_match_the_most_recent_come_first(vault: Vault) -> None:
    add(vault, "one")
    add(vault, "two")
    add(vault, "three")
    operator = LexicalOperator(vault)
    hits = operator.search("maya", "What do you know about me?", top_k=2)
    assert [(hit.cube.text, hit.score) for hit in hits] == [("three", 0.0), ("two", 0.0)]
    assert texts(operator, "", top_k=5) == ["three", "two", "one"]
    assert texts(operator, "anything", principal="nobody") == []


def test_only_readable_memories_are_found(vault: Vault) -> None:
    add(vault, "maya's tea is green", access=["bo"])
    add(vault, "maya's tea is secret")
    add(vault, "bo's tea is black", owner="bo")
    operator = LexicalOperator(vault)
    assert set(texts(operator, "tea", "bo")) == {"maya's tea is green", "bo's tea is black"}
    assert set(texts(operator, "tea", "maya")) == {"maya's tea is green", "maya's tea is secret"}
    assert texts(operator, "tea", "cy") == []


def test_changes_are_seen_at_once(vault: Vault) -> None:
    operator = LexicalOperator(vault)
    assert texts(operator, "tea") == []
    cube = add(vault, "I like tea")[0]
    assert texts(operator, "tea") == ["I like tea"]
    vault.update(cube.id, "I like mate", actor="maya")
    assert texts(operator, "mate") == ["I like mate"]
    vault.delete(cube.id, actor="maya")
    assert texts(operator, "mate") == []


def test_an_index_of_memories_without_words(vault: Vault) -> None:
    add(vault, "the", "!!!")
    assert set(texts(LexicalOperator(vault), "tea")) == {"the", "!!!"}


def test_expired_memories_are_not_found(vault: Vault) -> None:
    add(vault, "old tea", expires="2020-01-01")
    add(vault, "fresh tea", expires="2999-01-01")
    operator = LexicalOperator(vault)
    assert texts(operator, "tea") == texts(operator, "nothing at all") == ["fresh tea"]


def test_filters(vault: Vault) -> None:
    add(vault, "tea at home", tags=("home", "drink"), metadata={"run_id": "r1", "n": 1})
    add(vault, "tea at work", semantic_type="user_preference", metadata={"run_id": "r2"})
    operator = LexicalOperator(vault)

    def found(**filters: object) -> set[str]:
        return {hit.cube.text for hit in operator.search("maya", "tea", top_k=5, filters=filters)}

    assert found(tags="drink") == found(tags=["drink", "food"]) == found(run_id="r1", n=1) == {"tea at home"}
    assert found(semantic_type="user_preference") == found(run_id=["r2", "r3"]) == {"tea at work"}
    assert found(run_id="r3") == found(missing="x") == found(tags="drink", run_id="r2") == set()
    with pytest.raises(BadInput, match="run_id"):
        found(run_id={"gte": 1})


def test_payloads_without_text_are_found_by_their_tags(vault: Vault) -> None:
    header = Header(owner="maya", tags=("cooking",))
    lora = vault.add([completed(MemCube(header, Parameter("d", "m", 8, 1.0, ("q_proj",))))], actor="maya")[0]
    assert [hit.cube.id for hit in LexicalOperator(vault).search("maya", "cook", top_k=3)] == [lora.id]


def test_indexes_are_bounded_and_threads_agree(vault: Vault) -> None:
    for n in range(8):
        add(vault, f"tea number {n}", owner=f"user{n}")
    operator = LexicalOperator(vault, max_indexes=3)
    wrong: list[str] = []

    def search(n: int) -> None:
        for turn in range(20):
            user = (n + turn) % 8
            if texts(operator, "tea", f"user{user}") != [f"tea number {user}"]:
                wrong.append(f"user{user}")

    threads = [threading.Thread(target=search, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(operator._indexes) <= 3


def test_nothing_is_printed(vault: Vault, capfd: pytest.CaptureFixture[str]) -> None:
    add(vault, *(f"tea {n}" for n in range(50)))
    assert texts(LexicalOperator(vault), "tea", top_k=1)
    assert capfd.readouterr() == ("", "")
