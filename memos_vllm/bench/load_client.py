"""Requests that come whether or not the ones before were answered, and what became of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from memos_vllm.bench.people import HARD, Fact, make_facts
from memos_vllm.bench.servers import SERVED_NAME, connections
from memos_vllm.vault.words import words_of

TIMEOUT = 10.0
"""Seconds from when a request was due after which it is an error, answered or not."""
CHAT_TIMEOUT = 60.0
CONNECTIONS = 256
TOP_K = 10
"""Memories that a search asks for."""
CHAT_PAUSE = 1.0
"""Seconds after a chat that failed."""
BATCH = 100
"""Memories in one request while the vault is filled."""


@dataclass(frozen=True)
class Sample:
    """One request: `seconds` from when it was due to its last byte; `error` says what was wrong with it.

    found: whether a search had the memory that it asked for among its results.
    """

    seconds: float
    error: str = ""
    found: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an answer was worth: `error` and `found` as in a Sample."""

    error: str = ""
    found: bool = False


class Crowd:
    """Users with facts of their own, and the requests that they make.

    Every user is told facts of invented people; `known` keeps one of them for each, to ask about: one whose question
    has words of its statement, as a search by words needs them.
    """

    def __init__(self, users: int, seed: int) -> None:
        self.users = [f"user-{number}" for number in range(users)]
        self.rng = random.Random(seed)
        self.known: dict[str, Fact] = {}

    def texts(self, user: str, count: int) -> list[str]:
        """New memories of a user."""
        facts: list[Fact] = []
        while len(facts) < count:
            facts += make_facts(self.rng, min(24, count - len(facts)), True, HARD)
        self.known[user] = next((fact for fact in facts if _asks_in_its_words(fact)), facts[0])
        return [fact.statement for fact in facts]

    def someone(self) -> str:
        return self.rng.choice(self.users)


def _asks_in_its_words(fact: Fact) -> bool:
    return not {*words_of(fact.question)}.isdisjoint(words_of(fact.statement))


async def fill(http: httpx.AsyncClient, crowd: Crowd, memories: int, tell: Callable[[int], None]) -> None:
    """Store memories through the API, each user's in one request or a few. Raises httpx.HTTPError."""
    shares = [memories // len(crowd.users) + (n < memories % len(crowd.users)) for n in range(len(crowd.users))]
    for user, share in zip(crowd.users, shares, strict=True):
        texts = crowd.texts(user, share)
        for start in range(0, share, BATCH):
            part = texts[start : start + BATCH]
            body = {"messages": [{"role": "user", "content": text} for text in part], "user_id": user, "infer": False}
            answer = (await http.post("/v1/memories", json=body)).raise_for_status().json()
            if len(answer["results"]) != len(part):
                raise httpx.DecodingError(f"{len(part)} memories were sent and {len(answer['results'])} stored")
            tell(len(part))


async def add(http: httpx.AsyncClient, crowd: Crowd) -> Outcome:
    """Tell a memory of somebody."""
    user = crowd.someone()
    body = {"text": make_facts(crowd.rng, 1, True, HARD)[0].statement, "user_id": user}
    answer = await http.post("/v1/memories", json=body)
    if answer.status_code != httpx.codes.OK:
        return Outcome(f"HTTP {answer.status_code}")
    results = answer.json()["results"]
    if [memory["memory"] for memory in results] != [body["text"]]:
        return Outcome("another memory was stored")
    return Outcome()


async def search(http: httpx.AsyncClient, crowd: Crowd) -> Outcome:
    """Ask for a memory that somebody was told.

    Where nothing fits, a server answers what is most recent, with score 0: here that is an error, as every question
    has words of the memory that answers it.
    """
    user = crowd.someone()
    fact = crowd.known[user]
    body = {"query": fact.question, "user_id": user, "top_k": TOP_K}
    answer = await http.post("/v1/memories/search", json=body)
    if answer.status_code != httpx.codes.OK:
        return Outcome(f"HTTP {answer.status_code}")
    results = answer.json()["results"]
    if any(memory["user_id"] != user for memory in results):
        return Outcome("a memory of another user")
    if not any(memory["score"] > 0 for memory in results):
        return Outcome("nothing was found")
    return Outcome(found=fact.statement in [memory["memory"] for memory in results])


Operation = Callable[[httpx.AsyncClient, Crowd], Awaitable[Outcome]]
OPERATIONS: dict[str, Operation] = {"search": search, "add": add}
"""In the order of measuring: a search is of the memories that were there before."""


async def at_rate(
    http: httpx.AsyncClient, crowd: Crowd, operation: Operation, rate: int, seconds: float
) -> list[Sample]:
    """Requests at random times, `rate` a second on average (a Poisson process), whether or not others are answered.

    A request's time runs from when it was due, so that a server that stalls is charged for those who wait.
    """
    began, due, tasks = time.perf_counter(), 0.0, []
    while (due := due + crowd.rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(_timed(http, crowd, operation, began + due)))
    return list(await asyncio.gather(*tasks))


async def _timed(http: httpx.AsyncClient, crowd: Crowd, operation: Operation, due: float) -> Sample:
    try:
        async with asyncio.timeout(due + TIMEOUT - time.perf_counter()):
            outcome = await operation(http, crowd)
    except (httpx.HTTPError, ValueError, KeyError, TimeoutError) as problem:
        outcome = Outcome(type(problem).__name__)
    return Sample(time.perf_counter() - due, outcome.error, outcome.found)


class Chats:
    """Chats one after another beside a measurement, `count` at a time; `done` and `failed` count them.

    The block ends when those under way are answered: they count too.
    """

    def __init__(self, http: httpx.AsyncClient, crowd: Crowd, count: int) -> None:
        self._http, self._crowd, self._count = http, crowd, count
        self._tasks: list[asyncio.Task[None]] = []
        self.done = self.failed = 0
        self._over = False

    async def __aenter__(self) -> Chats:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._count)]
        return self

    async def __aexit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._over = True
        for task in self._tasks if error else ():
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        while not self._over:
            user = self._crowd.someone()
            messages = [{"role": "user", "content": self._crowd.known[user].question}]
            body: dict[str, Any] = {"model": SERVED_NAME, "messages": messages, "max_tokens": 32, "ignore_eos": True}
            if await self._answered(body, user):
                self.done += 1
            else:
                self.failed += 1
                await asyncio.sleep(CHAT_PAUSE)

    async def _answered(self, body: dict[str, Any], user: str) -> bool:
        headers = {"x-memos-user-id": user}
        try:
            answer = await self._http.post("/v1/chat/completions", json=body, headers=headers, timeout=CHAT_TIMEOUT)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=connections(CONNECTIONS))
