"""Identity numbers by country: how they are written, and python-stdnum's test of their check digits.

Numbers that are nothing but digits are common, and one in ten or so passes a check digit by chance: those count only
behind a word that announces an identity number.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from stdnum.at import vnr
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ch_ssn
from stdnum.cl import rut
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr as de_idnr
from stdnum.dk import cpr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.gr import amka
from stdnum.ie import pps
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.pt import cc
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.tr import tckimlik
from stdnum.us import itin, ssn
from stdnum.za import idnr as za_idnr

ANNOUNCEMENT = re.compile(
    r"\b(?:ssn|social security|social insurance|sin|national (?:id|insurance|number)|identity|identification|"
    r"id (?:card|number|no)|id|personal (?:number|code)|tax (?:id|number)|tin|passport|nhs|steuer[\w-]{0,20}|idnr|bsn|"
    r"burgerservicenummer|pesel|cpr|personnummer|fødselsnummer|fodselsnummer|amka|αμκα|cnp|tckn|kimlik|"
    r"sozial[\w-]{0,30}|rodné číslo|aadhaar|cpf|nif|nir|dni)\b",
    re.IGNORECASE,
)
_REACH = 30
_LONGEST = 30
"""Characters from an announcement to its number, and of a number."""


@dataclass(frozen=True)
class IdentityNumber:
    """One country's number. validator: a module of stdnum, None where the form is proof enough."""

    pattern: re.Pattern[str]
    validator: ModuleType | None

    def is_valid(self, text: str) -> bool:
        return self.validator is None or bool(self.validator.is_valid(text))


def identity_numbers(text: str) -> Iterator[tuple[int, int]]:
    """`[start, end)` of every identity number in a text; some may overlap."""
    for number in DISTINCT:
        yield from (match.span() for match in number.pattern.finditer(text) if number.is_valid(match[0]))
    for announcement in ANNOUNCEMENT.finditer(text):
        yield from _announced(text, announcement.end())


def _announced(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Spans of what may be the number that was announced just before `start`, on the same line."""
    for number in ANNOUNCED:
        match = number.pattern.search(text, start, start + _REACH + _LONGEST)
        if match is None or match.start() > start + _REACH or "\n" in text[start : match.start()]:
            continue
        if number.is_valid(match[0]):
            yield match.span()


def _written(form: str, validator: ModuleType | None) -> IdentityNumber:
    return IdentityNumber(re.compile(rf"(?<![\w-]){form}(?![\w-])", re.IGNORECASE), validator)


def _digits(count: int, *validators: ModuleType) -> tuple[IdentityNumber, ...]:
    """Numbers of so many digits, which may stand in groups."""
    return tuple(_written(rf"\d(?:[ -]?\d){{{count - 1}}}", validator) for validator in validators)


DISTINCT: tuple[IdentityNumber, ...] = (
    _written(r"\d{3}-\d{2}-\d{4}", ssn),
    _written(r"9\d{2}-\d{2}-\d{4}", itin),
    _written(r"(?!bg|gb|nk|kn|tn|nt|zz)[a-ceghj-prstw-z][a-ceghj-nprstw-z] ?\d{2} ?\d{2} ?\d{2} ?[a-d]", None),
    _written(r"[12] ?\d{2} ?\d{2} ?\d[\dab] ?\d{3} ?\d{3} ?\d{2}", nir),
    _written(r"\d{8}-?[a-z]", dni),
    _written(r"[xyz]-?\d{7}-?[a-z]", nie),
    _written(r"[a-z]{6}\d{2}[a-ehlmpr-t]\d{2}[a-z]\d{3}[a-z]", codicefiscale),
    _written(r"\d{8} ?\d ?[a-z]{2}\d", cc),
    _written(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", nn),
    _written(r"756\.\d{4}\.\d{4}\.\d{2}", ch_ssn),
    _written(r"\d{6}[-+a-fu-y]\d{3}[0-9a-y]", hetu),
    _written(r"(?:\d{2})?\d{6}[-+]\d{4}", personnummer),
    _written(r"\d{6}-\d{4}", cpr),
    _written(r"\d{6}/\d{3,4}", rc),
    _written(r"\d{7}[a-w][a-iw]?", pps),
    _written(r"\d{3}\.\d{3}\.\d{3}-\d{2}", cpf),
    _written(r"[a-z]{4}\d{6}[hm][a-z]{5}[0-9a-z]\d", curp),
    _written(r"\d{1,2}\.\d{3}\.\d{3}-[\dk]", rut),
    _written(r"[a-z]{3}[abcfghljpt][a-z]\d{4}[a-z]", pan),
    _written(r"[2-9]\d{3} \d{4} \d{4}", aadhaar),
    _written(r"\d{6}-\d{7}", rrn),
    _written(r"\d{17}[\dx]", ric),
)

ANNOUNCED: tuple[IdentityNumber, ...] = (
    *_digits(9, ssn, bsn, sin),
    *_digits(10, vnr, nhs),
    *_digits(11, de_idnr, pesel, fodselsnummer, amka, tckimlik, cpf),
    *_digits(12, aadhaar),
    *_digits(13, cnp, za_idnr),
)
