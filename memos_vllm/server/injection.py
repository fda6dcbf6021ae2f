"""What one HTTP request has to do with memory, from the identity check to the response headers.

The middleware opens a `RequestMemory`, the chat hooks fill it, the middleware turns it into headers. It travels in a
ContextVar, because vLLM's handlers between the two know nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, Field

from memos_vllm.cube import MemCube
from memos_vllm.governance.identity import Caller
from memos_vllm.scheduler.form import Shape

if TYPE_CHECKING:
    from memos_vllm.server.pieces import Piece
    from memos_vllm.server.writing import Turn

REPORT_KEY = "memos"
"""Our key in the `kv_transfer_params` of a `RequestOutput`: the engine's account of a splice."""

Mode = Literal["read", "write", "readwrite", "off"]
"""What a chat does with its user's memory: put memories into the prompt, make new ones of the turn, both, neither."""


@dataclass(frozen=True)
class SplicePrompt:
    """How the engine is to treat one prompt.

    `kv_transfer_params` carries the signed plan (None: plain text), `digest` names everything that makes its K/V
    differ from an exact prefill (hex; empty for plain text), `fallback` says why K/V were not used.
    """

    kv_transfer_params: dict[str, Any] | None = None
    digest: str = ""
    fallback: str | None = None


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter of a request; `request` is vLLM's LoRARequest."""

    name: str
    path: str
    request: Any


@dataclass(frozen=True)
class Asked:
    """What a request wants of its prompt. `caller`: its user; `query`: the text that the memories are to answer.

    `unspliceable`: why the prompt must be computed in full, None when it need not; `repair`: the request's own policy,
    or `off` for memories as text, None for the server's.
    """

    caller: str
    query: str = ""
    unspliceable: str | None = None
    repair: str | None = None
    adapter: Adapter | None = None


Spans = list[tuple[int, int, float]]
"""Token ranges `[start, end)` of a cube with a score above 0 for a query."""

State = Literal["kv", "building", "text"]


class ActivationState(BaseModel):
    """In which form a memory enters prompts, and why."""

    state: State = Field(description="kv: spliced; building: being captured; text: computed in every prompt.")
    reason: str
    tokens: int = Field(description="Tokens that the memory takes of a prompt.")
    bytes: int = Field(description="Size of its K/V; 0 while there are none.")
    uses: int = Field(description="Prompts that it was put into.")

    def shape(self) -> Shape:
        """The form that the state stands for."""
        if self.state == "kv":
            return Shape("kv", self.reason)
        return Shape("text", f"{self.reason}, being captured" if self.state == "building" else self.reason)

    saves_ms: float = Field(description="Estimated time that each use as K/V saves over one as text.")
    pinned: bool


class Splicer(Protocol):
    """Turns the three parts of a memory prompt into a splice plan. Called in worker threads, several at a time.

    takes_pieces: whether texts of the rest may become K/V too.
    """

    takes_pieces: bool

    def prepare(
        self,
        asked: Asked,
        cubes: Sequence[MemCube],
        scaffold_ids: Sequence[int],
        cube_ids: Sequence[Sequence[int]],
        rest: Sequence[Piece] = (),
        relevance: Sequence[Spans] | None = None,
    ) -> SplicePrompt:
        """Plan the prompt `scaffold_ids + cube_ids[0] + … + rest[0].ids + …`; cubes without K/V, and pieces of the rest
        that are sent often, are captured afterwards where that is worth it.

        `cube_ids[i]` are the tokens of `cubes[i]`, `relevance[i]` its spans that matter for the query. Raises
        MemosError; the prompt then runs as plain text.
        """

    def capture(self, cubes: Sequence[MemCube], scaffold_ids: Sequence[int], cube_ids: Sequence[Sequence[int]]) -> None:
        """Ask for a background capture of cubes that were just written or pinned; returns at once."""

    def describe(
        self, cubes: Sequence[MemCube], scaffold_ids: Sequence[int], cube_ids: Sequence[Sequence[int]]
    ) -> list[ActivationState]:
        """The form of each cube. Raises MemosError."""

    def needs_relevance(self, repair: str | None) -> bool:
        """Whether the repair policy of a request asks for `relevance`."""

    def forget(self, kv_keys: Sequence[str], owner: str = "") -> None:
        """K/V that were deleted: they leave the engine's memory too, and are not captured any more. Returns at once.

        Of an `owner`, nothing that still waits to be captured is.
        """


@dataclass(frozen=True)
class EngineReport:
    """What the engine did with one prompt, in tokens.

    `ram` and `disk` count the KV cubes spliced from there.
    """

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

    `repair`: the request's own repair policy, or `off` for memories as text; `policy`: its own policy of choosing
    memories; None: the server's.
    `named`: the cubes that the request chose itself, in its order; None: search chooses.
    `conversation`: what the request calls its conversation; `turn`: what its user said, until the engine answers.
    `generates`: whether a model answers it; `model`: what it calls that model; `adapter`: the user's adapter that
    answers, `none` where it could not; `known`: memories, as `id@version`, that it has learned.
    `composed`: whether it is settled which memories its prompt has.
    """

    caller: Caller | None = None
    mode: Mode = "read"
    carries_memory: bool = False
    generates: bool = False
    model: str | None = None
    adapter: str | None = None
    known: frozenset[str] = frozenset()
    repair: str | None = None
    policy: str | None = None
    named: tuple[MemCube, ...] | None = None
    conversation: str = ""
    turn: Turn | None = None
    client_salt: str | None = None
    cubes: tuple[MemCube, ...] = ()
    composed: bool = False
    prompt_ids: list[int] = field(default_factory=list)
    splice: SplicePrompt = field(default_factory=SplicePrompt)
    fallback: str | None = None
    report: EngineReport | None = None

    @property
    def wanted(self) -> bool:
        """Whether memories are to enter the prompt."""
        return self.carries_memory and self.caller is not None and self.mode in ("read", "readwrite")

    @property
    def writes(self) -> bool:
        """Whether memories are to be made of the turn: asked for, and allowed to the key."""
        asked = self.carries_memory and self.mode in ("write", "readwrite")
        return asked and self.caller is not None and self.caller.may("write")

    @property
    def awaits_engine(self) -> bool:
        """Whether the headers still lack what the engine is about to tell."""
        return bool(self.prompt_ids) and self.report is None

    @property
    def settled(self) -> bool:
        """Whether nothing more will come to the headers."""
        return not self.awaits_engine and (self.composed or not self.wanted)

    @property
    def tells(self) -> bool:
        """Whether the response has `x-memos-*` headers."""
        return self.wanted or self.adapter is not None

    def headers(self) -> dict[str, str]:
        """The `x-memos-*` response headers; empty for requests that memory has nothing to do with."""
        headers = {} if self.adapter is None else {"x-memos-adapter": self.adapter.encode().decode("latin-1")}
        if self.wanted:
            headers["x-memos-cubes"] = ",".join(cube.id for cube in self.cubes)
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
