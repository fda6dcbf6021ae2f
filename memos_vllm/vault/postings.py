"""How the index of a principal's memories lies in LMDB: the bytes of its rows, and what a cube contributes to them.

    partitions  digest(principal)      number 4, cubes 4, words 8, next ordinal 4
    entries     partition number 4     sorted rows: conversation 8, id 16, ordinal 4, words 4, type 2,
                                       asks 2, happened 8, updated 8, expires 8
    terms       partition 4 + term 8   sorted rows: ordinal 4, occurrences 2
    vectors     id 16                  digest of the embedder 8, float16 vector; one a cube, whoever reads it
    unembedded  id 16                  cubes that await their vector

A partition is what one principal may read, and every statistic of a search comes from partitions that the caller may
read. An ordinal stands for a cube in its partition. The rows of `entries` and `terms` are LMDB's sorted duplicates of
fixed size, which numpy reads as one buffer. Turns of one conversation are neighbours in `entries`.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple, get_args

import xxhash

from memos_vllm.cube import MemCube, Scalar, SemanticType
from memos_vllm.vault.states import HOT
from memos_vllm.vault.words import names_in, speaker_of, text_of, words_of

FORMAT = 3
"""Number of this layout and of what `words_of` makes of a text; an index with another number is made anew."""

NUMBER = struct.Struct(">I")
PARTITION = struct.Struct(">IIQI")
ENTRY = struct.Struct(">8s16sIIHHqqq")
ID, ORDINAL = slice(8, 24), slice(24, 28)
"""Where a row of `entries` holds the id and the ordinal."""
POSTING = struct.Struct(">IH")
DIGEST_BYTES = 8
NO_CONVERSATION = bytes(DIGEST_BYTES)
NEVER = (1 << 63) - 1
"""`expires` of a cube that stays."""

TYPES: Mapping[SemanticType, int] = {name: code for code, name in enumerate(get_args(SemanticType))}
MAX_WORDS = 10_000
"""Different words of a text that it is found by, its first ones: each is a row for everybody who may read it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_QUESTION_MARKS = ("?", "？", "؟")
_MAX_OCCURRENCES = (1 << 16) - 1


class Partition(NamedTuple):
    """The statistics of one partition. words: of all its cubes together; ordinal: the next cube's."""

    number: int
    cubes: int
    words: int
    ordinal: int


class Entry(NamedTuple):
    """A cube in a partition, but for its ordinal. Times are microseconds since 1970.

    asks: 1 for a text that ends with a question
    """

    conversation: bytes
    cube_id: bytes
    words: int
    semantic_type: int
    asks: int
    happened: int
    updated: int
    expires: int

    @property
    def place(self) -> bytes:
        """What its row begins with."""
        return self.conversation + self.cube_id

    def packed(self, ordinal: int) -> bytes:
        return ENTRY.pack(self.conversation, self.cube_id, ordinal, *self[2:])


class Reading(NamedTuple):
    """What a cube contributes to each of its partitions. terms: occurrences by digest."""

    entry: Entry
    terms: Mapping[bytes, int]

    def postings(self, partition: int, ordinal: int) -> Iterator[tuple[bytes, bytes]]:
        """Rows of `terms`."""
        prefix = NUMBER.pack(partition)
        return ((prefix + term, POSTING.pack(ordinal, count)) for term, count in self.terms.items())


def is_searched(cube: MemCube) -> bool:
    """Whether a cube is in the index: its state is hot and it has a text."""
    return cube.header.state in HOT and bool(text_of(cube))


def reading_of(cube: MemCube) -> Reading:
    header = cube.header
    text = text_of(cube)
    counts = Counter(words_of(text))
    terms = {term_of(word): min(count, _MAX_OCCURRENCES) for word, count in islice(counts.items(), MAX_WORDS)}
    terms.update((facet, 1) for facet in facets_of(cube))
    if sensitivity := set(header.sensitivity):
        terms[DELICATE] = min(len(sensitivity), _MAX_OCCURRENCES)
    entry = Entry(
        conversation=conversation_of(header.owner, header.source),
        cube_id=bytes.fromhex(cube.id),
        words=counts.total(),
        semantic_type=TYPES[header.semantic_type],
        asks=text.rstrip().endswith(_QUESTION_MARKS),
        happened=micros(header.happened or header.created),
        updated=micros(header.updated),
        expires=micros(header.expires) if header.expires else NEVER,
    )
    return Reading(entry, terms)


def conversation_of(owner: str, source: str) -> bytes:
    """What the turns of one conversation share; a cube without a source has no neighbours."""
    return _digest(f"{owner}\0{source}") if source else NO_CONVERSATION


def micros(moment: str) -> int:
    """Microseconds since 1970 of a time or a date in a header."""
    parsed = datetime.fromisoformat(moment)
    return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def term_of(word: str) -> bytes:
    return _digest(word)


def facets_of(cube: MemCube) -> Iterator[bytes]:
    """Terms for what filters and clearances ask, and for the speaker's names."""
    yield facet_of("owner", cube.header.owner)
    yield facet_of("source", cube.header.source)
    yield facet_of("fingerprint", cube.header.fingerprint)
    for tag in cube.header.tags:
        yield facet_of("tags", tag)
    for tag in cube.header.sensitivity:
        yield facet_of("sensitivity", tag)
    for name, value in cube.header.metadata.items():
        yield facet_of(f"\0{name}", value)
    for name in names_in(speaker_of(cube)):
        yield speaker_term(name)


def speaker_term(name: str) -> bytes:
    """The term of what somebody of this name said."""
    return _digest(f"\0\0{name}")


def facet_of(name: str, value: Scalar) -> bytes:
    """Values that are equal in Python have one term: 1, 1.0 and True."""
    text = f"s{value}" if isinstance(value, str) else f"n{None if value is None else float(value)}"
    return _digest(f"\0{name}\0{text}")


def _digest(text: str) -> bytes:
    return xxhash.xxh3_64_digest(text.encode("utf-8", "surrogatepass"))


DELICATE = _digest("\0\0\0")
"""The term of cubes with sensitivity tags; it occurs as often as they have tags."""
