"""Promotion: which cubes become K/V, decided by what a splice saves against what a capture costs.

All times are seconds. With t tokens of which r are repaired, prefill rate p, copy rate c, b bytes a token:

    saving of a use   S = (t - r) / p - t b / c - overhead
    cost of building  B = (scaffold + t) / p + t b / c
    promoted when     S > 0 and S * uses > B

`uses` to come are taken from those that were: uses that decay at rate d add up, in the steady state, to the rate of use
over d, which is the number of uses in the next 1/d seconds. A new cube is given NEW_CUBE uses in advance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Mode = Literal["auto", "all", "off"]
Cause = Literal["auto", "all", "off", "pinned", "short", "long", "hot", "cold"]

NEW_CUBE = 3.0
"""Uses that a cube is expected to have before it had any: it was told in order to be used."""


def to_come(heat: float) -> float:
    """Uses expected in the next days, `heat` being the decayed count of those that were (see `vault.Uses`)."""
    return NEW_CUBE + heat


@dataclass(frozen=True)
class CostModel:
    """prefill: tokens/s; copy: bytes/s of a splice; overhead: seconds of a splice whatever its size; bytes_per_token:
    K/V of all layers.

    The defaults serve until the engine has been measured; `copy` is a high guess, for a low one might keep all cubes
    from being spliced and so from being measured.
    """

    prefill: float = 10_000.0
    copy: float = 2e10
    overhead: float = 1e-3
    bytes_per_token: int = 131_072

    def saving(self, tokens: int, repaired: int) -> float:
        """Seconds that one use as K/V saves over one as text; below 0 where it costs more."""
        return (tokens - repaired) / self.prefill - self.load(tokens)

    def load(self, tokens: int) -> float:
        """Seconds of a splice."""
        return self.overhead + tokens * self.bytes_per_token / self.copy

    def building(self, tokens: int, scaffold: int) -> float:
        """Seconds of a capture: its prefill, and the copy of its bytes."""
        return (scaffold + tokens) / self.prefill + tokens * self.bytes_per_token / self.copy

    def measured(self, *, short: tuple[int, float], long: tuple[int, float]) -> CostModel:
        """The model with the rates of two timed prefills, `(tokens, seconds)` each.

        Their difference gives the rate; what remains of the short one is what any engine step costs, of which a splice,
        being rows of a step that is run anyway, is charged nothing. Times that make no sense change nothing.
        """
        tokens, seconds = long[0] - short[0], long[1] - short[1]
        if tokens <= 0 or seconds <= 0:
            return self
        return replace(self, prefill=tokens / seconds)

    def loaded(self, nbytes: float, seconds: float, splices: float, weight: float = 0.2) -> CostModel:
        """The model after so many splices of `nbytes` together were timed; `weight` is that of the new figure."""
        spent = seconds - splices * self.overhead
        if nbytes < 1 << 20 or seconds <= 0:  # small loads tell of overhead alone
            return self
        rate = nbytes / spent if spent > 0 else nbytes / seconds
        return replace(self, copy=(1 - weight) * self.copy + weight * rate)


@dataclass(frozen=True)
class Candidate:
    """A cube that may become K/V. repaired: tokens that the repair policy computes anew; heat: decayed uses."""

    tokens: int
    repaired: int
    scaffold: int
    heat: float = 0.0
    pinned: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a cube is to be K/V, why in a word and in a sentence, and the seconds that each use then saves."""

    promote: bool
    cause: Cause
    reason: str
    saves: float


def judge(cube: Candidate, model: CostModel, mode: Mode) -> Verdict:
    """What becomes of a cube. `all` and `off` decide for themselves; under `auto` pinned cubes are always K/V."""
    saves = model.saving(cube.tokens, cube.repaired)
    if mode != "auto":
        return Verdict(mode == "all", mode, f"--memory-promote is {mode}", saves)
    if cube.pinned:
        return Verdict(True, "pinned", "pinned", saves)
    if saves <= 0:
        return Verdict(False, "short", f"too short: with {cube.tokens} tokens a splice saves no time", saves)
    build = model.building(cube.tokens, cube.scaffold)
    if saves * NEW_CUBE > build:
        return Verdict(True, "long", f"long: {cube.tokens} tokens pay for their capture in a few uses", saves)
    if saves * to_come(cube.heat) > build:
        return Verdict(True, "hot", f"hot: {cube.heat:.1f} uses lately pay for its capture", saves)
    needed = build / saves - NEW_CUBE
    return Verdict(False, "cold", f"cold: {cube.heat:.1f} uses lately, its capture pays from {needed:.1f} on", saves)
