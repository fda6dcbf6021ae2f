"""The audit log: what it tells, that a change of it is found, and that forgotten names are gone from it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memos_vllm.cube import Scalar, new_id
from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.vault import audit, chain, pseudonyms
from memos_vllm.vault.audit import LogEntry, LogQuery
from memos_vllm.vault.env import Environment, Txn
from tests.unit.vault_cases import TINY_MAP

CUBE = new_id()


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    env = Environment(tmp_path, readonly=False, map_bytes=TINY_MAP, max_bytes=None)
    yield env
    env.close()


def fill(env: Environment, entries: int) -> None:
    def work(txn: Txn) -> None:
        for n in range(entries):
            names = ("maya", "bo", "cy")
            audit.append(txn, actor=names[n % 3], action=("add", "update")[n % 2], target=CUBE, owner=names[n % 2])

    env.write(work)


def log(env: Environment, wanted: LogQuery | None = None) -> list[LogEntry]:
    return env.read(lambda txn: audit.query(txn, wanted or LogQuery()))[0]


def problems(env: Environment, anchor: str = "") -> list[str]:
    return list(chain.problems(env.read, anchor))


def everything(env: Environment) -> bytes:
    """Every key and value of the log's databases."""

    def work(txn: Txn) -> bytes:
        names = ("audit", "audit_owners", "pseudonyms", "names", "meta")
        return b"".join(key + value for name in names for key, value in txn.scan(name))

    return env.read(work)


def test_entries_come_back_as_they_were_written(env: Environment) -> None:
    detail: dict[str, Scalar] = {"from": 1, "to": 2, "how": "append", "kept": None, "share": 0.5, "all": True}
    env.write(
        lambda txn: audit.append(
            txn, actor="bo", action="grant", target=CUBE, owner="maya", principals=["cy", "group:team"], detail=detail
        )
    )
    env.write(lambda txn: audit.append(txn, actor="maya", action="snapshot", target="before the move", owner="maya"))
    first, second = log(env)
    assert (first.seq, first.actor, first.action, first.target, first.owner) == (1, "bo", "grant", CUBE, "maya")
    assert first.principals == ("cy", "group:team") and first.detail == detail
    assert second.target == "before the move" and second.detail == {} and second.at >= first.at
    assert problems(env) == []
    assert str(env.read(audit.head_of)) == f"2:{second.hash}"


def test_an_empty_log_is_sound(env: Environment) -> None:
    assert log(env) == [] and problems(env) == [] and problems(env, f"0:{'0' * 64}") == []


def test_an_entry_goes_with_its_transaction(env: Environment) -> None:
    def work(txn: Txn) -> None:
        audit.append(txn, actor="bo", action="add", target=CUBE)
        raise KeyError

    with pytest.raises(KeyError):
        env.write(work)
    assert log(env) == []


def test_details_are_no_content(env: Environment) -> None:
    with pytest.raises(BadInput, match="128"):
        env.write(lambda txn: audit.append(txn, actor="bo", action="add", detail={"text": "x" * 129}))


Tampering = Callable[[Txn, int], None]


def key(seq: int) -> bytes:
    return seq.to_bytes(8)


def _row(txn: Txn, seq: int) -> bytes:
    stored = txn.get("audit", key(seq))
    assert stored is not None
    return stored


def flip(txn: Txn, seq: int) -> None:
    stored = _row(txn, seq)
    txn.put("audit", key(seq), stored[:-1] + bytes([stored[-1] ^ 1]))


def flip_hash(txn: Txn, seq: int) -> None:
    stored = _row(txn, seq)
    txn.put("audit", key(seq), bytes([stored[0] ^ 1]) + stored[1:])


def rewrite(txn: Txn, seq: int) -> None:
    """A change by someone who knows how hashes are made, of one entry."""
    row = msgspec.msgpack.decode(_row(txn, seq)[32:], type=audit.Row)
    body = msgspec.msgpack.encode(msgspec.structs.replace(row, action="nothing"))
    txn.put("audit", key(seq), audit.hash_of(body) + body)


def remove(txn: Txn, seq: int) -> None:
    txn.delete("audit", key(seq))


def swap(txn: Txn, seq: int) -> None:
    other = 1 if seq > 1 else 2
    first, second = _row(txn, seq), _row(txn, other)
    txn.put("audit", key(seq), second)
    txn.put("audit", key(other), first)


def cut(txn: Txn, seq: int) -> None:
    for row, _ in list(txn.scan("audit", after=key(seq - 1))):
        txn.delete("audit", row)


def garble(txn: Txn, seq: int) -> None:
    """Bytes that are no entry, with their right hash."""
    txn.put("audit", key(seq), audit.hash_of(b"?") + b"?")


@pytest.mark.parametrize("tamper", [flip, flip_hash, rewrite, remove, swap, cut, garble])
@pytest.mark.parametrize("seq", [1, 4, 9])
def test_tampering_is_found(env: Environment, tamper: Tampering, seq: int) -> None:
    fill(env, 9)
    assert problems(env) == []
    env.write(lambda txn: tamper(txn, seq))
    found = problems(env)
    assert found, tamper
    named: dict[Tampering, str] = {
        flip: "changed",
        flip_hash: "changed",
        remove: "missing",
        cut: "missing",
        swap: "moved",
    }
    assert any(named.get(tamper, "") in line for line in found), found


def test_a_head_that_was_set_back_is_found(env: Environment) -> None:
    fill(env, 3)
    before = env.read(lambda txn: txn.get("meta", audit.HEAD))
    fill(env, 1)
    env.write(lambda txn: txn.put("meta", audit.HEAD, before or b""))
    assert problems(env)


def test_a_log_written_anew_is_told_by_an_anchor(env: Environment) -> None:
    fill(env, 5)
    anchor = str(env.read(audit.head_of))
    fill(env, 2)
    assert problems(env, anchor) == []

    def anew(txn: Txn) -> None:
        for database in ("audit", "audit_owners", "meta"):
            txn.clear(database)

    env.write(anew)
    fill(env, 7)
    assert problems(env) == []
    assert problems(env, anchor) == ["audit entry 5: differs from the anchor, the log was written anew"]
    for malformed in ("5", f"{'9' * 60}:{'0' * 64}", f"{2**64}:{'0' * 64}"):
        with pytest.raises(BadInput, match="anchor"):
            problems(env, malformed)


def test_a_missing_row_of_the_owners_index_is_found(env: Environment) -> None:
    fill(env, 4)
    rows = env.read(lambda txn: [key for key, _ in txn.scan("audit_owners")])
    env.write(lambda txn: txn.delete("audit_owners", rows[0]))
    assert problems(env) == [f"audit_owners: no row for entry {int.from_bytes(rows[0][16:])}"]
    env.write(lambda txn: txn.put("audit_owners", rows[0]))
    env.write(lambda txn: txn.put("audit_owners", bytes(24)))
    assert problems(env) == ["audit_owners: 1 rows without an entry"]


def test_a_damaged_entry_is_no_answer(env: Environment) -> None:
    fill(env, 3)
    env.write(lambda txn: garble(txn, 2))
    with pytest.raises(VaultUnavailable, match="entry 2"):
        log(env)
    env.write(lambda txn: remove(txn, 2))
    with pytest.raises(VaultUnavailable, match="entry 2"):
        log(env)


def test_forgotten_names_are_gone_and_the_chain_holds(env: Environment) -> None:
    def work(txn: Txn) -> None:
        audit.append(txn, actor="maya", action="add", target=CUBE, owner="maya")
        audit.append(txn, actor="bo", action="grant", target=CUBE, owner="bo", principals=["maya"])
        audit.append(txn, actor="maya", action="snapshot", target="trip to Oslo", owner="maya")
        audit.append(txn, actor="ops", action="quota.put", target="maya")
        audit.append(txn, actor="ops", action="forget", target="maya", owner="maya")

    env.write(work)
    assert b"maya" in everything(env) and env.read(lambda txn: pseudonyms.bearing(txn, "maya")) > 0
    before = [entry.hash for entry in log(env)]
    assert env.write(lambda txn: pseudonyms.forget(txn, "maya")) == 4
    assert b"maya" not in everything(env) and b"Oslo" not in everything(env)
    assert env.read(lambda txn: pseudonyms.bearing(txn, "maya")) == 0
    assert problems(env) == [] and [entry.hash for entry in log(env)] == before
    first, second, third, fourth, last = log(env)
    assert first.actor == first.owner == third.owner == last.owner and first.actor.startswith("forgotten:")
    assert second.actor == "bo" and second.principals == (first.actor,)
    assert third.target.startswith("forgotten:") and fourth.target.startswith("forgotten:")
    assert log(env, LogQuery(owner="maya")) == []


def test_a_name_that_was_changed_is_found(env: Environment) -> None:
    """Who did it is in the chain by a pseudonym, which only the right name makes."""
    fill(env, 4)
    assert problems(env) == []
    kept = env.read(lambda txn: dict(txn.scan("names")))
    (one, held), (other, theirs) = list(kept.items())[:2]

    def swap(txn: Txn) -> None:
        txn.put("names", one, theirs)
        txn.put("names", other, held)

    env.write(swap)
    assert sorted(problems(env)) == sorted(
        f"names {pseudonym.hex()}: changed, it does not make its pseudonym" for pseudonym in (one, other)
    )
    env.write(lambda txn: txn.put_dups("names", list(kept.items())))
    env.write(lambda txn: txn.put("names", one, kept[one][:-1] + b"?"))
    assert problems(env) == [f"names {one.hex()}: changed, it does not make its pseudonym"]
    env.write(lambda txn: txn.delete("names", one))
    assert problems(env) == [f"names {one.hex()}: missing"]
    env.write(lambda txn: txn.put("names", one, kept[one]))
    env.write(lambda txn: txn.put("names", bytes(16), kept[one]))
    assert problems(env) == ["names: 1 rows without a pseudonym"]


def test_someone_who_comes_back_is_someone_else(env: Environment) -> None:
    fill(env, 4)
    env.write(lambda txn: pseudonyms.forget(txn, "maya"))
    fill(env, 1)
    assert [entry.seq for entry in log(env, LogQuery(actor="maya"))] == [5]
    assert problems(env) == []


QUERIES = st.builds(
    LogQuery,
    actor=st.sampled_from(["", "maya", "bo", "nobody"]),
    owner=st.sampled_from(["", "", "maya", "bo", "cy"]),
    action=st.sampled_from(["", "add", "update"]),
    target=st.sampled_from(["", CUBE, "other"]),
    after=st.integers(0, 12),
    before=st.sampled_from([0, 0, 1, 5, 30]),
    limit=st.integers(1, 8),
    newest_first=st.booleans(),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(query=QUERIES, times=st.tuples(st.integers(0, 11), st.integers(0, 11)))
def test_a_query_answers_as_a_filter_would(env: Environment, query: LogQuery, times: tuple[int, int]) -> None:
    if not log(env):
        for _ in range(2):
            fill(env, 5)
    whole = log(env)
    since, until = ("" if n > 9 else whole[n].at for n in times)
    query = msgspec.structs.replace(query, since=since, until=until)
    wanted = [entry for entry in whole if _matches(entry, query)]
    wanted = wanted[::-1] if query.newest_first else wanted
    assert log(env, query) == wanted[: query.limit]


def _matches(entry: LogEntry, query: LogQuery) -> bool:
    names = ("actor", "owner", "action", "target")
    return (
        all(getattr(query, name) in ("", getattr(entry, name)) for name in names)
        and entry.seq > query.after
        and (not query.before or entry.seq < query.before)
        and (not query.since or entry.at >= query.since)
        and (not query.until or entry.at < query.until)
    )


def test_a_query_without_a_limit_of_one_or_more_is_refused(env: Environment) -> None:
    with pytest.raises(BadInput):
        log(env, LogQuery(limit=0))


class Counting(Txn):
    """Counts the rows that are read one by one."""

    def __init__(self, txn: Txn) -> None:
        super().__init__(txn._txn, txn._databases)
        self.reads = 0

    def get(self, database: str, key: bytes) -> bytes | None:
        self.reads += database == "audit"
        return super().get(database, key)


def test_an_owners_query_reads_what_is_theirs(env: Environment) -> None:
    fill(env, 500)
    env.write(lambda txn: audit.append(txn, actor="di", action="add", target=CUBE, owner="di"))
    fill(env, 500)

    def reads(txn: Txn) -> int:
        counting = Counting(txn)
        assert len(audit.query(counting, LogQuery(owner="di"))[0]) == 1
        return counting.reads

    assert env.read(reads) <= 2
