"""A watermark in exported text: characters that nobody sees tell which export a copy was made from.

A mark is 33 characters of zero width: a frame and 64 bits, of which 32 are the export's number and 32 a keyed checksum.
It stands at the end of words, again and again, so that an excerpt of about SPACING characters holds one.

It survives copying, files, mails and most web pages. It does not survive retyping, screenshots, translation, a model's
paraphrase, or anybody who removes invisible characters (`strip` does): it finds leaks by the careless, and proves
nothing against the careful. Who has a marked text can put its mark into another.
"""

import hashlib
import hmac
import re

FRAME = "\u2063"
SYMBOLS = "\u200b\u200c\u2060\u2062"
"""Two bits each. All are default-ignorable (Unicode, DerivedCoreProperties), and before a space none joins letters."""

SPACING = 400
"""Characters of text from one mark to the next."""

_BITS = 64
_MARK = re.compile(f"{FRAME}([{SYMBOLS}]{{{_BITS // 2}}})")


def embed(text: str, number: int, key: bytes) -> str:
    """The text with the marks of export `number` (32 bits), one at least. Marks that it held before are removed."""
    mark = _mark(number, key)
    clean = strip(text)
    parts, start = [], 0
    while len(clean) - start > SPACING:
        end = _word_end(clean, start + SPACING)
        parts += [clean[start:end], mark]
        start = end
    rest = clean[start:]
    body = rest.rstrip()
    return "".join((*parts, body, mark if body or not parts else "", rest[len(body) :]))


def numbers_in(text: str, key: bytes) -> list[int]:
    """The export numbers of the marks in a text that were made with this key, each once, in the text's order."""
    found = dict.fromkeys(_value(match[1]) for match in _MARK.finditer(text))
    numbers = (value >> 32 for value in found if value & 0xFFFFFFFF == _checksum(value >> 32, key))
    return list(dict.fromkeys(numbers))


def strip(text: str) -> str:
    """The text without any mark, whole or broken; other uses of these characters stay where no mark is."""
    if FRAME not in text:
        return text
    return re.sub(f"{FRAME}[{SYMBOLS}]*", "", text)


def _mark(number: int, key: bytes) -> str:
    value = number << 32 | _checksum(number, key)
    return FRAME + "".join(SYMBOLS[value >> shift & 3] for shift in range(_BITS - 2, -2, -2))


def _value(symbols: str) -> int:
    value = 0
    for symbol in symbols:
        value = value << 2 | SYMBOLS.index(symbol)
    return value


def _checksum(number: int, key: bytes) -> int:
    digest = hmac.new(key, number.to_bytes(4), hashlib.sha256).digest()
    return int.from_bytes(digest[:4])


def _word_end(text: str, start: int) -> int:
    """Where the next word ends, at most SPACING characters on: text without blanks is cut there."""
    match = re.compile(r"\s").search(text, start, start + SPACING)
    return match.start() if match else min(start + SPACING, len(text))
