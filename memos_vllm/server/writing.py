"""Memories out of messages: at once for `infer: true`, and in the background after a chat turn.

    chat ──submit──▶ turns that wait, by tenant ──▶ reader ──▶ known memories ──reconcile──▶ one pipeline
                     bounded; what does not fit is counted and logged

A turn waits in RAM: a crash loses those that wait (as a rule none, rules take milliseconds). A stop writes them first.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

from memos_vllm.cube import (
    Grant,
    Header,
    MemCube,
    Namespace,
    Origin,
    Plaintext,
    Priority,
    Scalar,
    completed,
    timestamp,
)
from memos_vllm.errors import BadInput, Conflict, Forgotten, MemosError, NotFound, VaultUnavailable
from memos_vllm.reader import Action, Add, Draft, MemReader, RuleReader, Skip, Spoken, Update, reconcile
from memos_vllm.reader.about import about
from memos_vllm.retrieval.base import Operator
from memos_vllm.server import metrics
from memos_vllm.server.fair import FairQueue
from memos_vllm.vault.pipeline import AddStep, EditStep, Step, UpdateStep
from memos_vllm.vault.words import SPEAKER

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Turns that may wait; one on top is lost, counted and logged."""
MAX_PER_TENANT = 256
WORKERS = 4
"""Turns that are read at a time; a model reads several as one batch."""
SCOPE = ("agent_id", "app_id", "run_id")
"""Metadata by which clients keep memories apart."""
MAX_DRAFTS = 256
"""Memories that the messages of one call may become."""
SIMILAR, SAME_KEY = 12, 4
"""Known memories that a new one is compared with: those most like it, and those about the same."""
ALONE = ("lexical",)
"""Signals of that search: statements are compared by their words, and what was said around them does not count."""
TRIES = 3
"""Times that a turn is compared anew because somebody else changed a memory meanwhile, or the vault was busy."""
RETRY_AFTER = 0.5
"""Seconds."""
WARN_EVERY = 10.0
"""Seconds between two log lines about turns that are lost."""
LONGEST = 3600.0
"""Seconds that a turn takes at most, from its question until its memories are written."""
LAST_WORDS = 5.0
"""Seconds that the turns that wait may take when the server stops."""

Event = Literal["ADD", "UPDATE", "NONE"]


@dataclass(frozen=True)
class MemoryForm:
    """What the memories of one call have in common.

    source: the conversation; at: when the messages were sent, None for now. The other fields are those of `Header`.
    """

    source: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict)
    access: tuple[Grant, ...] = ()
    tags: tuple[str, ...] = ()
    expires: str = ""
    at: datetime | None = None
    namespace: Namespace = "user"
    priority: Priority = "mid"
    sensitivity: tuple[str, ...] = ()
    origin: Origin = "inference_extraction"


@dataclass(frozen=True)
class Written:
    """A memory and what was done: ADD a new one, UPDATE one that it contradicts, NONE where it was known."""

    cube: MemCube
    event: Event


@dataclass(frozen=True)
class Turn:
    """What was said in one turn of a chat, the user's message first, and by whose request.

    clearance: the sensitivity tags that the request's key is cleared for; None for all.
    """

    user: str
    spoken: tuple[Spoken, ...]
    form: MemoryForm
    clearance: frozenset[str] | None = None
    heard: float = field(default_factory=time.time)


class Store(Protocol):
    """Where memories are found and changed: a `MemoryService`."""

    @property
    def operator(self) -> Operator: ...

    def revision(self, user: str) -> int:
        """See `Vault.revision`."""
        ...

    def pipeline(
        self, steps: Sequence[Step], actor: str, *, seen: int | None = None, since: float | None = None
    ) -> list[MemCube]:
        """See `Vault.pipeline`."""
        ...


class MemoryWriter:
    """Has messages read, and stores what is new of them. Its methods block: call them in threads."""

    def __init__(self, store: Store, reader: MemReader) -> None:
        self._store, self.reader = store, reader

    def remember(self, user: str, spoken: Sequence[Spoken], form: MemoryForm) -> list[Written]:
        """Store what the user's messages tell, all or none, as the user's; a text that is known already is left alone.

        Raises MemosError; Forgotten where the user's memories were all deleted meanwhile.
        """
        since = time.time()
        drafts = self.read(user, spoken, form)
        if len(drafts) > MAX_DRAFTS:
            raise BadInput(f"The messages tell too much for one request ({len(drafts)} memories); send them in parts.")
        return self.store(user, drafts, form, since)

    def read(
        self, user: str, spoken: Sequence[Spoken], form: MemoryForm, reader: MemReader | None = None
    ) -> list[Draft]:
        """What the messages tell, as the reader has it."""
        at = form.at or datetime.now(UTC)
        return asyncio.run((reader or self.reader).read(spoken, owner=user, at=at, source=form.source))

    def store(
        self,
        user: str,
        drafts: Sequence[Draft],
        form: MemoryForm,
        since: float,
        *,
        clearance: frozenset[str] | None = None,
    ) -> list[Written]:
        """Store drafts, all or none, against what is known; anew where the user's memories change meanwhile.

        The last try takes a second copy of what another request stores at the same moment rather than lose all.
        since: when they were said (Unix seconds); Forgotten where all the user's memories were deleted since.
        clearance: the sensitivity tags that known memories may have; None for those of the request's key.
        Raises MemosError; Conflict and NotFound where others never let up.
        """
        for last in (False,) * (TRIES - 1) + (True,):
            seen = None if last else self._store.revision(user)
            known = self._similar(user, drafts, {} if clearance is None else {"clearance": clearance})
            near = [cube for cube in known.values() if _in_scope(cube, form)]
            at = form.at or datetime.now(UTC)
            actions = reconcile(drafts, near, at=at, changeable=lambda cube: _is_as_private(cube, form))
            try:
                return self._apply(user, actions, known, form, seen, since)
            except Forgotten:
                raise
            except (Conflict, NotFound):
                if last:
                    raise
        raise AssertionError("the last try returns or raises")

    def _similar(self, user: str, drafts: Sequence[Draft], limits: Mapping[str, Any]) -> dict[str, MemCube]:
        """The user's own memories that the drafts may repeat or contradict, by id."""
        own, found = {"owner": user}, {}
        for draft in drafts:
            hits = self._store.operator.search(
                user, f"{draft.text} {about(draft.text).probe}", top_k=SIMILAR, filters=own, using=ALONE, **limits
            )
            if draft.key:
                about_it = {**own, "fingerprint": draft.key}
                hits += self._store.operator.search(
                    user, draft.text, top_k=SAME_KEY, filters=about_it, using=ALONE, **limits
                )
            found.update({hit.cube.id: hit.cube for hit in hits})
        return found

    def _apply(
        self,
        user: str,
        actions: Sequence[Action],
        known: dict[str, MemCube],
        form: MemoryForm,
        seen: int | None,
        since: float,
    ) -> list[Written]:
        steps = [step for action in actions for step in _steps(user, action, form)]
        cubes = self._store.pipeline(steps, user, seen=seen, since=since) if steps else []
        after = {cube.id: cube for cube in cubes}
        events: dict[str, Event] = {}
        for action in actions:
            event: Event = "ADD" if isinstance(action, Add) else "UPDATE" if isinstance(action, Update) else "NONE"
            metrics.memories_written().labels(event.lower()).inc()
            if events.get(action.id, "NONE") == "NONE":
                events[action.id] = event
        return [Written(after.get(cube_id) or known[cube_id], event) for cube_id, event in events.items()]


def _in_scope(cube: MemCube, form: MemoryForm) -> bool:
    """Whether a known memory is of the same namespace, agent, app and run, and lasts as long as the form's will."""
    header = cube.header
    same = all(header.metadata.get(name) == form.metadata.get(name) for name in SCOPE)
    lasts = header.expires in ("", timestamp(form.expires, "expires"))
    return same and lasts and header.namespace == form.namespace


def _is_as_private(cube: MemCube, form: MemoryForm) -> bool:
    """Whether what is said now may stand in a known memory's place: nobody else reads it there, and it ends in time."""
    header = cube.header
    alone = {grant.principal for grant in header.access} <= {grant.principal for grant in form.access}
    ends = header.expires == timestamp(form.expires, "expires")
    return alone and ends and set(header.sensitivity) >= set(form.sensitivity)


def _steps(user: str, action: Action, form: MemoryForm) -> list[Step]:
    """What is known takes the form's tags, sensitivity and grants on top of its own."""
    if isinstance(action, Add):
        return [AddStep(_cube(user, action, form))]
    if isinstance(action, Skip) and action.why == "outdated":
        return []
    edit = EditStep(action.id, form.tags, form.sensitivity, form.access)
    edits: list[Step] = [] if edit == EditStep(action.id) else [edit]
    return [_update(action, form), *edits] if isinstance(action, Update) else edits


def _update(action: Update, form: MemoryForm) -> Step:
    return UpdateStep(
        id=action.id,
        text=action.text,
        metadata=form.metadata,
        happened=action.happened or None,
        expect=action.expect,
    )


def _cube(user: str, action: Add, form: MemoryForm) -> MemCube:
    draft = action.draft
    header = Header(
        id=action.id,
        owner=user,
        source=form.source,
        origin=form.origin,
        semantic_type=draft.semantic_type,
        tags=tuple(dict.fromkeys((*form.tags, *draft.tags))),
        metadata={**form.metadata, **({SPEAKER: draft.speaker} if draft.speaker else {})},
        access=form.access,
        expires=form.expires,
        happened=draft.happened,
        fingerprint=draft.key,
        namespace=form.namespace,
        priority=form.priority,
        sensitivity=form.sensitivity,
    )
    return completed(MemCube(header, Plaintext(draft.text)))


class TurnWriter:
    """Writes memories after chat turns: tenants in turn, a tenant's own in order. Submitting never waits or fails."""

    def __init__(self, writer: MemoryWriter) -> None:
        self.writer = writer
        self._turns: FairQueue[Turn] = FairQueue(MAX_WAITING, MAX_PER_TENANT)
        self._arrived = asyncio.Event()
        self._in_order: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._forgotten: dict[str, float] = {}
        self._lock = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(WORKERS, "memos-turns")  # a model's answers would keep the loop's own busy
        self._stopped = False
        self._warned = -WARN_EVERY

    def start(self) -> None:
        """Write in the background of the running event loop from now on."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(), name=f"memos-turns-{number}") for number in range(WORKERS)]

    def submit(self, turn: Turn) -> bool:
        """Have a turn written, and return at once; False where too many wait. Call it on the event loop."""
        if self._stopped or not self._turns.put(turn.user, turn):
            metrics.turns().labels("dropped").inc()
            self._warn()
            return False
        metrics.turns_waiting().set(len(self._turns))
        self._arrived.set()
        return True

    def _warn(self) -> None:
        """At most once in WARN_EVERY: who floods a server does not flood its log."""
        now = time.monotonic()
        if now >= self._warned + WARN_EVERY:
            self._warned = now
            logger.warning("chat turns make no memories: %d turns wait already", len(self._turns))

    def forget(self, user: str) -> None:
        """Make no memories of what the user said until now. For any thread."""
        now = time.time()
        with self._lock:
            self._forgotten = {name: at for name, at in self._forgotten.items() if now - at < LONGEST} | {user: now}

    async def _run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                while len(self._turns):
                    await self._next()
                self._arrived.clear()
        finally:
            self._stop()

    async def _next(self) -> None:
        turn = self._turns.pop()
        metrics.turns_waiting().set(len(self._turns))
        in_order = self._in_order.setdefault(turn.user, asyncio.Lock())  # it lets waiters in as they came
        async with in_order:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._one, turn, self.writer.reader)

    def _one(self, turn: Turn, reader: MemReader) -> None:
        try:
            metrics.turns().labels(self._write(turn, reader)).inc()
        except MemosError as error:
            metrics.turns().labels("failed").inc()
            logger.warning("a chat turn makes no memories: %s", error)
        except Exception:  # the loop must outlive any one turn
            metrics.turns().labels("failed").inc()
            logger.exception("a chat turn makes no memories")

    def _write(self, turn: Turn, reader: MemReader) -> str:
        """The outcome, for the counter. Raises MemosError."""
        drafts = self.writer.read(turn.user, turn.spoken, turn.form, reader)[:MAX_DRAFTS]
        for attempt in range(TRIES):
            if self._is_forgotten(turn):
                return "forgotten"
            try:
                written = self.writer.store(turn.user, drafts, turn.form, turn.heard, clearance=turn.clearance)
                return "written" if any(one.event != "NONE" for one in written) else "nothing"
            except Forgotten:
                return "forgotten"
            except VaultUnavailable:
                if attempt == TRIES - 1:
                    raise
                time.sleep(RETRY_AFTER)
        raise AssertionError("the last try returns or raises")

    def _is_forgotten(self, turn: Turn) -> bool:
        with self._lock:
            return turn.heard <= self._forgotten.get(turn.user, 0.0)

    def _stop(self) -> None:
        """Write what waits, by rules, since the engine stops as well; what does not get done is counted and logged.

        Turns under way end in their threads, which the interpreter waits for.
        """
        if self._stopped:
            return
        self._stopped = True
        drain = threading.Thread(target=self._drain, name="memos-turns-last")  # a reader needs a loop of its own
        drain.start()
        drain.join()
        if len(self._turns):
            metrics.turns().labels("dropped").inc(len(self._turns))
            logger.warning("%d chat turns make no memories: the server stops", len(self._turns))

    def _drain(self) -> None:
        deadline = time.monotonic() + LAST_WORDS
        while len(self._turns) and time.monotonic() < deadline:
            self._one(self._turns.pop(), RuleReader())


def form_at(form: MemoryForm, moment: str) -> MemoryForm:
    """The form for messages that were sent at an ISO-8601 date or time, "" for now; "yesterday" is that of its zone.

    Raises BadInput.
    """
    if not moment:
        return form
    timestamp(moment, "happened")
    at = datetime.fromisoformat(moment)
    return replace(form, at=at if at.tzinfo else at.replace(tzinfo=UTC))
