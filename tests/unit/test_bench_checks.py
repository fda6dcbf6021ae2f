"""A benchmark refuses to report what is not right."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from memos_vllm import bench
from memos_vllm.bench import ttft
from memos_vllm.bench.arms import ARMS, FLOOR, REORDERED, Arm
from memos_vllm.bench.checks import HALF_PRECISION_TIE, CheckFailed, Equal, check_headers, same_answer
from memos_vllm.bench.client import Answer
from memos_vllm.bench.ttft import Memories, Trial

TEXT, NONE, HEAD, _, FULL = ARMS[3:]
MIXED = Arm("memos, spliced, mixed:0.1", "memos", repair="mixed:0.1")
CUBES = ("a1", "b2", "c3")
GREEDY = [5, 6, 7, 8, 9, 10, 11, 12]


def answer(tokens: list[int], **alternatives: float) -> Answer:
    tops = [{token: 0.0, **{int(name[1:]): value for name, value in alternatives.items()}} for token in tokens]
    return Answer([1, 2, 3], tokens, {}, tops)


def headers(spliced: int, repaired: int, **others: str) -> dict[str, str]:
    counts = {"cached": 0, "spliced": spliced, "repaired": repaired, "computed": 120}
    found = {f"x-memos-{kind}-tokens": str(count) for kind, count in counts.items()}
    return {"x-memos-cubes": ",".join(CUBES), **found, **others}


def test_equal_answers_pass() -> None:
    assert same_answer(600, answer(GREEDY), answer(GREEDY), 0.0) == Equal(600, 8, ended_at_tie=False)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_other_token_fails(place: int) -> None:
    changed = [*GREEDY[:place], 99, *GREEDY[place + 1 :]]
    for tie in (0.0, HALF_PRECISION_TIE):
        with pytest.raises(CheckFailed, match="99"):
            same_answer(600, answer(changed), answer(GREEDY), tie)


def test_a_short_answer_fails() -> None:
    with pytest.raises(CheckFailed, match="8 tokens"):
        same_answer(600, answer(GREEDY[:7]), answer(GREEDY[:7]), 0.0)


def test_a_tie_is_forgiven_in_half_precision_only() -> None:
    changed = [*GREEDY[:3], 99, *GREEDY[4:]]
    near, far = answer(GREEDY, t99=-HALF_PRECISION_TIE / 2), answer(GREEDY, t99=-HALF_PRECISION_TIE * 2)
    assert same_answer(600, answer(changed), near, HALF_PRECISION_TIE) == Equal(600, 3, ended_at_tie=True)
    for plain, tie in ((near, 0.0), (far, HALF_PRECISION_TIE)):
        with pytest.raises(CheckFailed):
            same_answer(600, answer(changed), plain, tie)


def test_headers_of_a_good_answer() -> None:
    assert check_headers(TEXT, headers(0, 0), CUBES, 600, 100) == (0, 0)
    assert check_headers(NONE, headers(615, 0), CUBES, 600, 100) == (615, 0)
    assert check_headers(HEAD, headers(583, 32), CUBES, 600, 100) == (583, 32)
    assert check_headers(FULL, headers(15, 600), CUBES, 600, 100) == (15, 600)
    assert check_headers(FULL, headers(15, 512), CUBES, 600, 100) == (15, 512)


@pytest.mark.parametrize(
    ("arm", "answered", "says"),
    [
        (TEXT, headers(100, 0), "100 tokens were spliced into a text prompt"),
        (FULL, headers(615, 0), "nothing was repaired"),
        (NONE, headers(400, 0), "only 400 tokens were spliced"),
        (NONE, headers(600, 16), "16 tokens were repaired, 0 at most"),
        (HEAD, headers(500, 100), "100 tokens were repaired, 48 at most"),
        (MIXED, headers(500, 100), "100 tokens were repaired, 60 at most"),
        (HEAD, headers(600, 0) | {"x-memos-fallback": "kv-missing"}, "fell back (kv-missing)"),
        (HEAD, headers(600, 0) | {"x-memos-cached-tokens": "32"}, "32 tokens came from the prefix cache"),
        (HEAD, headers(700, 0) | {"x-memos-computed-tokens": "20"}, "only 20 tokens were computed"),
        (HEAD, headers(600, 0) | {"x-memos-cubes": "b2,a1,c3"}, "used the memories 'b2,a1,c3'"),
        (HEAD, {}, "used the memories ''"),
    ],
)
def test_headers_of_a_bad_answer(arm: Arm, answered: dict[str, str], says: str) -> None:
    with pytest.raises(CheckFailed) as error:
        check_headers(arm, answered, CUBES, 600, 100)
    assert says in str(error.value)


def test_a_failed_check_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> NoReturn:
        raise CheckFailed("the answers differ")

    monkeypatch.setattr(ttft, "bench_ttft", fail)
    out = tmp_path / "out"
    assert bench.run(["ttft", "--model", str(tmp_path), "--out", str(out)]) == 1
    said = capfd.readouterr()
    assert said.err == "memos-vllm: check failed: the answers differ; nothing is reported\n"
    assert said.out == ""
    assert not out.exists()


def test_arms_send_one_prompt_in_different_ways() -> None:
    memories = Memories(600, {"a1": "one", "b2": "two", "c3": "three"})
    trial = Trial(memories, ("b2", "a1", "c3"), ("a1", "c3", "b2"), "Why?", "When?")
    system, user = trial.messages(trial.order, trial.query)
    assert system["content"].splitlines()[2:5] == ["- two", "- one", "- three"]
    assert trial.question == [user]
    assert trial.headers(HEAD) == {
        "x-memos-user-id": "bench-600",
        "x-memos-cubes": "b2,a1,c3",
        "x-memos-repair": "head:16",
    }
    assert {FLOOR.warm, REORDERED.warm} == {"same order", "other order"}
