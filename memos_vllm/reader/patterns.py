"""The patterns of English statements about something that has one value at a time.

They are matched from the start of a sentence whose apostrophes are straight and whose blanks are single. `(?i:…)` marks
words in either case; names of people and places are told by their capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Patterns = tuple[tuple[str, re.Pattern[str]], ...]
"""Family of the key → pattern. Groups: who, whose, thing (what is spoken of), value (what is said of it), what (a value
that is part of the key), old (what the value replaces), other (what it is preferred to), dislike.
"""

_NOW_WORDS = "now|currently|just|recently|really|also|still|actually|finally|already|usually|mostly|absolutely|truly|so"
NOW = rf"(?:(?i:{_NOW_WORDS}|both|do) )*"
_NEW = "(?i:new |current |all-time |absolute )*"
_IS = r"(?i:\s*(?:is|are|'s|'re|has become|became|will be)(?: now)?\s+|:\s*)"
_AM = "(?i:'m| am| is|'re| are)"
_HAVE = "(?i:'ve| have| has)"
_FAVOURITE = "(?i:favou?rite)"
_ATTRIBUTES = "|".join(
    (
        "name|nickname|surname|birthday|birth date|date of birth|age|email|e-mail|phone|number|address|job|profession",
        "occupation|employer|company|boss|manager|hometown|home town|city|country|nationality|diet|height|weight|size",
        "shoe size|shirt size|blood type|time zone|timezone|language|native language|mother tongue|major|school|doctor",
        "university|password|username|pronouns|car|bike|laptop|operating system|editor|budget|deadline|goal|salary",
        "dentist|therapist|wife|husband|partner|spouse|girlfriend|boyfriend|fiance|landlord|bank|team|role|title",
    )
)
_LIKING = (
    r"(?P<dislike>hates?|dislikes?|detests?|loathes?|can'?t stand|cannot stand|avoids?)|likes?|loves?|enjoys?|adores?"
)
_DIETS = "vegan|vegetarian|pescatarian|flexitarian|keto|gluten[- ]free|halal|kosher"
_STATUSES = "single|married|engaged|divorced|widowed|separated"
_STATUS_END = (
    r"(?=\s*(?:[.,;!?]|$)|\s+(?:(?i:to|since|for|now|again|and|but|last|this|yesterday|today|recently)\b|"
    r"(?i:in|on) [A-Z\d]))"
)
"""What may follow a status: nobody is "engaged in a dispute" or "single-handed" by it."""

SUBJECT = re.compile(r"(?P<who>(?i:i|we|my (?:\w+ )?\w+|our \w+)|[A-Z][\w-]+(?: [A-Z][\w-]+)?)(?=[\s'])")


def _compiled(rows: Iterable[tuple[str, str]]) -> Patterns:
    return tuple((family, re.compile(pattern)) for family, pattern in rows)


POSSESSIONS = _compiled(
    (
        ("name", rf"(?i:my (?:full )?name){_IS}(?P<value>.+)"),
        ("name", "(?i:i(?:'m| am) called) (?P<value>.+)"),
        ("nickname", "(?i:(?:please )?(?:always )?(?:call|address) me|i go by|people call me) (?P<value>.+)"),
        ("favourite", rf"(?i:my|our) {_NEW}{_FAVOURITE}(?: (?P<thing>[\w' -]+?))?{_IS}(?P<value>.+)"),
        ("favourite", rf"(?P<value>.+?) (?i:is|are)(?i: now)? (?i:my|our) {_NEW}{_FAVOURITE}(?: (?P<thing>[\w' -]+))?"),
        (
            "favourite",
            rf"(?i:i (?:have )?(?:changed|switched) my) {_FAVOURITE} (?P<thing>[\w' -]+?)(?i: from (?P<old>.+?))?"
            "(?i: to) (?P<value>.+)",
        ),
        (
            "attribute",
            rf"(?i:my|our) {_NEW}(?P<thing>(?:[\w-]+(?:'s)? ){{0,3}}(?i:{_ATTRIBUTES})(?i: number| address)?){_IS}"
            "(?P<value>.+)",
        ),
        (
            "attribute",
            rf"(?i:i (?:have )?(?:changed|updated|switched) my) (?P<thing>(?:[\w-]+ ){{0,2}}(?i:{_ATTRIBUTES}))"
            "(?i: from (?P<old>.+?))?(?i: to) (?P<value>.+)",
        ),
        ("called", r"(?i:my|our) (?P<thing>(?:\w+ )?\w+) (?i:is|are) (?i:called|named) (?P<value>.+)"),
        (
            "answers",
            "(?i:(?:please )?(?:always )?(?:answer|reply|respond|write|speak|talk)(?: to me)? in) (?P<value>.+)",
        ),
        (
            "use",
            r"(?i:(?:please )?(?:always |from now on,? )?use) (?P<value>[\w-]+) "
            "(?P<thing>(?i:units|spelling|format|time|clock|dates|tone|temperatures))",
        ),
    )
)
"""Sentences about what somebody has, read as a whole."""

PREDICATES = _compiled(
    (
        (
            "home",
            rf"(?:{_AM}|{_HAVE})? ?{NOW}(?i:lives?|living|resides?|based|been living) (?i:in|near|at) (?P<value>.+)",
        ),
        (
            "home",
            rf"(?:{_AM}|{_HAVE})? ?{NOW}(?i:moved|relocated|moving)(?i: back)?(?i: from (?P<old>.+?))? (?i:to) "
            "(?P<value>(?:the )?[A-Z].*)",
        ),
        ("origin", rf"(?:{_AM}(?i: originally)?|(?i: comes?)) (?i:from) (?P<value>[A-Z].*)"),
        ("employer", rf"{_AM}? ?{NOW}(?i:works?|working|employed|started(?: working)?) (?i:at|for) (?P<value>.+)"),
        ("employer", rf"{_HAVE}? ?{NOW}(?i:joined) (?P<value>[A-Z].*)"),
        ("job", rf" ?{NOW}(?i:works?) (?i:as) (?i:an? |the )?(?P<value>.+)"),
        ("age", rf"(?:{_AM}|(?i: turned))(?i: now| just)? (?P<value>\d{{1,3}})(?i: years? old| now| today)*\s*[.!]*$"),
        (
            "status",
            rf"(?:{_AM}|{_HAVE})?(?i: now| just| newly| happily| recently| got)* (?P<value>(?i:{_STATUSES}))"
            rf"{_STATUS_END}.*",
        ),
        (
            "diet",
            rf"(?:{_AM}|{_HAVE}? (?i:become|became|turned|went))(?i: not| now| no longer| an?| strict(?:ly)?| also)* "
            rf"(?P<value>(?i:{_DIETS}))(?![\w-]).*",
        ),
        ("allergy", rf"{_AM}(?i: not| no longer| also| very| severely| slightly)* (?i:allergic to) (?P<what>.+)"),
        (
            "choice",
            rf"(?i:'d| would)? ?{NOW}(?i:prefers?) (?P<value>.+?) (?i:to|over|rather than|instead of) (?P<other>.+)",
        ),
        ("preference", rf" ?{NOW}(?i:prefers?) (?P<value>.+)"),
        (
            "switch",
            rf"{_HAVE}? ?{NOW}(?i:switched|changed|converted|gone|went) (?i:from) (?P<old>.+?) (?i:to) (?P<value>.+)",
        ),
        (
            "taste",
            rf"(?i: (?:don't|do not|doesn't|does not|no longer|never|stopped))? ?{NOW}(?i:{_LIKING}|liking|enjoying):? "
            "(?P<what>.+)",
        ),
        (
            "taste",
            rf"{_AM}(?i: not| no longer| really| also| very)* (?i:into|fond of|(?:a )?(?:big |huge |great )?fan of) "
            "(?P<what>.+)",
        ),
    )
)
"""What follows a subject."""

DEED = re.compile(
    r"(?P<who>(?i:i|we)|(?i:my) \w+)(?i:'m|'ve| am| do| does| is)?"
    r"(?i:n't| not| never| no longer| quit| stopped| gave up| have given up)*"
    rf" {NOW}(?P<verb>[\w-]+)(?P<what>\W.*)?$"
)
"""What a person does: any verb in the present."""

_IRREGULAR = (
    "was were had did went saw met bought got took made came ate ran found told said thought left felt flew drove "
    "wrote won lost broke began became brought built caught chose drank fell fought forgot gave grew heard held kept "
    "knew led lent learnt paid put read rode sang sat sent slept spent spoke stood swam taught threw understood woke "
    "wore been gone done seen taken given known"
)
PAST_VERBS = frozenset(_IRREGULAR.split())
"""Irregular verbs that tell of the past."""

PAST = re.compile(
    r"(?i)\b(?:used to|was|were|had|lived|worked|formerly|previously|back then|once|in the past|"
    r"as a (?:child|kid|teenager))\b"
)
NEGATION = re.compile(
    r"(?i)\b(?:not|never|no longer|neither|nor|hardly|stopped|quit|gave up|given up|cannot|can'?t)\b|n't\b"
)
STAND = re.compile(r"(?i)can(?:'?t|not) stand")
"""A dislike with a negation of its own."""

NAMED = re.compile(r"(?:(?i:the|an?|called|named|dr|mr|mrs|ms|prof)\.? )*(?:[A-Z]|[\w.+-]*@|\S*\d)")
"""A value that names something: by a capital, or a number."""
MEASURED = re.compile(r"\d+[.,]?\d*(?: ?%| [a-z]+\b)")
"""A number of something, which describes: "5 years old"."""
DESCRIBING = re.compile(
    r"(?i)(?:an?|the|my|our|his|her|their|this|that|some|very|too|so|really|not|on|in|at|from|out|off|under|with|to|for|of)\b"
)
"""Where a value begins so and names nothing, it describes: "on holiday", "a small flat"."""
BESIDE = re.compile(
    r"(?i)\b(?:weekends?|evenings?|nights|part[- ]time|on the side|sometimes|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)days)\b"
)
"""What is said to hold only at times stands beside what holds otherwise."""
CHANGE = re.compile(
    r"(?i)\b(?:now|nowadays|these days|no longer|any ?more|instead|actually|new|moved|moving|relocated|changed|"
    r"switched|updated|joined|started|from now on|became|become)\b"
)
"""Words by which a sentence says that something is no longer as it was."""
_LANGUAGES = (
    "english french german spanish portuguese italian dutch polish russian ukrainian chinese mandarin cantonese "
    "japanese korean arabic hebrew turkish greek swedish norwegian danish finnish czech slovak hungarian romanian "
    "bulgarian serbian croatian hindi bengali urdu punjabi tamil telugu thai vietnamese indonesian malay tagalog "
    "swahili persian farsi catalan basque galician irish welsh icelandic latvian lithuanian estonian slovenian latin"
)
LANGUAGES = frozenset(_LANGUAGES.split())

STOP = re.compile(
    r"(?i)[,;!?(]|(?<!\b[dm]r)(?<!\bmrs)(?<!\bms)(?<!\bst)(?<!\bprof)\.(?=\s|$)|\s+(?:because|since|when|while|although|though|but|and|so|which|who|where|if|unless|until|"
    r"rather than|instead of|for (?:about |over |almost )?\d|for (?:a|many|several|two|three|four|five|the last)|"
    r"yesterday|today|tomorrow|tonight|(?:last|next|this) (?:week|month|year|spring|summer|autumn|fall|winter|\w+day)|"
    r"(?:a|one|two|three|\d+) (?:day|week|month|year)s? ago|in (?:19|20)\d\d|on \w+day|"
    r"in (?:january|february|march|april|may|june|july|august|september|october|november|december))\b"
)
"""Where a value ends and its reason, time or the next thought begins."""

TAIL = re.compile(
    r"(?i)(?<![\s,])[\s,]*+(?:\b(?:now|nowadays|these days|any ?more|instead|at the moment|currently|again|though|too|"
    r"as well|lately|right now|as of (?:today|now)|from now on|very much|a lot|the most|so much|most of all|"
    r"please)\b[\s,]*+)++$"
)
