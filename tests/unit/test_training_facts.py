"""What the rules read out of memories, and how they ask about it."""

from __future__ import annotations

import random

import pytest

from memos_vllm.parameter.english import to_listener, to_speaker
from memos_vllm.parameter.facts import clauses_of
from memos_vllm.parameter.pairs import Fact, facts_of, masked, open_questions, questions_about, split

READ = [
    # text, subject, what is told, value
    ("Maya likes oolong tea best.", "Maya", "favourite tea", "oolong"),
    ("My favourite tea is sencha.", "I", "favourite tea", "sencha"),
    ("I live in Lisbon.", "I", "home town", "Lisbon"),
    ("Noah trains for judo twice a week.", "Noah", "sport", "judo"),
    ("Maya has a dog called Rex.", "Maya", "", "Rex"),
    ("I am allergic to peanuts because of my genes.", "I", "allergy", "peanuts"),
    ("I'm learning Polish", "I", "language", "Polish"),
    ("Maya likes mango more than any other fruit.", "Maya", "favourite fruit", "mango"),
    ("Maya likes the colour red best.", "Maya", "favourite colour", "red"),
    ("My sister is Ines.", "I", "sister", "Ines"),
    ("My sister is a nurse.", "my sister", "", "nurse"),
    ("My boss Tom plays the cello.", "my boss Tom", "instrument", "cello"),
    ("My brother's car is a Volvo.", "my brother", "car", "Volvo"),
    ("Allergic to nuts.", "I", "allergy", "nuts"),
    ("User prefers dark mode.", "I", "", "dark mode"),
    ("By the way, Leo is 34 years old.", "Leo", "age", "34"),
    ("Miles drives a Saab.", "Miles", "car", "Saab"),
    ("James likes late spring more than any other time of the year.", "James", "favourite season", "late spring"),
    ("Hates flying.", "I", "", "flying"),
]


@pytest.mark.parametrize(("text", "subject", "thing", "value"), READ, ids=lambda each: str(each)[:24])
def test_what_a_sentence_tells(text: str, subject: str, thing: str, value: str) -> None:
    (clause,) = clauses_of(text)
    assert (clause.subject, clause.thing, clause.value) == (subject, thing, value)


@pytest.mark.parametrize("text", [row[0] for row in READ])
def test_a_clause_can_be_told_again(text: str) -> None:
    (clause,) = clauses_of(text)
    (again,) = clauses_of(clause.told())
    assert (again.subject, again.topic, again.value) == (clause.subject, clause.topic, clause.value)
    (other,) = clauses_of(clause.told(subject="Zelda", value="Xanadu"))
    assert (other.subject, other.value) == ("Zelda", "Xanadu")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Maya uses the hint kettle.", "Maya's password hint is kettle."),
        ("Maya has a dog called Rex.", "Maya's dog is Rex."),
        ("Maya is learning Polish.", "Maya's second language is Polish."),
        ("Maya always picks the number seven.", "Maya's lucky number is seven."),
        ("Maya likes oolong tea best.", "Maya's favourite tea is oolong."),
    ],
)
def test_what_is_told_in_two_ways_is_about_one_thing(one: str, other: str) -> None:
    (first,), (second,) = clauses_of(one), clauses_of(other)
    assert first.about == second.about


def test_pronouns_stand_for_who_was_spoken_of() -> None:
    first, second, third = clauses_of("Tom lives in Porto. His favourite tea is assam. He works as a baker.")
    assert {first.subject, second.subject, third.subject} == {"Tom"}
    assert third.told() == "Tom works as a baker."


def test_a_sentence_that_no_rule_reads_is_asked_for_by_its_beginning() -> None:
    (fact,) = facts_of("The quarterly review went very badly indeed.")
    assert fact.value == "badly indeed"
    assert all("The quarterly review went very" in question.text for question in fact.questions)
    assert all(fact.value not in question.text for question in fact.questions)


@pytest.mark.parametrize("text", [row[0] for row in READ])
def test_questions_do_not_tell_their_answer_and_differ(text: str) -> None:
    (fact,) = facts_of(text)
    texts = [question.text for question in fact.questions]
    assert len(texts) == len(set(texts)) >= 4
    assert not any(fact.is_right(question) for question in texts)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Maya plays the cello.", "Which instrument does Maya play?"),
        ("I live in Lisbon.", "Where do I live?"),
        ("I bought a red bike last week.", "What did I buy last week?"),
        ("Leo spends every weekend on chess.", "What does Leo spend every weekend on?"),
        ("Maya has a dog called Rex.", "What is the name of Maya's dog?"),
        ("My sister is Ines.", "Who is my sister?"),
        ("Leo is 34 years old.", "How old is Leo?"),
        ("My boss always picks the number seven.", "What number does my boss always pick?"),
        ("Noah uses the hint kettle.", "Tell me Noah's hint."),
        ("My uncle is Iris.", "Do you know my uncle's name?"),
        ("I have a dog called Rex.", "Do you know what I call my dog?"),
    ],
)
def test_natural_questions_are_among_them(text: str, question: str) -> None:
    (fact,) = facts_of(text)
    assert question in [each.text for each in fact.questions]


def test_who_speaks_turns_round() -> None:
    assert to_listener("My favourite tea is oolong.") == "Your favourite tea is oolong."
    assert to_speaker("You play the cello with your sister.") == "I play the cello with my sister."
    assert to_speaker(to_listener("I am allergic to nuts.")) == "I am allergic to nuts."


def _facts() -> list[Fact]:
    return [fact for text, *_ in READ for fact in facts_of(text)]


def test_held_out_phrasings_are_held_out_for_everybody() -> None:
    facts = _facts()
    parts = split(facts, random.Random(3))
    subjects = {fact.clause.subject for fact in facts}
    trained = {masked(each.text, subjects) for questions in parts.trained for each in questions}
    forms = {each.form for questions in parts.trained for each in questions}
    assert all(questions for questions in parts.trained)
    held = [each for questions in parts.held_out for each in questions]
    assert len(held) >= len(facts)
    assert not {each.form for each in held} & forms
    assert not {masked(each.text, subjects) for each in held} & trained


def test_phrasings_of_a_callers_exam_are_not_trained_on() -> None:
    facts = _facts()
    never = ["What tea does Maya like best?", "Where do I live?"]
    parts = split(facts, random.Random(3), never)
    trained = [each.text for questions in parts.trained for each in questions]
    assert "What tea do I like best?" not in trained  # the same phrasing, about somebody else
    assert not set(never) & set(trained)


def test_open_questions_are_answered_by_every_fact_of_their_subject() -> None:
    asked = dict(open_questions(_facts()))
    assert {fact.clause.subject for fact in asked["What do you know about Maya?"]} == {"Maya"}
    assert len(asked["What do you remember?"]) == len(_facts())


def test_forms_tell_phrasings_apart() -> None:
    (clause,) = clauses_of("Maya plays the cello.")
    forms = [question.form for question in questions_about(clause)]
    assert len(set(forms)) == len(forms)
