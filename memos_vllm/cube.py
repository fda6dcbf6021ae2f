"""MemCube: one memory with its header, whatever form its payload has (MemOS paper, section 5.1).

`MemCube.to_json` and `MemCube.from_json` are the outside form: `{"meta": {...}, "payload": {...}}`.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

import msgspec

from memos_vllm.errors import BadInput, NotPlaintext, TooLarge

MAX_TEXT_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_PRINCIPAL_CHARS = 128
MIN_HALF_LIFE = 0.001
"""Days: a minute and a half."""
MAX_GRANTS = 64
"""Of one cube: each principal's part of the search index holds it."""

Origin = Literal["inference_extraction", "user_input", "external_retrieval", "parameter_fine_tuning"]
SemanticType = Literal["task_prompt", "fact", "user_preference", "domain_knowledge", "episode"]
Priority = Literal["low", "mid", "high", "pinned"]
State = Literal["generated", "activated", "merged", "archived", "expired", "frozen"]
Operation = Literal["add", "overwrite", "append", "merge", "rollback", "restore", "transfer", "purify"]
Namespace = Literal["user", "expert", "shared", "pool", "pipeline"]
Right = Literal["read", "write", "share"]
Scalar = str | int | float | bool | None


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one principal, other than the owner, may do. Every right includes reading."""

    principal: str
    rights: tuple[Right, ...] = ("read",)


class Licence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Terms of a cube that came in a bundle; None and "" mean no limit.

    max_accesses: prompts that it may enter; expires: when it may enter none any more
    Then others than its owner may not read it either.
    """

    max_accesses: int | None = None
    expires: str = ""

    def ended(self, accesses: int, moment: str = "") -> bool:
        """Whether a cube that entered so many prompts may enter no more, at a time in the form of `now`."""
        over = self.max_accesses is not None and accesses >= self.max_accesses
        return over or bool(self.expires and self.expires <= (moment or now()))


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything known about a cube but its content. Times are ISO-8601, UTC, or a date alone; "" means none.

    happened: when what the cube tells took place
    namespace: private to a user, expert knowledge, shared by a group, pool of a context, or cache of a pipeline
    parents: the versions this one derives from, as `id@version`
    operation, author: what made this version, and who
    """

    # descriptive
    id: str = ""
    created: str = ""
    updated: str = ""
    source: str = ""
    origin: Origin = "user_input"
    semantic_type: SemanticType = "fact"
    tags: tuple[str, ...] = ()
    model: str = ""
    happened: str = ""
    metadata: dict[str, Scalar] = {}
    # governance
    namespace: Namespace = "user"
    owner: str = ""
    access: tuple[Grant, ...] = ()
    expires: str = ""
    half_life_days: float | None = None
    priority: Priority = "mid"
    sensitivity: tuple[str, ...] = ()
    watermark: str = ""
    licence: Licence | None = None
    # behaviour
    accesses: int = 0
    last_access: str = ""
    fingerprint: str = ""
    version: int = 1
    parents: tuple[str, ...] = ()
    operation: Operation = "add"
    author: str = ""
    state: State = "generated"


class Plaintext(msgspec.Struct, frozen=True, tag_field="type", tag="plaintext", forbid_unknown_fields=True):
    """Text, or structured data held as canonical JSON (`format="json"`)."""

    content: str
    format: Literal["text", "json"] = "text"


class Activation(msgspec.Struct, frozen=True, tag_field="type", tag="activation", forbid_unknown_fields=True):
    """K/V of `tokens` tokens captured at position `origin`; the tensors lie in the KV file `key` names."""

    key: str
    identity: str
    layers: int
    tokens: int
    origin: int


class Parameter(msgspec.Struct, frozen=True, tag_field="type", tag="parameter", forbid_unknown_fields=True):
    """A LoRA adapter, by the digest of its files; "" where they were removed.

    base_model, base: name and fingerprint of the model it was made for
    scale: what the product of its two matrices is multiplied with
    name: what its owner calls it, the same in all versions; "" for one that no registry serves
    bytes: size of its files; dtype: of its tensors, as safetensors writes it
    """

    digest: str
    base_model: str
    rank: int
    scale: float
    target_modules: tuple[str, ...]
    name: str = ""
    base: str = ""
    bytes: int = 0
    dtype: str = ""


Payload = Plaintext | Activation | Parameter


class MemCube(msgspec.Struct, frozen=True):
    """Header and payload. Immutable: a change is a new version with the same id."""

    header: Header
    payload: Payload

    @property
    def id(self) -> str:
        """32 hex digits (UUIDv7: they sort by time of creation), unique for the memory's life."""
        return self.header.id

    @property
    def version(self) -> int:
        """1 for a new cube, one more with every update."""
        return self.header.version

    @property
    def owner(self) -> str:
        return self.header.owner

    @property
    def text(self) -> str:
        """The plaintext content. Raises NotPlaintext (a BadInput and a TypeError) for other payloads."""
        return self.plain().content

    def plain(self) -> Plaintext:
        """The payload, if it is plaintext; else raises NotPlaintext."""
        if not isinstance(self.payload, Plaintext):
            raise NotPlaintext(f"Cube {self.id} holds no text but a payload of kind {type(self.payload).__name__}.")
        return self.payload

    def readers(self) -> tuple[str, ...]:
        """Every principal that may read this cube, the owner first."""
        return tuple(dict.fromkeys((self.owner, *(grant.principal for grant in self.header.access))))

    def expired(self, at: str | None = None) -> bool:
        """Whether `expires` has come. A date alone comes when that day begins, UTC."""
        return bool(self.header.expires) and self.header.expires <= (at or now())

    @classmethod
    def plaintext(
        cls,
        text: str,
        *,
        owner: str,
        source: str = "",
        origin: Origin = "user_input",
        semantic_type: SemanticType = "fact",
        tags: Iterable[str] = (),
        metadata: Mapping[str, Scalar] | None = None,
        access: Iterable[Grant | str] = (),
        expires: str = "",
        priority: Priority = "mid",
    ) -> "MemCube":
        """A new cube with its own id and times. Names in `access` may read. Raises BadInput, TooLarge."""
        header = Header(
            owner=owner,
            source=source,
            origin=origin,
            semantic_type=semantic_type,
            tags=tuple(tags),
            metadata=dict(metadata or {}),
            access=tuple(Grant(grant) if isinstance(grant, str) else grant for grant in access),
            expires=expires,
            priority=priority,
        )
        return completed(cls(header, Plaintext(text)))

    def to_json(self) -> dict[str, Any]:
        """The outside form. A grant of nothing but reading is the principal's name."""
        # Stored headers leave out what is default, the outside form does not.
        meta = msgspec.json.decode(msgspec.json.encode(msgspec.structs.asdict(self.header)))
        payload = msgspec.json.decode(msgspec.json.encode(self.payload))
        meta["access"] = [grant["principal"] if grant["rights"] == ["read"] else grant for grant in meta["access"]]
        if payload.get("format") == "json":
            payload["content"] = json.loads(payload["content"])
        return {"meta": meta, "payload": payload}

    @classmethod
    def from_json(cls, data: Any, *, owner: str = "") -> "MemCube":
        """A cube from the outside form; what is missing is filled in (`owner` where the data name none).

        Raises BadInput, which names the field, and TooLarge.
        """
        if not isinstance(data, dict) or not isinstance(data.get("meta", {}), dict):
            raise BadInput('A cube is {"meta": {...}, "payload": {...}}.')
        header = _convert(_header_fields(data.get("meta", {}), owner), Header, "meta")
        payload: Payload = _convert(_payload_fields(data.get("payload")), Payload, "payload")
        return completed(cls(header, payload))


def _convert(fields: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"Not a cube: {where}: {error}.") from error


def _header_fields(meta: dict[str, Any], owner: str) -> dict[str, Any]:
    access = meta.get("access", ())
    if not isinstance(access, list | tuple):
        raise BadInput("meta.access must be a list of names or of {principal, rights}.")
    grants = [{"principal": grant} if isinstance(grant, str) else grant for grant in access]
    return {**meta, "owner": meta.get("owner") or owner, "access": grants}


def _payload_fields(payload: Any) -> Any:
    if not isinstance(payload, dict):
        return payload
    fields = dict(payload)
    if fields.get("type") == "explicit":
        fields["type"] = "plaintext"
    if fields.get("format") == "json" and "content" in fields:
        fields["content"] = json.dumps(fields["content"], ensure_ascii=False, sort_keys=True)
    return fields


def _check_structured(content: str) -> None:
    try:
        json.loads(content, parse_constant=_no_constant)
    except ValueError as error:
        raise BadInput(f"The content is not JSON, which its format says: {error}.") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def completed(cube: MemCube) -> MemCube:
    """The cube with id and times filled in and its fields checked. Raises BadInput, TooLarge."""
    header = cube.header
    moment = now()
    created = timestamp(header.created, "created") or moment
    header = msgspec.structs.replace(
        header,
        id=checked_id(header.id) if header.id else new_id(),
        created=created,
        updated=timestamp(header.updated, "updated") or (created if header.created else moment),
        expires=timestamp(header.expires, "expires"),
        last_access=timestamp(header.last_access, "last_access"),
        happened=timestamp(header.happened, "happened"),
        access=_normal_access(header),
    )
    _check_header(header)
    if isinstance(cube.payload, Plaintext):
        checked_text(cube.payload.content)
        if cube.payload.format == "json":
            _check_structured(cube.payload.content)
    return MemCube(header, cube.payload)


def _normal_access(header: Header) -> tuple[Grant, ...]:
    """One grant a principal, without the owner, every right with reading. Raises BadInput, TooLarge."""
    rights: dict[str, set[Right]] = {}
    for grant in header.access:
        rights.setdefault(checked_principal(grant.principal), {"read"}).update(grant.rights)
    rights.pop(header.owner, None)
    if len(rights) > MAX_GRANTS:
        raise TooLarge(f"{len(rights)} principals have access, the limit is {MAX_GRANTS}; share it with a group.")
    order: tuple[Right, ...] = ("read", "write", "share")
    return tuple(Grant(name, tuple(right for right in order if right in held)) for name, held in rights.items())


def _check_header(header: Header) -> None:
    """Bounds, finite numbers, and UTF-8: a lone surrogate, which JSON can carry, cannot be stored."""
    if header.owner:
        checked_principal(header.owner)
    if header.version < 1:
        raise BadInput("meta.version counts from 1.")
    numbers = [header.half_life_days, *header.metadata.values()]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise BadInput("meta holds a number that is not finite.")
    if header.half_life_days is not None and header.half_life_days < MIN_HALF_LIFE:
        raise BadInput(f"meta.half_life_days must be {MIN_HALF_LIFE} at least.")
    try:
        size = len(msgspec.msgpack.encode(header))
    except (UnicodeEncodeError, OverflowError) as error:
        raise BadInput(f"The header cannot be stored: {error}.") from error
    if size > MAX_HEADER_BYTES:
        raise TooLarge(f"The header is {size} bytes, the limit is {MAX_HEADER_BYTES}; put long content into the text.")


def checked_text(text: str) -> str:
    """The text itself, or BadInput where it is blank or not Unicode text, TooLarge over MAX_TEXT_BYTES."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadInput(f"The text is not valid Unicode: {error.reason}.") from error
    if not text.strip():
        raise BadInput("The text is empty.")
    if size > MAX_TEXT_BYTES:
        raise TooLarge(f"The text is {size} bytes, the limit is {MAX_TEXT_BYTES}; store it in parts.")
    return text


def checked_id(cube_id: str) -> str:
    """The id itself, or BadInput where it is not 32 lowercase hex digits."""
    if not is_id(cube_id):
        raise BadInput(f"{cube_id[:64]!r} is not a cube id (32 lowercase hex digits).")
    return cube_id


def is_id(cube_id: str) -> bool:
    return len(cube_id) == 32 and not set(cube_id) - set("0123456789abcdef")


def checked_principal(name: str) -> str:
    """A user or group name: 1 to 128 printable characters without blanks at its ends, or BadInput."""
    if not 1 <= len(name) <= MAX_PRINCIPAL_CHARS:
        raise BadInput(f"A user id has 1 to {MAX_PRINCIPAL_CHARS} characters, not {len(name)}.")
    if not name.isprintable() or name != name.strip():
        raise BadInput(f"The user id {name!r} has control characters or blanks at its ends.")
    return name


def new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7, with the 12 sub-millisecond bits of 6.2, method 3) as hex."""
    millis, nanos = divmod(time.time_ns(), 1_000_000)
    value = millis << 80 | 0x7 << 76 | (nanos * 4096 // 1_000_000) << 64
    return f"{value | 0x2 << 62 | int.from_bytes(os.urandom(8)) >> 2:032x}"


def now() -> str:
    """This moment, UTC, in the one form that sorts as text: `2025-04-10T12:00:00.000000Z`."""
    return _utc(datetime.now(UTC))


def timestamp(value: str, field: str) -> str:
    """An ISO-8601 date as it is, or a date and time in the form of `now` (no offset means UTC). Raises BadInput."""
    if not value:
        return ""
    try:
        if len(value) <= 10:
            return date.fromisoformat(value).isoformat()
        moment = datetime.fromisoformat(value)
        return _utc(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise BadInput(f"meta.{field} is not an ISO-8601 date or time: {value[:64]!r}.") from error


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
