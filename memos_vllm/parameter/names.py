"""Names of adapters: `alice`, `alice@v7`, and `maya/alice@v7` for one that belongs to somebody else."""

import re
from typing import NamedTuple

from memos_vllm.cube import MAX_PRINCIPAL_CHARS
from memos_vllm.errors import BadInput

_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
_VERSION = r"[1-9][0-9]{0,8}"
_PLAIN = re.compile(_NAME)
_NAMED = re.compile(rf"(?:(?P<owner>.{{1,{MAX_PRINCIPAL_CHARS}}})/)?(?P<name>{_NAME})(?:@v(?P<version>{_VERSION}))?")


class AdapterName(NamedTuple):
    """What a caller calls an adapter. owner: "" for the caller; version: None for the active one."""

    owner: str
    name: str
    version: int | None


def checked_name(name: str) -> str:
    """The name itself, or BadInput where an adapter cannot be called so."""
    if not _PLAIN.fullmatch(name):
        raise BadInput(
            f"{name[:80]!r} cannot be an adapter's name: 1 to 63 of a-z, 0-9, '.', '_' and '-', and the first one is a "
            "letter or a digit."
        )
    return name


def parsed(text: str) -> AdapterName | None:
    """What `NAME[@vN]` or `OWNER/NAME[@vN]` names, or None for text that names no adapter.

    Names have neither `/` nor `@`, so what stands before the last `/` is the owner, whatever it holds.
    """
    found = _NAMED.fullmatch(text)
    if found is None:
        return None
    version = found["version"]
    return AdapterName(found["owner"] or "", found["name"], int(version) if version else None)


def written(owner: str, name: str, version: int | None = None) -> str:
    """How an adapter is named; `parsed` reads it back. owner: "" leaves it out."""
    whole = f"{owner}/{name}" if owner else name
    return whole if version is None else f"{whole}@v{version}"
