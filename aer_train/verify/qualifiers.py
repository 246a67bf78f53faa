"""Whether the words around a number in a sentence leave it as it is.

At least 5, half of 10, 5 squared and step 5 say another number, or none; an area of 5, 5 more apples and 5 times a day say 5.
"""

from __future__ import annotations

import re

from aer_train.verify.measures import FRACTIONS, SCALES

_DENIED = re.compile(
    r"\b(?:not|never|cannot|neither|nor|unknown|unclear|perhaps|maybe|possibly|unless|impossible|wrong|incorrect|either|except|but|if|where|"
    r"whose|such that|no(?! doubt))\b|n't\b|\b(?:(?:might|may|could) be|probably|presumably|likely) $",
    re.IGNORECASE,
)
"""Words before a number, anywhere in its sentence, with which the sentence does not say that the answer is this number."""

_SCALES = rf"(?:{'|'.join(SCALES)})"
_BEFORE = re.compile(
    r"\b(?:than|least|most|over|under|above|below|between|within|beyond|past|besides|up to|close to|near|nearly|almost|twice|thrice|half|"
    r"double|triple|squares?d?|cubed?s?|roots?|factorial|log\w*|ln|sine|cosine|tangent|inverse|reciprocal|opposite|negative|negation|minus|"
    r"plus|times|sum|product|difference|quotient|power|exponent|absolute|modulo|remainder|subtract\w*|add\w*|divid\w*|multipl\w*|"
    rf"quarters?|percent|base|{_SCALES}|{FRACTIONS})\b"
    r"|\b(?:steps?|questions?|problems?|parts?|equations?|chapters?|pages?|examples?|cases?|lines?|rows?|columns?|exercises?|sections?) $"
    r"|(?<!total) of (?:\w+ )?$",
    re.IGNORECASE,
)
"""Words between the last is (or the beginning) and a number, that make another number of it."""

_AMOUNT = re.compile(
    r"\b(?:total|amount|area|volume|length|distance|speed|price|cost|profit|value|probability|chance|ratio|rate|average|mean|median|maximum|"
    r"minimum|perimeter|height|width|depth|weight|mass|age|score|answer|result|time|population|gain|loss|balance|discount|salary|income|"
    r"tip|bill|fee|temperature|radius|diameter|angle|slope|period|remainder|quantity|sum) of (?:only |exactly |about |approximately )?$",
    re.IGNORECASE,
)
"""What a number is the amount of: an area of 5 is 5."""

_AFTER = re.compile(
    r"\b(?:or|not|never|squared|cubed|half|halves|quarters?|factorial|choose|mod|modulo|percent|plus|minus|divided|multiplied|unless|if|except|"
    r"maybe|perhaps|wrong|false|incorrect|base|to the|raised|point|over|below|above|"
    r"(?:more|less|fewer|greater|larger|smaller) than (?:[a-z]\b|[$\\(]|twice|half|the (?:number|sum|product))|"
    rf"short of|and (?:up|under|more|less|higher|lower)|{_SCALES}s?|{FRACTIONS}|"
    r"times (?!as\b|per\b|an?\b|each\b|every\b|more|old|fast|larg|bigg|great|long|small|high))\b|^ ?[-+*/^(]? ?\d|^ ?[-+*/^!]",
    re.IGNORECASE,
)
"""Words behind a number that make another number of it."""

_LAST_COPULA = re.compile(r".*\b(?:is|are|be|equals?)\b", re.DOTALL)


def unchanged(before: str, after: str) -> bool:
    """Whether a sentence says just the number that stands between these words."""
    clause = _LAST_COPULA.sub("", before)
    changed = _BEFORE.search(clause) and not _AMOUNT.search(clause)
    return not changed and not _DENIED.search(before) and not _AFTER.search(after)


def follows_unchanged(after: str) -> bool:
    """Whether words behind a number leave it as it is."""
    return not _AFTER.search(after)
