import threading

import pytest

from memos_vllm.cube import Header, MemCube, Parameter
from memos_vllm.vault.words import text_of, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("She was running; they ran.", ["run", "ran"]),
        ("Don't you like HOME?", ["like", "home"]),
        ("ﬁancé_2", ["fiancé", "2"]),
        ("", []),
        ("the of and", []),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー", "東京", "京タ", "タワ", "ワー"]),
        ("I saw 東京 twice", ["saw", "twice", "東", "京", "東京"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert list(words_of(text)) == words


def test_threads_read_alike() -> None:
    text = " ".join(f"running{n} houses{n}" for n in range(500))
    expected = list(words_of(text))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(list(words_of(text)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_what_is_read_of_a_cube() -> None:
    adapter = Parameter("d", "m", 8, 1.0, ("q_proj",))
    assert text_of(MemCube.plaintext("Tea at four", owner="maya")) == "Tea at four"
    assert text_of(MemCube(Header(tags=("cook", "bake"), fingerprint="bread"), adapter)) == "cook bake bread"
    assert text_of(MemCube(Header(), adapter)) == ""
