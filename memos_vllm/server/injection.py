"""What one HTTP request has to do with memory, from the identity check to the response headers.

The middleware opens a `RequestMemory`, the chat hooks fill it, the middleware turns it into headers. It travels in a
ContextVar, because vLLM's handlers between the two know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from memos_vllm.cube import MemCube
from memos_vllm.governance.identity import Caller

REPORT_KEY = "memos"
"""Our key in the `kv_transfer_params` of a `RequestOutput`: the engine's account of a splice."""

Mode = Literal["off", "read"]


@dataclass(frozen=True)
class SplicePrompt:
    """How the engine is to treat one prompt.

    `kv_transfer_params` carries the signed plan (None: plain text), `digest` names everything that makes its K/V
    differ from an exact prefill (hex; empty for plain text), `fallback` says why K/V were not used.
    """

    kv_transfer_params: dict[str, Any] | None = None
    digest: str = ""
    fallback: str | None = None


class Splicer(Protocol):
    """Turns the three parts of a memory prompt into a splice plan. Called in worker threads, several at a time."""

    def prepare(
        self,
        caller_user: str,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
        rest_ids: Sequence[int],
        repair: str | None = None,
    ) -> SplicePrompt:
        """Plan the prompt `scaffold_ids + cube_ids[0] + … + rest_ids`; cubes without K/V are captured afterwards.

        `cube_ids[i]` are the tokens of `cubes[i]`; `repair` replaces the server's repair policy. Raises MemosError; the
        prompt then runs as plain text.
        """

    def capture(
        self,
        caller_user: str,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
    ) -> None:
        """Ask for a background capture of cubes that were just written; returns at once."""


@dataclass(frozen=True)
class EngineReport:
    """What the engine did with one prompt, in tokens; `ram` and `disk` say where spliced tokens came from."""

    cached: int = 0
    spliced: int = 0
    repaired: int = 0
    computed: int = 0
    ram: int = 0
    disk: int = 0
    fallback: str | None = None

    @classmethod
    def read(cls, params: Mapping[str, Any] | None, *, cached: int | None) -> EngineReport | None:
        """The report in an output's `kv_transfer_params`; None when there is none."""
        raw = (params or {}).get(REPORT_KEY)
        if raw is None:
            return None
        counts = {name: int(raw.get(name, 0)) for name in ("spliced", "repaired", "computed", "ram", "disk")}
        return cls(cached=int(raw.get("cached", cached or 0)), fallback=raw.get("fallback"), **counts)

    @classmethod
    def plain(cls, *, cached: int | None, prompt_tokens: int, fallback: str | None = None) -> EngineReport:
        """The report of a prompt that the engine ran without a plan."""
        return cls(cached=cached or 0, computed=prompt_tokens - (cached or 0), fallback=fallback)

    @property
    def kv_source(self) -> str:
        if self.ram and self.disk:
            return "mixed"
        return "ram" if self.ram else "disk" if self.disk else "none"


@dataclass
class RequestMemory:
    """The memory side of one HTTP request. `caller` None: the request is plain vLLM's.

    `repair`: the request's own repair policy, or `off` for memories as text; None: the server's.
    `named`: the cubes that the request chose itself, in its order; None: search chooses.
    """

    caller: Caller | None = None
    mode: Mode = "read"
    carries_memory: bool = False
    repair: str | None = None
    named: tuple[MemCube, ...] | None = None
    client_salt: str | None = None
    cubes: tuple[MemCube, ...] = ()
    prompt_ids: list[int] = field(default_factory=list)
    splice: SplicePrompt = field(default_factory=SplicePrompt)
    fallback: str | None = None
    report: EngineReport | None = None

    @property
    def wanted(self) -> bool:
        return self.carries_memory and self.caller is not None and self.mode == "read"

    @property
    def awaits_engine(self) -> bool:
        """Whether the headers still lack what the engine is about to tell."""
        return bool(self.prompt_ids) and self.report is None

    def headers(self) -> dict[str, str]:
        """The `x-memos-*` response headers; empty for requests that memory has nothing to do with."""
        if not self.wanted:
            return {}
        headers = {"x-memos-cubes": ",".join(cube.id for cube in self.cubes)}
        cause = self.fallback
        if self.report is not None:
            cause = self.report.fallback or cause
            headers |= {
                "x-memos-prompt-tokens": str(len(self.prompt_ids)),
                "x-memos-cached-tokens": str(self.report.cached),
                "x-memos-spliced-tokens": str(self.report.spliced),
                "x-memos-repaired-tokens": str(self.report.repaired),
                "x-memos-computed-tokens": str(self.report.computed),
                "x-memos-kv-source": self.report.kv_source,
            }
        return headers | ({"x-memos-fallback": cause} if cause else {})


current_memory: ContextVar[RequestMemory | None] = ContextVar("memos_request", default=None)
"""The memory side of the HTTP request being served; None outside of one."""
