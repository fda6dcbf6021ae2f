"""Sensitive content: what in a text identifies or endangers a person, found by its form and its check digits.

It finds e-mail and IP addresses, telephone and payment card numbers, IBANs, identity numbers of 29 countries, and
keys, tokens and passwords. It does not find names, postal addresses, or what a text says in words: redacted text is
safer, not anonymous.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, get_args

from phonenumbers import PhoneNumberMatcher
from stdnum import iban, luhn
from stdnum.exceptions import ValidationError

from memos_vllm.governance.national import identity_numbers

Kind = Literal["secret", "email", "iban", "payment_card", "identity_number", "ip_address", "phone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In order of precedence: where two findings overlap, the one whose kind comes first stays."""

_MANY_DIGITS = re.compile(r"\d(?:[\s().\-/]{0,3}\d){6}")


@dataclass(frozen=True)
class Finding:
    """Characters `[start, end)` of a text."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class Redacted:
    """A text with each finding replaced by `[kind]`, and how many of each kind there were."""

    text: str
    found: Mapping[str, int]


def redact(text: str, kinds: Collection[Kind] = KINDS, region: str = "US") -> Redacted:
    """The text without its sensitive content. Arguments as in `find_sensitive`."""
    findings = find_sensitive(text, kinds, region)
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], f"[{finding.kind.replace('_', ' ')}]"]
        end = finding.end
    return Redacted("".join((*parts, text[end:])), Counter(finding.kind for finding in findings))


def find_sensitive(text: str, kinds: Collection[Kind] = KINDS, region: str = "US") -> list[Finding]:
    """Every finding of these kinds, in the order of the text, without overlaps.

    region: the country (ISO 3166, two letters) whose telephone numbers are found without their country code.
    """
    plain = _with_ascii_digits(text)
    taken, kept = bytearray(len(plain)), []
    for kind in KINDS:
        if kind in kinds:
            for finding in _phones(plain, region) if kind == "phone" else _FINDERS[kind](plain):
                if taken.find(1, finding.start, finding.end) < 0:
                    taken[finding.start : finding.end] = b"\1" * (finding.end - finding.start)
                    kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def _with_ascii_digits(text: str) -> str:
    """The text with the digits of every script as 0 to 9, character by character."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(char, char)) for char in text)


_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\bmk_[0-9a-f]{12}_[\w-]{20,64}"),
    re.compile(r"\b(?:sk|pk|rk)[-_][\w-]{16,256}"),
    re.compile(r"\b(?:gh[oprsu]_\w{20,255}|github_pat_\w{20,255}|glpat-[\w-]{20,64}|hf_[A-Za-z0-9]{20,64})"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\bAIza[\w-]{30,45}"),
    re.compile(r"\bxox[abeoprs]-[\w-]{10,255}"),
    re.compile(r"\beyJ[\w-]{8,4096}\.eyJ[\w-]{8,8192}\.[\w-]{8,2048}"),
    re.compile(r"://[^\s/:@]{1,256}:(?!\[secret\])(?P<value>[^\s/@]{1,256})@"),
    re.compile(r"\bbearer\s{1,4}(?P<value>[\w.~+/-]{12,4096}=*)", re.IGNORECASE),
    re.compile(
        r"\b(?:password|passwd|passphrase|pwd|secret|api[ _-]?key|access[ _-]?token|pin code|pin)"
        r"(?:\s{0,4}[:=]\s{0,4}|\s{1,4}is\s{1,4})(?!\[secret\])(?P<value>\"[^\"\n]{1,256}\"|'[^'\n]{1,256}'|[^\s,;]{3,256})",
        re.IGNORECASE,
    ),
)
"""The group `value`, where there is one, is what to remove."""

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")


def _secrets(text: str) -> Iterator[Finding]:
    for pattern in _SECRETS:
        for match in pattern.finditer(text):
            start, end = match.span("value") if "value" in pattern.groupindex else match.span()
            yield Finding("secret", start, end)


def _emails(text: str) -> Iterator[Finding]:
    return (Finding("email", *match.span()) for match in _EMAIL.finditer(text))


def _cards(text: str) -> Iterator[Finding]:
    for match in _CARD.finditer(text):
        digits = re.sub("[ -]", "", match[0])
        if digits[0] in "23456" and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield Finding("payment_card", *match.span())


def _ibans(text: str) -> Iterator[Finding]:
    """What follows an IBAN may look like more of it: the longest valid beginning counts."""
    for match in _IBAN.finditer(text):
        candidate = match[0]
        while candidate:
            if _is_iban(candidate):
                yield Finding("iban", match.start(), match.start() + len(candidate))
                break
            candidate = candidate.rpartition(" ")[0]


def _is_iban(text: str) -> bool:
    try:
        iban.validate(text, check_country=False)
    except ValidationError:
        return False
    return True


def _identity_numbers(text: str) -> Iterator[Finding]:
    return (Finding("identity_number", *span) for span in identity_numbers(text))


def _addresses(text: str) -> Iterator[Finding]:
    """IP addresses that are somebody's: not loopback, not unspecified, not `a::b`, which is rather a name in code."""
    for match in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        try:
            address = ip_address(match[0])
        except ValueError:
            continue
        if not address.is_loopback and not address.is_unspecified and any(map(str.isdigit, match[0])):
            yield Finding("ip_address", *match.span())


def _phones(text: str, region: str) -> Iterator[Finding]:
    if _MANY_DIGITS.search(text):
        yield from (Finding("phone", match.start, match.end) for match in PhoneNumberMatcher(text, region))


_FINDERS: Mapping[Kind, Callable[[str], Iterator[Finding]]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "payment_card": _cards,
    "identity_number": _identity_numbers,
    "ip_address": _addresses,
}
