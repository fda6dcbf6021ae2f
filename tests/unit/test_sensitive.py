"""What is found in texts, what is not, and that no text makes the search slow. All numbers here are made up."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.governance.sensitive import KINDS, Kind, find_sensitive, redact

FOUND: list[tuple[Kind, str, str]] = [
    ("email", "Write to {} soon.", "maya.lee+news@mail.example.org"),
    ("email", "{}", "jürgen@bäckerei.example"),
    ("phone", "Call {} after six.", "+351 912 345 678"),
    ("phone", "Call {}, please.", "(415) 555-2671"),
    ("payment_card", "My card is {}.", "4111 1111 1111 1111"),
    ("payment_card", "card {}", "378282246310005"),
    ("payment_card", "It is {} until May.", "5555-5555-5555-4444"),
    ("iban", "Pay to {} today", "DE89 3704 0044 0532 0130 00"),
    ("iban", "IBAN {} AND SOON", "GB82 WEST 1234 5698 7654 32"),
    ("iban", "{}", "FR1420041010050500013M02606"),
    ("ip_address", "from {}, at noon", "203.0.113.9"),
    ("ip_address", "from {} at noon", "2001:db8::8a2e:370:7334"),
    ("identity_number", "SSN {}.", "536-90-4399"),
    ("identity_number", "NI {}.", "AB 12 34 56 C"),
    ("identity_number", "El DNI {} es mío.", "54362315K"),
    ("identity_number", "CF {}", "RCCMNL83S18D969H"),
    ("identity_number", "CPF {}", "390.533.447-05"),
    ("identity_number", "Meine Steuernummer lautet {}.", "36574261809"),
    ("identity_number", "mijn BSN is {}", "111222333"),
    ("identity_number", "PESEL: {}", "44051401359"),
    ("identity_number", "hetu {}", "131052-308T"),
    ("identity_number", "NHS number {}", "943 476 5870"),
    ("secret", "key {} here", "sk-Abcdefghijklmnop0123456789"),
    ("secret", "{}", "mk_0123456789ab_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ"),
    ("secret", "token {}!", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    ("secret", "{}", "AKIAABCDEFGHIJKLMNOP"),
    ("secret", "{}.", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlLW9mLWl0"),
    ("secret", "password: {}, ok?", "hunter22"),
    ("secret", "My password is {}", "correct-horse"),
    ("secret", 'api_key="x" and api_key = {}', '"a b c"'),
    ("secret", "postgres://maya:{}@db.example/x", "s3cret"),
    ("secret", "Authorization: Bearer {}", "abcdef0123456789"),
    ("secret", "{}", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----"),
]

NOT_FOUND = [
    "On 2024-05-01 at 12:30:45 I paid 1,234.56 euros.",
    "Order 1234567890123456 came.",  # no check digit
    "The card 4111 1111 1111 1112 was refused.",
    "Version 1.2.3 of std::vector and a::b; see 127.0.0.1 and ::1.",
    "The id 0198c0de7a1b7c3d9e5f6a7b8c9d0e1f is a memory's.",
    "She was born in 1987, I in 1990; we are 2 of 11 people at table 42.",
    "111222333 people",  # a valid BSN, but nothing says that it is one
    "maya@ home, @maya, a@b",
    "I secretly like tea. The secret garden is open.",
    "DE00 3704 0044 0532 0130 00",
    "000-12-3456 and 666-12-3456",
    "",
]


@pytest.mark.parametrize(("kind", "text", "value"), FOUND)
def test_found(kind: Kind, text: str, value: str) -> None:
    full = text.format(value)
    start = full.rindex(value)
    hits = [(hit.kind, hit.start, hit.end) for hit in find_sensitive(full) if hit.start >= start]
    assert hits == [(kind, start, start + len(value))]
    assert value not in redact(full).text and f"[{kind.replace('_', ' ')}]" in redact(full).text


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text: str) -> None:
    assert find_sensitive(text) == []
    assert redact(text).text == text


def test_digits_of_other_scripts() -> None:
    assert redact("بطاقة ٤١١١ ١١١١ ١١١١ ١١١١ هنا").text == "بطاقة [payment card] هنا"


def test_only_the_kinds_asked_for() -> None:
    text = "Mail maya@example.org or call +351 912 345 678."
    assert redact(text, ["phone"]).text == "Mail maya@example.org or call [phone]."
    assert redact(text).found == {"email": 1, "phone": 1}


def test_numbers_without_a_country_are_those_of_the_region() -> None:
    text = "Ruf 030 901820 an."
    assert find_sensitive(text) == []
    assert [hit.kind for hit in find_sensitive(text, region="DE")] == ["phone"]


PIECES = st.sampled_from(
    [value for _, _, value in FOUND] + ["tea", "4111", " ", ", ", "\n", "id ", "password: ", "é", "1"]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=80))
def test_findings_are_in_order_and_apart_and_a_redacted_text_is_the_rest(text: str) -> None:
    hits = find_sensitive(text)
    assert all(hit.kind in KINDS and 0 <= hit.start < hit.end <= len(text) for hit in hits)
    assert all(one.end <= other.start for one, other in pairwise(hits))
    redacted = redact(text)
    assert sum(redacted.found.values()) == len(hits)
    ends = [0, *(hit.end for hit in hits)]
    starts = [*(hit.start for hit in hits), len(text)]
    assert all(text[end:start] in redacted.text for end, start in zip(ends, starts, strict=True))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1",
        "1 ",
        "a.",
        "password ",
        "AB12 ",
        "AB12" + "C" * 60 + " ",
        "AB12 CCCC 3",
        ":a",
        "1.",
        "://a:",
        "eyJ",
        "-----BEGIN PRIVATE KEY-----",
        "id 1 ",
        "a@",
    ],
)
def test_no_text_makes_it_slow(piece: str) -> None:
    text = piece * (2**16 // len(piece))
    began = time.process_time()
    find_sensitive(text)
    assert time.process_time() - began < 5.0
