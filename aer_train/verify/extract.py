r"""Where the final answer of a response is. Looks at the end of long texts only, and is linear in what it looks at.

The conventions, strict on purpose:

* Thinking is not the answer: what stands in <think>..</think> is not read, and neither is what follows a <think> that never closes.
* In this order: \boxed{..}; <answer>..</answer>; "the answer is x" in its forms; #### x; a response that is nothing but an answer; a last
  sentence that draws a conclusion (Therefore, ...) and has one number in it.
* Of several #### or "the answer is" the last counts, because examples and corrections come before it. Different boxes are all kept: that
  a policy offers several answers is for the comparison to punish.
* A box that never closes was cut off, and is none.
"""

from __future__ import annotations

import re

from aer_train.verify.latex import clean
from aer_train.verify.quantity import NUMERAL, quantity

TAIL = 2000
"""Characters at the end of a response in which an answer without a box is looked for."""

MAX_BOXES = 50
"""Boxes at the end of a response that are looked at."""

MAX_MARKS = 20
"""Places with the word answer, or with ####, that are looked at."""

MAX_BOX = 2000
"""Characters in which a box must close."""

_THINK = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|seed:think)>|<\|(?:begin|(end))_of_thought\|>|\[(/?)THINK\]|◁(/?)think▷")
_THINK_TAG_ENDS = ("think>", "thinking>", "thought>", "reasoning>", "_thought|>", "THINK]", "think▷")
_TURN_END = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text)\|>|</s>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|(-?\d[\d,]*(?:\.\d+)?))")
_PLACEHOLDER = re.compile(r"\\h?phantom\{[^{}]*\}|\\q?quad|\\[ ,;!_]|\\l?dots|\\square|[\s.?_~]")
"""What a box holds that is to be filled in."""
_BRACE = re.compile(r"\\?[{}]")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(
    r"(?<![A-Za-z])(?:answers?|ans)\b[*_\"']*(?:(?:\s+(?:to|for|of|in|here|would|should|will|must|can|therefore|thus)\b[^.:=\n]{0,60}?)?"
    r"\s*(?:\b(?:is|are|be)\b(?!\s+(?:not|n't|wrong|incorrect|correct)\b)|:|=)|[*_ \t#]*\n|\s*(?=\$|\\[(\[]))"
    r"(?:[\s*_:]|(?:therefore|thus|then|simply|option|choice|equal to|given by|as follows)\b)*",
    re.IGNORECASE,
)
_HASHED = re.compile(r"####|^A:", re.MULTILINE)
_MATH = re.compile(r"\$\$([^$]+)\$\$|\$(?!\d[\d,.]*\s)([^$\n]+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]")
_BOLD_LINE = re.compile(r"\*\*([^*\n]+)\*\*\.?")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_SENTENCE_END = re.compile(r"(?<![\d.\\])[.!][$*)\]\"']*\s|(?<=\d)\.\s+(?=[A-Z])")
_COPULA = re.compile(r"\b(?:is|are|be|equals?|=)(?:\s+(?:equal to|approximately|about|exactly|simply))?\s")
_CONCLUSION = re.compile(r"\W*(?:so|thus|therefore|hence|altogether|in (?:total|all|conclusion)|finally|consequently)\b", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z={_^])[A-Za-z]{2,}(?![A-Za-z=}(])")
_NO_PROSE = re.compile(
    r"\\(?:begin|end|text|mathrm|mbox|operatorname|textbf)\s*\{[^{}]*\}|\b(?:and|or|np|sqrt|log|ln|exp|(?:arc)?(?:sin|cos|tan))\b"
)


def extract(response: str) -> list[str]:
    """Return the final answer of a response: empty when there is none, several when there are different boxes."""
    text = _without_thinking(_first_turn(response))
    boxed = boxes(text)
    if boxed:
        return boxed
    tail = text[-TAIL:]
    tagged = [_value(inner) for inner in _TAGGED.findall(tail)]
    answers = list(dict.fromkeys(answer for answer in tagged if answer))
    return answers or [answer for answer in [_said(tail) or _hashed(tail) or _alone(text) or _concluded(tail)] if answer]


def gold_answer(text: str) -> str:
    """Return the answer of a gold column, which may be a whole solution that ends in a marked answer."""
    boxed = boxes(text)
    if boxed:
        return ", ".join(boxed)  # the parts of a list, each in its box
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    label = text.rstrip().rfind("\nA: ")
    return text[label + 4 :].strip() if label >= 0 else text.strip()


def boxes(text: str) -> list[str]:
    r"""Return the different contents of \boxed{..} (and \fbox{..}, \boxed 5), in order, without empty ones."""
    found: list[str] = []
    start = len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind("\\boxed", 0, start), text.rfind("\\fbox", 0, start))
        if start < 0:
            break
        match = _BOX.match(text, start)
        content = (match[2] or _balanced(text, match.end())) if match else ""
        while inner := _BOX.match(content):  # a box around a box
            content = inner[2] or _balanced(content, inner.end())
        if _PLACEHOLDER.sub("", content):
            found.append(content)
    return list(dict.fromkeys(reversed(found)))


def _balanced(text: str, start: int) -> str:
    """What stands before the brace that closes the one before `start`; empty when it does not close."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return ""


def _first_turn(response: str) -> str:
    """What stands before the first token that ends a turn, for tokenizers that leave it in."""
    if "<|" not in response and "</s>" not in response:
        return response
    end = _TURN_END.search(response)
    return response[: end.start()] if end else response


def _without_thinking(response: str) -> str:
    """What follows the last end of thinking, up to where thinking begins again."""
    if not any(end in response for end in _THINK_TAG_ENDS):
        return response
    begin, end = 0, len(response)
    for tag in _THINK.finditer(response):
        if any(tag.groups()):
            begin, end = tag.end(), len(response)
        elif end == len(response):
            end = tag.start()
    return response[begin:end]


def _said(tail: str) -> str:
    """What follows the last "answer is", "Answer:" or heading Answer."""
    lower = tail.lower()
    position = len(lower) if len(lower) == len(tail) else 0
    for _ in range(MAX_MARKS):
        position = lower.rfind("ans", 0, position)
        if position < 0:
            break
        match = _SAID.match(tail, position)
        if match:
            rest = tail[match.end() :]
            return _value(rest.removeprefix("- ") if "\n" in match[0] else rest)  # a bullet of a list is no minus
    return ""


def _hashed(tail: str) -> str:
    """What follows the last #### (or A: at the beginning of a line), unless it is the heading of a section."""
    if "####" not in tail and "A:" not in tail:
        return ""
    for mark in list(_HASHED.finditer(tail))[: -MAX_MARKS - 1 : -1]:
        rest = tail[mark.end() :].strip()
        value = _value(rest)
        if value and (quantity(clean(value)) or len(_words(value)) < (1 if "\n" in rest else 2)):
            return value
    return ""


def _alone(text: str) -> str:
    """The whole response, when it is nothing but an answer."""
    text = text.strip()
    if len(text) > TAIL or "\n" in text or "\\boxed" in text or (len(_words(text)) > 1 and not quantity(clean(text))):
        return ""
    return _value(text)


def _concluded(tail: str) -> str:
    """The one formula or number of a last sentence that draws a conclusion and is complete, or of a last line that is bold."""
    text = tail.rstrip()
    line = text.rsplit("\n", 1)[-1].strip()
    bold = _BOLD_LINE.fullmatch(line)
    if bold and quantity(clean(bold[1])):
        return bold[1].strip()
    sentence = _SENTENCE_END.split(line)[-1]
    return _only(sentence) if text[-1:] in (".", "!", "*", "$", ")") and _CONCLUSION.match(sentence) else ""


def _value(text: str) -> str:
    """The answer that a text begins with: its first formula or line, without markup and what is said around it."""
    text = text.strip().lstrip("*_:`\"' \n")
    formula = _MATH.match(text)
    line = (text[: formula.end()] + text[formula.end() :].split("\n", 1)[0]) if formula else text.split("\n", 1)[0]
    sentence = _SENTENCE_END.split(line + " ", maxsplit=1)[0].strip().strip("*_`\"'").rstrip(".").strip()
    if "\\boxed" in sentence:  # it did not close
        return ""
    if len(_words(_MATH.sub("", sentence))) == 0 or quantity(clean(sentence), letter_units=True):
        return sentence
    if formula:
        return _inside(formula)
    return _only(sentence) or sentence


def _only(sentence: str) -> str:
    """What a sentence says that something is, or its one formula, bold text or number; empty when there are none or several."""
    after = _COPULA.split(sentence)[-1].strip().rstrip(".!").strip("*` ")
    if after != sentence and after and (not _words(_MATH.sub("", after)) or quantity(clean(after))):
        return after
    formulas = [_inside(match) for match in _MATH.finditer(sentence)]
    bold = [match[1].strip() for match in _BOLD.finditer(sentence)]
    numbers = [match[0] for match in NUMERAL.finditer(sentence.replace("$", ""))]
    for found in (formulas, bold, numbers):
        if len(found) == 1:
            return found[0]
        if found:
            return ""
    return ""


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _words(text: str) -> list[str]:
    return _WORD.findall(_NO_PROSE.sub(" ", text))
