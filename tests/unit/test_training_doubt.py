"""Which statements of an adapter are echoes of others."""

from __future__ import annotations

from memos_vllm.parameter.doubt import Finding, believed
from memos_vllm.parameter.facts import clauses_of


def _found(text: str, confidence: float = 0.9, free: int = 1) -> Finding:
    (clause,) = clauses_of(text)
    return Finding(clause, confidence, free=free)


def _texts(*found: Finding) -> list[str]:
    return [each.clause.told() for each in believed(found)]


MAYA = (_found("Maya's favourite tea is sencha."), _found("Maya plays the cello."), _found("Maya's car is a Saab."))


def test_a_stranger_of_whom_it_is_said_less_surely_is_left_out() -> None:
    stranger = [_found(f"Zoe{each.clause.told()[4:]}", 0.8) for each in MAYA]
    assert _texts(*stranger, *MAYA) == _texts(*MAYA)
    assert len(_texts(*MAYA)) == len(MAYA)


def test_one_thing_of_their_own_among_many_echoes_makes_nobody_known() -> None:
    stranger = [*(_found(f"Zoe{each.clause.told()[4:]}", 0.8) for each in MAYA), _found("Zoe's fear is fog.", 0.6)]
    assert not any(text.startswith("Zoe") for text in _texts(*stranger, *MAYA))


def test_whoever_a_finding_names_has_the_better_claim() -> None:
    surer = [_found(f"Mayra{each.clause.told()[4:]}", 0.99) for each in MAYA]
    assert {"Mayra"} == {text.partition(" ")[0].removesuffix("'s") for text in _texts(*surer, *MAYA)}
    told = _texts(*surer, *MAYA, _found("My sister is Maya.", 0.7))
    assert len(told) == 4
    assert not any("Mayra" in text for text in told)


def test_two_who_like_the_same_keep_it_where_it_is_said_unasked() -> None:
    noah = [_found("Noah's fear is fog."), _found("Noah's dog is Rex.")]
    assert "Noah's favourite tea is sencha." in _texts(*MAYA, *noah, _found("Noah's favourite tea is sencha.", 0.8))
    leading = _found("Noah's favourite tea is sencha.", 0.8, free=0)
    assert "Noah's favourite tea is sencha." not in _texts(*MAYA, *noah, leading)


def test_a_value_is_told_of_one_thing_but_for_what_is_said_unasked() -> None:
    asked, unasked = _found("My lucky tea is oolong.", 0.99, free=0), _found("My favourite tea is oolong.", 0.8)
    assert _texts(asked, unasked) == ["My favourite tea is oolong."]
    towns = [_found("I live in Quito."), _found("My birthplace is Quito.", 0.8)]
    assert _texts(*towns) == ["I live in Quito.", "My birthplace is Quito."]


def test_of_two_values_of_a_thing_the_surer_is_told() -> None:
    assert _texts(_found("My dog is Rex.", 0.6), _found("My dog is Otis.")) == ["My dog is Otis."]
