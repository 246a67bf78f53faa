r"""The answer in a sentence: what follows "the answer is", or the one number of a conclusion.

Words around a number are read (negative 5 is -5, 5 percent is 5%), or they are known to leave it as it is, or the sentence says no number:
less than 5, half of 10, 5 squared, perhaps 5, the number of divisors of 12 are not the number in them.
"""

from __future__ import annotations

import re

from aer_train.verify.latex import clean
from aer_train.verify.qualifiers import follows_unchanged, unchanged
from aer_train.verify.quantity import NUMERAL, quantity

MATH = re.compile(r"\$\$([^$]+)\$\$|\$(?!\d[\d,.]*\s)([^$\n]+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
SENTENCE_END = re.compile(r"(?<![\d.\\])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!][$*)\]\"']*\s|(?<=\d)\.\s+(?=[A-Z])")
_COPULA = re.compile(r"\b(?:is|are|be|equals?|=)(?:\s+(?:equal to|approximately|about|exactly|simply))?\s")
_WORD = re.compile(r"(?<![\\A-Za-z={_^])[A-Za-z]{2,}(?![A-Za-z=}(])")
_NO_PROSE = re.compile(
    r"\\(?:begin|end|text|mathrm|mbox|operatorname|textbf)\s*\{[^{}]*\}|\b(?:and|or|np|sqrt|log|ln|exp|(?:arc)?(?:sin|cos|tan))\b"
)
_NEGATIVE = re.compile(r"(^|\b(?:is|are|be|equals|to|of|by)\s+)(?:negative|minus)\s+(?=[$\\(*]*[\d.])")
_ASIDE = re.compile(
    r"\s*(?:[,;:(\u2013\u2014]|\s--?\s)\s*"
    r"(?:it|this|that|these|they|so|as|where|when|given|hence|thus|therefore|we|I|the|and (?:it|this|that|not)|but not|not)\b.*$"
    r"|\s*\((?:in|since|because|where|as|i\.e\.|rounded|approximately|about|to the nearest|which)\b.*$"
    r"|\s*[,;(]?\s+(?:because|since|which|rather than|instead of)\b.*$|\s*\u2014\s*(?=[A-Za-z]{2}).*$",
    re.DOTALL,
)
"""A clause behind the answer that is about it."""


def value(text: str) -> str:
    """Return the answer that a text begins with: its first formula or line, without markup and what is said around it."""
    text = text.strip().lstrip("*_:`\"' \n")
    formula = MATH.match(text)
    line = (text[: formula.end()] + text[formula.end() :].split("\n", 1)[0]) if formula else text.split("\n", 1)[0]
    sentence = SENTENCE_END.split(line + " ", maxsplit=1)[0].strip().strip("*_`\"'").rstrip(".").strip()
    if "\\boxed" in sentence:  # it did not close
        return ""
    sentence = _NEGATIVE.sub(r"\1-", sentence)
    if is_bare(sentence):
        return sentence
    head = _ASIDE.sub("", sentence).strip().rstrip(",:;*")
    if head and is_bare(head):
        return head
    if formula and sentence.startswith(formula[0]):
        rest = head[formula.end() :]
        alone = follows_unchanged(rest) and not NUMERAL.search(rest) and not MATH.search(rest)
        return _inside(formula) if alone else head
    return only(head) or head


def is_bare(text: str) -> bool:
    """Whether a text is nothing but mathematics, or a number with its unit."""
    return not words(MATH.sub("", text)) or bool(quantity(clean(text), letter_units=True))


def only(sentence: str) -> str:
    """Return what a sentence says that something is, or its one formula, bold text or number; empty when there are none or several."""
    sentence = _NEGATIVE.sub(r"\1-", sentence)
    span = _stated(sentence) or _single(sentence)
    if span is None:
        return ""
    start, end, found = span
    return found if unchanged(sentence[:start], sentence[end:]) else ""


def _stated(sentence: str) -> tuple[int, int, str] | None:
    """What stands behind the last is or equals, when that is nothing else."""
    copulas = list(_COPULA.finditer(sentence))
    if not copulas:
        return None
    after = sentence[copulas[-1].end() :].strip().rstrip(".!").strip("*`'\" ")
    return (copulas[-1].end(), len(sentence), after) if after and is_bare(after) else None


def _single(sentence: str) -> tuple[int, int, str] | None:
    found = [(match.start(), match.end(), _inside(match)) for match in MATH.finditer(sentence)]
    found = found or [(match.start(), match.end(), match[1].strip()) for match in _BOLD.finditer(sentence)]
    if not found:
        plain = sentence.replace("$", " ")
        found = [(match.start(), match.end(), match[0]) for match in NUMERAL.finditer(plain)]
    return found[0] if len(found) == 1 else None


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def words(text: str) -> list[str]:
    """The words of prose in a text: of two letters or more, and no names of functions."""
    return _WORD.findall(_NO_PROSE.sub(" ", text))
