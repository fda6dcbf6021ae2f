import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import Header, MemCube, Parameter, Plaintext, completed
from memos_vllm.errors import BadInput
from memos_vllm.retrieval import MemOperator, TimeWindow
from memos_vllm.retrieval.operator import _Reader
from memos_vllm.vault import Vault

WORDS = ("tea", "lake", "train", "biopsy")


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def add(vault: Vault, *texts: str, owner: str = "maya", **fields: object) -> list[MemCube]:
    cubes = [MemCube.plaintext(text, owner=owner, **fields) for text in texts]  # type: ignore[arg-type]
    return vault.add(cubes, actor=owner)


def texts(operator: MemOperator, query: str, principal: str = "maya", top_k: int = 10) -> list[str]:
    return [hit.cube.text for hit in operator.search(principal, query, top_k=top_k)]


def test_the_best_match_comes_first(vault: Vault) -> None:
    add(vault, "The cat sleeps on the sofa", "Cats and cats and a cat", "The train leaves at nine")
    hits = MemOperator(vault).search("maya", "cat", top_k=10)
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
    assert texts(MemOperator(vault), query) == [text]


def test_without_a_match_the_most_recent_come_first(vault: Vault) -> None:
    add(vault, "one")
    add(vault, "two")
    add(vault, "three")
    operator = MemOperator(vault)
    hits = operator.search("maya", "What do you know about me?", top_k=2)
    assert [(hit.cube.text, hit.score) for hit in hits] == [("three", 0.0), ("two", 0.0)]
    assert texts(operator, "", top_k=5) == ["three", "two", "one"]
    assert texts(operator, "anything", principal="nobody") == []


def test_only_readable_memories_are_found(vault: Vault) -> None:
    add(vault, "maya's tea is green", access=["bo"])
    add(vault, "maya's tea is secret")
    add(vault, "bo's tea is black", owner="bo")
    operator = MemOperator(vault)
    assert set(texts(operator, "tea", "bo")) == {"maya's tea is green", "bo's tea is black"}
    assert set(texts(operator, "tea", "maya")) == {"maya's tea is green", "maya's tea is secret"}
    assert texts(operator, "tea", "cy") == []


def test_changes_are_seen_at_once(vault: Vault) -> None:
    operator = MemOperator(vault)
    assert texts(operator, "tea") == []
    cube = add(vault, "I like tea")[0]
    assert texts(operator, "tea") == ["I like tea"]
    vault.update(cube.id, "I like mate", actor="maya")
    assert texts(operator, "mate") == ["I like mate"]
    vault.delete(cube.id, actor="maya")
    assert texts(operator, "mate") == []


def test_an_index_of_memories_without_words(vault: Vault) -> None:
    add(vault, "the", "!!!")
    assert set(texts(MemOperator(vault), "tea")) == {"the", "!!!"}


def test_expired_memories_are_not_found(vault: Vault) -> None:
    add(vault, "old tea", expires="2020-01-01")
    add(vault, "fresh tea", expires="2999-01-01")
    operator = MemOperator(vault)
    assert texts(operator, "tea") == texts(operator, "nothing at all") == ["fresh tea"]


def test_filters(vault: Vault) -> None:
    add(vault, "tea at home", tags=("home", "drink"), metadata={"run_id": "r1", "n": 1})
    add(vault, "tea at work", semantic_type="user_preference", metadata={"run_id": "r2"})
    operator = MemOperator(vault)

    def found(**filters: object) -> set[str]:
        return {hit.cube.text for hit in operator.search("maya", "tea", top_k=5, filters=filters)}

    assert found(tags="drink") == found(tags=["drink", "food"]) == found(run_id="r1", n=1) == {"tea at home"}
    assert found(semantic_type="user_preference") == found(run_id=["r2", "r3"]) == {"tea at work"}
    both = operator.search("maya", "tea", top_k=10, tags=[["drink"], ["home", "x"]])
    assert {hit.cube.text for hit in both} == {"tea at home"}
    assert operator.search("maya", "tea", top_k=10, tags=[["drink"], ["food"]]) == []
    assert found(run_id="r3") == found(missing="x") == found(tags="drink", run_id="r2") == set()
    with pytest.raises(BadInput, match="run_id"):
        found(run_id={"gte": 1})


def test_payloads_without_text_are_found_by_their_tags(vault: Vault) -> None:
    header = Header(owner="maya", tags=("cooking",))
    lora = vault.add([completed(MemCube(header, Parameter("d", "m", 8, 1.0, ("q_proj",))))], actor="maya")[0]
    assert [hit.cube.id for hit in MemOperator(vault).search("maya", "cook", top_k=3)] == [lora.id]


def test_threads_agree(vault: Vault) -> None:
    for n in range(8):
        add(vault, f"tea number {n}", owner=f"user{n}")
    operator = MemOperator(vault)
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


def test_several_principals_are_searched_as_one_memory(vault: Vault) -> None:
    add(vault, "maya's tea is green", access=["group:tea"])
    add(vault, "the group's tea is black", owner="group:tea")
    add(vault, "bo's tea is white", owner="bo")
    hits = MemOperator(vault).search(("maya", "group:tea"), "tea", top_k=10)
    assert sorted(hit.cube.text for hit in hits) == ["maya's tea is green", "the group's tea is black"]
    assert MemOperator(vault).search((), "tea", top_k=10) == []


def test_what_others_share_changes_nothing_for_a_prompt(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt asks for the caller's own: a stranger's grants cost it no reading, and weigh in no score."""
    add(vault, "I like tea", "The lake is cold", source="s")
    operator, own = MemOperator(vault), {"owner": "maya"}
    before = [(hit.cube.id, hit.score, hit.parts) for hit in operator.search("maya", "tea", top_k=5, filters=own)]
    add(vault, *("tea tea lake" for _ in range(50)), owner="bo", access=["maya"], source="s")
    loaded: list[str] = []
    load = _Reader._load

    def noted(reader: _Reader, cube_id: str) -> MemCube:
        loaded.append(cube_id)
        return load(reader, cube_id)

    monkeypatch.setattr(_Reader, "_load", noted)
    after = [(hit.cube.id, hit.score, hit.parts) for hit in operator.search("maya", "tea", top_k=5, filters=own)]
    assert before == after and len(loaded) == len(before)
    assert operator.search("maya", "tea", top_k=5, filters={**own, "fingerprint": "favourit tea"}) == []
    assert len(loaded) == len(before)


def test_what_others_store_changes_no_score(vault: Vault) -> None:
    add(vault, "I like tea", "The lake is cold", "Tea and mate")
    operator = MemOperator(vault)
    before = [(hit.cube.id, hit.score, hit.parts) for hit in operator.search("maya", "tea lake", top_k=5)]
    add(vault, *("tea tea lake" for _ in range(50)), owner="bo")
    after = [(hit.cube.id, hit.score, hit.parts) for hit in operator.search("maya", "tea lake", top_k=5)]
    assert before == after


def test_only_hot_memories_are_found_and_archived_ones_come_back(vault: Vault) -> None:
    cube = add(vault, "I like tea")[0]
    operator = MemOperator(vault)
    vault.transition(cube.id, "archived", actor="maya")
    assert texts(operator, "tea") == []
    vault.transition(cube.id, "activated", actor="maya")
    assert texts(operator, "tea") == ["I like tea"]


def test_time_windows_types_and_tags(vault: Vault) -> None:
    for day, kind in (("2023-05-07", "fact"), ("2023-06-01", "episode"), ("2023-06-30", "user_preference")):
        cube = MemCube.plaintext(f"tea on {day}", owner="maya", semantic_type=kind, tags=(kind,))  # type: ignore[arg-type]
        vault.add([MemCube(msgspec.structs.replace(cube.header, happened=day), cube.payload)], actor="maya")
    operator = MemOperator(vault)

    def found(**options: Any) -> list[str]:
        return sorted(hit.cube.text[7:] for hit in operator.search("maya", "tea", top_k=5, **options))

    assert found(window=TimeWindow("2023-06-01", "2023-06-30")) == ["2023-06-01"]
    assert found(window=TimeWindow(end="2023-06-01T00:00:00Z")) == ["2023-05-07"]
    assert found(window=TimeWindow("2023-06-01")) == ["2023-06-01", "2023-06-30"]
    assert found(types=["fact", "episode"]) == ["2023-05-07", "2023-06-01"]
    assert found(tags=[["fact"]], types=["episode"]) == []
    with pytest.raises(BadInput, match="window start"):
        TimeWindow("last week")


def test_a_question_finds_the_answer_in_the_next_turn(vault: Vault) -> None:
    turns = ["Where did you buy the violin?", "In a shop by the harbour.", "Lovely weather today.", "Indeed it is."]
    add(vault, *turns, source="session 1")
    add(vault, "A shop sells bread", "Violins are hard to play", source="session 2")
    operator = MemOperator(vault)
    hits = [hit.cube.text for hit in operator.search("maya", "Where was the violin bought?", top_k=3)]
    assert turns[1] in hits
    alone = operator.search("maya", "Where was the violin bought?", top_k=6, neighbours=False)
    assert turns[1] not in [hit.cube.text for hit in alone]


def test_neighbours_are_turns_of_the_same_owner_and_source(vault: Vault) -> None:
    add(vault, "The violin", "first", source="s")
    add(vault, "second", owner="bo", source="s", access=["maya"])
    add(vault, "third")
    assert texts(MemOperator(vault), "violin") == ["The violin", "first"]


def test_a_speaker_or_a_month_in_the_question_counts(vault: Vault) -> None:
    for speaker, day in (("Ann", "2023-05-07"), ("Bo", "2023-06-01"), ("Cy", "2022-06-03")):
        cube = MemCube.plaintext("I went hiking", owner="maya", metadata={"speaker": speaker})
        vault.add([MemCube(msgspec.structs.replace(cube.header, happened=day), cube.payload)], actor="maya")
    operator = MemOperator(vault)

    def speakers(query: str, **options: Any) -> list[object]:
        return [hit.cube.header.metadata["speaker"] for hit in operator.search("maya", query, top_k=3, **options)]

    assert speakers("When did Bo go hiking?")[0] == speakers("Bo's hiking trips")[0] == "Bo"
    assert speakers("hiking in May 2023")[0] == "Ann"
    assert speakers("hiking in June 2022")[0] == "Cy"
    assert set(speakers("hiking in June")[:2]) == {"Bo", "Cy"}
    hits = operator.search("maya", "Bo hiking in June", top_k=3, using=["lexical"])
    assert {(hit.score, hit.parts["hints"]) for hit in hits} == {(1.0, 0.0)}


def test_signals_that_are_not_there_are_refused(vault: Vault) -> None:
    operator = MemOperator(vault)
    with pytest.raises(BadInput, match="'dense'; it has lexical, neighbours, hints"):
        operator.search("maya", "tea", top_k=1, using=["lexical", "dense"])


def test_the_best_of_many_come_in_order(vault: Vault) -> None:
    add(vault, *("tea " * (1 + n % 7) + f"lake{n}" for n in range(900)))
    hits = MemOperator(vault).search("maya", "tea", top_k=800, filters={"priority": "mid"})
    scores = [hit.score for hit in hits]
    assert len({hit.cube.id for hit in hits}) == 800
    assert scores == sorted(scores, reverse=True)
    few = MemOperator(vault).search("maya", "tea", top_k=5)
    assert [hit.score for hit in few] == scores[:5]


def test_a_pasted_page_is_a_question_too(vault: Vault) -> None:
    add(vault, "I like tea", *(f"note {n} on topic{n}" for n in range(300)))
    page = " ".join(["tea", *(f"note topic{n}" for n in range(300))])
    hits = MemOperator(vault).search("maya", page, top_k=400)
    assert "I like tea" in [hit.cube.text for hit in hits]


def test_nothing_is_printed(vault: Vault, capfd: pytest.CaptureFixture[str]) -> None:
    add(vault, *(f"tea {n}" for n in range(50)))
    assert texts(MemOperator(vault), "tea", top_k=1)
    assert capfd.readouterr() == ("", "")


def test_what_happened_long_ago_is_kept_and_found(vault: Vault) -> None:
    header = Header(owner="maya", happened="0068-06-09T12:00:00", expires="2999-01-01")
    vault.add([completed(MemCube(header, Plaintext("Nero died.")))], actor="maya")
    (hit,) = MemOperator(vault).search("maya", "Nero", top_k=1, window=TimeWindow("0060-01-01", "0070-01-01T00:00:00"))
    assert hit.cube.header.happened == "0068-06-09T12:00:00.000000Z"


def test_what_no_search_can_mean_is_refused(vault: Vault) -> None:
    add(vault, "Tea.")
    for options in ({"filters": {"n": 10**400}}, {"filters": {"n": [1, -(1 << 64)]}}, {"using": ["\ud800"]}):
        with pytest.raises(BadInput) as refusal:
            MemOperator(vault).search("maya", "tea", top_k=1, **options)
        str(refusal.value).encode()
    assert MemOperator(vault).search("maya", "tea", top_k=1, filters={"n": (1 << 64) - 1}) == []


TAGS = ("health", "family")
TURNS = st.lists(
    st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), st.sets(st.sampled_from(TAGS))), max_size=8
)


@settings(max_examples=25, deadline=None)
@given(turns=TURNS, clearance=st.sets(st.sampled_from(TAGS)), query=st.lists(st.sampled_from(WORDS), min_size=1))
def test_what_a_key_is_not_cleared_for_changes_nothing(
    turns: list[tuple[list[str], set[str]]], clearance: set[str], query: list[str]
) -> None:
    """Hits, scores and parts are those of a memory that never held it: no word of it can be tested."""
    found = []
    for kept in (turns, [turn for turn in turns if turn[1] <= clearance]):
        with TemporaryDirectory() as folder, Vault.open(Path(folder) / "memory") as vault:
            for number, (words, tags) in enumerate(turns):
                header = Header(id=f"{number:032x}", owner="maya", source="s", sensitivity=tuple(tags))
                header = msgspec.structs.replace(header, created="2025-01-01", happened="2025-01-01")
                if (words, tags) in kept:
                    vault.add([completed(MemCube(header, Plaintext(" ".join(words))))], actor="maya")
            hits = MemOperator(vault).search("maya", " ".join(query), top_k=3, clearance=clearance)
            found.append([(hit.cube.id, hit.score, hit.parts) for hit in hits])
            assert vault.check() == []
    assert found[0] == found[1]


def test_a_clearance_follows_the_tags(vault: Vault) -> None:
    (cube,) = add(vault, "My medicine is in the drawer.")
    operator = MemOperator(vault)

    def seen(*clearance: str) -> bool:
        return bool(operator.search("maya", "medicine", top_k=1, clearance=clearance))

    assert seen() and seen("work")
    vault.edit(cube.id, actor="maya", sensitivity=["health", "family", "health"])
    assert not seen() and not seen("health") and seen("health", "family", "work")
    vault.edit(cube.id, actor="maya", sensitivity=["family"])
    assert seen("family") and not seen("health")
    vault.edit(cube.id, actor="maya", sensitivity=[])
    assert seen() and vault.check() == []
