"""`memos-vllm bench retrieval`: what it reads, what it counts, what it refuses and what it leaves behind."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.options import read_options
from memos_vllm.bench.retrieval import ARMS, check_ingested, server_flags
from memos_vllm.bench.retrieval_data import Conversation, read_conversations, sessions_of
from memos_vllm.bench.retrieval_options import RetrievalOptions
from memos_vllm.bench.retrieval_report import Ingest, RetrievalReport, print_retrieval, write_retrieval
from memos_vllm.bench.retrieval_stats import ALL, BUDGETS, TOP_K, Asked, summarise_retrieval
from memos_vllm.errors import StartError
from tests.unit.bench_cases import MACHINE
from tests.unit.retrieval_cases import write_data

LOCOMO = Path(__file__).parents[3] / "shared" / "data" / "locomo" / "locomo_dev.json"


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    (found,) = read_conversations(write_data(tmp_path / "data.json"))
    return found


def options(tmp_path: Path, *words: str) -> RetrievalOptions:
    data = write_data(tmp_path / "data.json", "garden", "workshop")
    read = read_options(["retrieval", "--data", str(data), "--out", str(tmp_path / "out"), *words])
    assert isinstance(read, RetrievalOptions)
    return read


def test_turns_carry_speaker_session_date_and_caption(conversation: Conversation) -> None:
    assert len(conversation.turns) == 9
    last = conversation.turns[3]
    assert (last.id, last.session, last.speaker, last.at) == ("D1:4", 1, "Bruno", "2024-03-03T09:05:00+00:00")
    assert last.parts == ("Please do. Look what grew meanwhile.", "a bowl of yellow quinces")
    assert conversation.turns[4].at == "2024-04-21T12:40:00+00:00"


def test_evidence_is_every_id_that_a_turn_has(conversation: Conversation) -> None:
    assert [question.evidence for question in conversation.questions] == [("D1:3", "D1:4"), ("D2:1",), ("D2:2",)]
    assert [question.category for question in conversation.questions] == ["multi-hop", "temporal", "single-hop"]
    assert (conversation.unanswerable, conversation.unknown) == (1, 1)


@pytest.mark.parametrize("text", ["[", "{}", "[{}]", '[{"sample_id": "a", "conversation": {}, "qa": []}]', "[3]"])
def test_other_data_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(StartError, match="--data"):
        read_conversations(path)
    with pytest.raises(StartError, match="cannot be read"):
        read_conversations(tmp_path / "missing.json")


def test_chunks_never_span_sessions(conversation: Conversation) -> None:
    for size, shape in ((1, [4, 5]), (2, [2, 3]), (4, [1, 2]), (8, [1, 1])):
        sessions = sessions_of(conversation.turns, size)
        assert [len(session) for session in sessions] == shape
        turns = [turn for session in sessions for chunk in session for turn in chunk.turns]
        assert turns == list(conversation.turns)
    one, two = sessions_of(conversation.turns, 1)[0][3], sessions_of(conversation.turns, 2)[0][1]
    assert one.text == "Please do. Look what grew meanwhile.\na bowl of yellow quinces"
    assert two.text == (
        "Ines: I could lend you my clamps.\nBruno: Please do. Look what grew meanwhile. a bowl of yellow quinces"
    )


def asked(ranks: tuple[int | None, ...], chunk: int = 1, arm: str = "lexical", category: str = "temporal") -> Asked:
    return Asked(arm, chunk, "garden", category, 0, ranks, 0.001)


def test_recall_is_the_share_of_evidence_found() -> None:
    one = asked((3, None, 11, 10))
    assert [one.recall(k) for k in (2, 3, 10, 11, 100)] == [0.0, 0.25, 0.5, 0.75, 0.75]
    assert one.reciprocal == pytest.approx(1 / 3)
    assert asked((None,)).reciprocal == 0.0


def test_rows_are_means_over_questions() -> None:
    rows = summarise_retrieval([asked((1,)), asked((None, 4), category="single-hop"), asked((5,), chunk=8)])
    assert [(row.arm, row.chunk, row.category, row.conversation) for row in rows] == [
        ("lexical", 1, ALL, ALL),
        ("lexical", 1, "single-hop", ALL),
        ("lexical", 1, "temporal", ALL),
        ("lexical", 1, ALL, "garden"),
        ("lexical", 8, ALL, ALL),
        ("lexical", 8, "temporal", ALL),
        ("lexical", 8, ALL, "garden"),
    ]
    assert rows[0].recall(3) == 0.5
    assert rows[0].recall(5) == 0.75
    assert rows[0].mrr == pytest.approx((1 + 1 / 4) / 2)
    # 40 turns are five memories of eight, 16 are two.
    assert dict(zip(BUDGETS, rows[4].budgets, strict=True)) == {16: 0.0, 40: 1.0}


def test_what_is_not_stored_fails_the_check(conversation: Conversation) -> None:
    placed = {turn.id: f"m{place}" for place, turn in enumerate(conversation.turns)}
    texts = {f"m{place}": " ".join(turn.parts) for place, turn in enumerate(conversation.turns)}
    check_ingested(conversation, "garden-1", placed, texts, dict(texts))
    with pytest.raises(CheckFailed, match="1 turns of garden-1 were not ingested, D1:3 first"):
        check_ingested(conversation, "garden-1", {k: v for k, v in placed.items() if k != "D1:3"}, texts, texts)
    with pytest.raises(CheckFailed, match="of 9 memories of garden-1 the server holds 8; 1 miss or differ"):
        check_ingested(conversation, "garden-1", placed, texts, {k: v for k, v in texts.items() if k != "m2"})
    with pytest.raises(CheckFailed, match="holds 9; 1 miss or differ"):
        check_ingested(conversation, "garden-1", placed, texts, {**texts, "m2": "another text"})
    with pytest.raises(CheckFailed, match="holds 10; 0 miss or differ"):
        check_ingested(conversation, "garden-1", placed, texts, {**texts, "m10": "a text too many"})


def test_options(tmp_path: Path) -> None:
    read = options(tmp_path, "--embedder", "/models/MiniLM", "--chunks", "1,4", "--", "--max-num-seqs", "2")
    assert read.command == (
        "memos-vllm bench retrieval --data data.json --embedder MiniLM --chunks 1,4 -- --max-num-seqs 2"
    )
    flags = server_flags(read, tmp_path)
    assert set(flags) == {"words", "vectors"}
    assert flags["vectors"][-4:] == ["--memory-embedder", "/models/MiniLM", "--max-num-seqs", "2"]
    assert set(server_flags(options(tmp_path, "--embedder", "none"), tmp_path)) == {"words"}
    for words in (["--chunks", "2,4"], ["--chunks", "1,17"]):
        with pytest.raises(StartError, match="--chunks"):
            options(tmp_path, *words)


def made_report(tmp_path: Path) -> RetrievalReport:
    read = options(tmp_path, "--embedder", "/models/MiniLM", "--chunks", "1,2")
    conversations = read_conversations(read.data)
    found = [
        Asked(arm.name, chunk, conversation.name, question.category, number, (place + number + 1,), 0.002)
        for chunk in read.chunks
        for place, arm in enumerate(ARMS)
        if chunk == 1 or arm.whole
        for conversation in conversations
        for number, question in enumerate(conversation.questions)
    ]
    ingests = [Ingest("words", 1, 18, 0.5, 0.0), Ingest("vectors", 1, 18, 0.5, 2.0)]
    return RetrievalReport(read, MACHINE, conversations, ingests, found, summarise_retrieval(found))


def test_files_hold_figures_and_no_text(tmp_path: Path) -> None:
    report = made_report(tmp_path)
    write_retrieval(report, report.options.out)
    text = (report.options.out / "retrieval.json").read_text()
    told = json.loads(text)
    assert told["checks"] == {"turns stored word for word": 18, "questions with all evidence stored": 6}
    assert told["conversations"][0]["questions_without_evidence"] == 1
    assert len(told["asked"]) == 6 * (len(ARMS) + 2)
    for secret in ("clamps", "greenhouse", "Ines", "D2:1", str(tmp_path), "/models"):
        assert secret not in text
    with (report.options.out / "retrieval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.rows)
    assert [float(rows[0][f"recall_{k}"]) for k in TOP_K] == pytest.approx(list(report.rows[0].recalls), abs=1e-6)
    assert (report.options.out / "retrieval.png").read_bytes().startswith(b"\x89PNG")


def test_tables_name_every_arm_category_and_size(tmp_path: Path) -> None:
    report, text = made_report(tmp_path), io.StringIO()
    print_retrieval(report, Console(file=text, width=160))
    shown = text.getvalue()
    for word in (*(arm.name for arm in ARMS), "multi-hop", "single-hop", "temporal", "turns read", "dense: MiniLM"):
        assert word in shown
    assert "2 conversations, 18 turns, 6 questions" in shown
    assert "2 questions without evidence left out" in shown


@pytest.mark.skipif(not LOCOMO.exists(), reason="LoCoMo is not there; its licence keeps it out of this project")
def test_locomo_is_read_whole() -> None:
    conversations = read_conversations(LOCOMO)
    assert len(conversations) == 5
    assert sum(len(conversation.turns) for conversation in conversations) == 2760
    assert sum(len(conversation.questions) + conversation.unanswerable for conversation in conversations) == 999
    assert {question.category for conversation in conversations for question in conversation.questions} == {
        "multi-hop", "temporal", "open-domain", "single-hop", "adversarial",
    }  # fmt: skip
