"""Bodies of what the scheduler proposes that an adapter should know."""

from __future__ import annotations

from pydantic import BaseModel, Field

from memos_vllm.scheduler.consolidation import Learn
from memos_vllm.server.consolidator import NAME, Mode, Offer
from memos_vllm.server.schemas import EXAMPLE_ID, examples
from memos_vllm.server.schemas_adapters import TrainingBody


class ConsentRequest(BaseModel):
    """Whether the server may make an adapter of the user's memories without being asked each time."""

    model_config = examples({"user_id": "maya", "allowed": True})

    user_id: str | None = None
    allowed: bool


class LearnBody(BaseModel):
    """A memory that an adapter should know. `saves`: prompt tokens a day; `known`: whether one does already."""

    id: str
    version: int
    tokens: int
    uses_a_day: float
    saves: float
    known: bool
    why: str

    @classmethod
    def of(cls, learn: Learn) -> LearnBody:
        candidate = learn.candidate
        return cls(
            id=candidate.id,
            version=candidate.version,
            tokens=candidate.tokens,
            uses_a_day=round(learn.rate, 2),
            saves=round(learn.saves, 1),
            known=candidate.known,
            why=learn.why,
        )


class ProposalBody(BaseModel):
    """What an adapter should know, and what that would save: tokens of the user's prompts, at most.

    `worth`: whether a training pays; `why_not`: why none begins by itself, null where one does within the hour.
    """

    model_config = examples(
        {
            "user_id": "maya",
            "mode": "auto",
            "allowed": True,
            "adapter": NAME,
            "memories": [
                {
                    "id": EXAMPLE_ID,
                    "version": 1,
                    "tokens": 14,
                    "uses_a_day": 6.5,
                    "saves": 91.0,
                    "known": False,
                    "why": "used 6.5 times a day, unchanged for 12 days",
                }
            ],
            "saved_tokens": 14.0,
            "gained_tokens": 14.0,
            "saved_tokens_a_day": 91.0,
            "lost": [],
            "training_seconds": 15.0,
            "worth": False,
            "why_not": "it would save 14 more tokens of a prompt, 32 are wanted",
            "training": None,
        }
    )

    user_id: str
    mode: Mode
    allowed: bool
    adapter: str = NAME
    memories: list[LearnBody]
    saved_tokens: float = Field(description="Of a prompt, by all of these memories.")
    gained_tokens: float = Field(description="Of a prompt, by those of them that no adapter knows yet.")
    saved_tokens_a_day: float
    lost: list[str] = Field(description="What the adapter was made of and has changed since, as `id@version`.")
    training_seconds: float = Field(description="Expected time of the training.")
    worth: bool
    why_not: str | None = None
    training: TrainingBody | None = None

    @classmethod
    def of(cls, offer: Offer, user: str, mode: Mode) -> ProposalBody:
        proposal = offer.proposal
        return cls(
            user_id=user,
            mode=mode,
            allowed=offer.allowed,
            memories=[LearnBody.of(learn) for learn in proposal.learn],
            saved_tokens=round(proposal.saved, 1),
            gained_tokens=round(proposal.gained, 1),
            saved_tokens_a_day=round(proposal.saved_a_day, 1),
            lost=[*proposal.lost],
            training_seconds=round(offer.seconds, 1),
            worth=proposal.worth,
            why_not=offer.why_not or None,
            training=None if offer.training is None else TrainingBody.of(offer.training),
        )
