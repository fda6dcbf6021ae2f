"""What must hold before a measurement may be reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memos_vllm.bench.arms import Arm
from memos_vllm.bench.client import Answer

ANSWER_TOKENS = 8
ALTERNATIVES = 5
HALF_PRECISION_TIE = 0.25
"""Log-probability below which two tokens count as tied in 16 bits, where a logit's last place is 0.06 to 0.13 and every
other grouping of rows moves it. float32 is held to equality."""


class CheckFailed(Exception):
    """A server did not do what the measurement is about."""


@dataclass(frozen=True)
class Equal:
    """The outcome of one comparison: `compared` tokens were equal, up to the end or up to a tie in half precision."""

    context: int
    compared: int
    ended_at_tie: bool


def same_answer(context: int, repaired: Answer, plain: Answer, tie: float) -> Equal:
    """Compare a fully repaired answer with plain vLLM's, token for token.

    They may part where plain vLLM's own log-probabilities of the two tokens differ by `tie` or less, but never with
    `tie` 0. Raises CheckFailed.
    """
    if len(repaired.token_ids) != ANSWER_TOKENS or len(plain.token_ids) != ANSWER_TOKENS:
        raise CheckFailed(f"at {context} tokens an answer is not {ANSWER_TOKENS} tokens long")
    for step, (ours, theirs) in enumerate(zip(repaired.token_ids, plain.token_ids, strict=True)):
        if ours == theirs:
            continue
        known = plain.alternatives[step]
        if tie and ours in known and known[theirs] - known[ours] <= tie:
            return Equal(context, step, ended_at_tie=True)
        raise CheckFailed(
            f"at {context} tokens, full repair answers {repaired.token_ids} and plain vLLM {plain.token_ids}, "
            "on the same prompt"
        )
    return Equal(context, ANSWER_TOKENS, ended_at_tie=False)


def check_headers(
    arm: Arm, headers: Mapping[str, str], cube_ids: Sequence[str], context: int, query: int
) -> tuple[int, int]:
    """Spliced and repaired tokens of a memos answer, which must be what its arm stands for. Raises CheckFailed.

    context, query: tokens of the memories and of the question, which is to be computed as usual.
    """
    used = headers.get("x-memos-cubes", "")
    if used != ",".join(cube_ids):
        raise CheckFailed(f"'{arm.name}' used the memories '{used}', not '{','.join(cube_ids)}'")
    if cause := headers.get("x-memos-fallback"):
        raise CheckFailed(f"'{arm.name}' at {context} tokens fell back ({cause})")
    counts = {kind: int(headers[f"x-memos-{kind}-tokens"]) for kind in ("cached", "spliced", "repaired", "computed")}
    problem = _problem(arm, counts["spliced"], counts["repaired"], context, len(cube_ids))
    if counts["computed"] < query:
        problem = f"only {counts['computed']} tokens were computed, the query alone has {query}"
    if counts["cached"]:
        problem = f"{counts['cached']} tokens came from the prefix cache, which should be empty"
    if problem:
        raise CheckFailed(f"'{arm.name}' at {context} tokens: {problem}")
    return counts["spliced"], counts["repaired"]


def _problem(arm: Arm, spliced: int, repaired: int, context: int, cubes: int) -> str | None:
    if arm.repair == "off":
        return f"{spliced} tokens were spliced into a text prompt" if spliced or repaired else None
    if arm.repair == "full":  # what one engine step has no room for is computed as ever: the same answer
        return None if repaired else "nothing was repaired"
    if spliced + repaired < context:
        return f"only {spliced} tokens were spliced and {repaired} repaired"
    most = _most(arm.repair, context, cubes)
    return f"{repaired} tokens were repaired, {most} at most were to be" if repaired > most else None


def _most(policy: str, context: int, cubes: int) -> int:
    """Tokens that a policy may repair: none, the heads of the cubes, or a share of the memories."""
    name, _, amount = policy.partition(":")
    if not amount:
        return 0
    return int(amount) * cubes if name == "head" else int(float(amount) * context)
