"""Where the final answer of a response is. Looks at the end of long texts only, and is linear in what it looks at.

The conventions: see `aer_train.verify`. What a sentence says is read by `prose`, what is boxed by `boxes`.
"""

from __future__ import annotations

import re

from aer_train.verify.boxes import boxes
from aer_train.verify.choice import choice
from aer_train.verify.latex import clean
from aer_train.verify.prose import SENTENCE_END, only, value, words
from aer_train.verify.quantity import quantity

TAIL = 2000
"""Characters at the end of a response in which an answer without a box is looked for."""

MAX_MARKS = 20
"""Places with the word answer, or with ####, that are looked at."""

_THINK = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|seed:think)>|<\|(?:begin|(end))_of_thought\|>|\[(/?)THINK\]|◁(/?)think▷")
_THINK_TAG_ENDS = ("think>", "thinking>", "thought>", "reasoning>", "_thought|>", "THINK]", "think▷")
_TURN_END = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end_of_text)\|>|</s>")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(
    r"(?<![A-Za-z])(?:answers?|ans|(?:(?<=correct )|(?<=right )|(?<=best ))(?:option|choice))\b[*_\"']*(?:,\s\w+,)?"
    r"(?:(?:\s+(?:to|for|of|in|here|would|should|will|must|can|therefore|thus)\b[^.:=\n]{0,60}?)?"
    r"\s*(?:\b(?:is|are|be)\b(?!\s+(?:not|n't|wrong|incorrect|correct)\b)|:|=)|[*_ \t#]*\n|\s*(?=\$|\\[(\[]))"
    r"(?:[\s*_:]|(?:therefore|thus|then|simply|option|choice|equal to|given by|as follows|for sure|certainly|definitely|clearly)\b)*",
    re.IGNORECASE,
)
_HASHED = re.compile(r"####|^A:", re.MULTILINE)
_CHOSEN = re.compile(r"\(?[A-J][).:] ")
_BOLD_LINE = re.compile(r"\*\*([^*\n]+)\*\*\.?")
_THEREFORE = re.compile(r"^(?:so|thus|therefore|hence),? ", re.IGNORECASE)
_THEN = re.compile(r"(?<=[$)\]]) (?=(?:So|Thus|Therefore|Hence)\b)")  # a formula without a full stop, and then the conclusion
_HOPE = re.compile(r"\s+I hope (?:it|this) is correct\.$")
_PREMISE = re.compile(
    r"\W*(?:let|suppose|assume|given|consider|if|when|where|we (?:need|want|must|have to|are (?:asked|given|told))|find|compute|calculate|"
    r"determine|what|how|please|step|case|note|recall|question|problem)\b",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"\W*(?:so|thus|therefore|hence|altogether|in (?:total|all|conclusion)|finally|consequently)\b", re.IGNORECASE)


def extract(response: str) -> list[str]:
    """Return the final answer of a response: empty when there is none, several when there are different boxes."""
    text = _without_thinking(_first_turn(response))
    boxed = boxes(text)
    if boxed:
        return boxed
    tail = text[-TAIL:]
    tagged = [value(inner) for inner in _TAGGED.findall(tail)]
    answers = list(dict.fromkeys(answer for answer in tagged if answer))
    return answers or [answer for answer in [_marked(tail) or _alone(text) or _concluded(tail)] if answer]


def opened_thinking(prompt: str) -> str:
    """Return the mark with which a prompt ends that opens the thinking for the model (DeepSeek-R1, QwQ); empty for any other prompt."""
    end = prompt[-40:].rstrip()
    if not end.endswith(_THINK_TAG_ENDS):
        return ""
    last = next((mark for mark in _THINK.finditer(end) if mark.end() == len(end)), None)
    return "" if last is None or any(last.groups()) else last[0]


def gold_answer(text: str) -> str:
    """Return the answer of a gold column, which may be a whole solution that ends in a marked answer."""
    boxed = boxes(text)
    if boxed:
        return ", ".join(boxed)  # the parts of a list, each in its box
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    label = text.rstrip().rfind("\nA: ")
    return text[label + 4 :].strip() if label >= 0 else text.strip()


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


def _marked(tail: str) -> str:
    """What follows the last mark: "answer is", "Answer:", a heading Answer, ####, or A: at the beginning of a line."""
    lower = tail.lower()
    position = len(lower) if len(lower) == len(tail) else 0
    hashed = list(_HASHED.finditer(tail))[-MAX_MARKS:] if "####" in tail or "A:" in tail else []
    for _ in range(MAX_MARKS):
        position = max(lower.rfind(word, 0, position) for word in ("ans", "option", "choice"))
        while hashed and hashed[-1].start() > position:
            if found := _after_hashes(tail[hashed.pop().end() :].strip()):
                return found
        if position < 0:
            break
        if match := _SAID.match(tail, position):
            rest = tail[match.end() :]
            return value(rest.removeprefix("- ") if "\n" in match[0] else rest)  # a bullet of a list is no minus
    return ""


def _after_hashes(rest: str) -> str:
    """The answer behind ####, unless that is the heading of a section."""
    found = value(rest)
    return found if found and (quantity(clean(found)) or len(words(found)) < (1 if "\n" in rest else 2)) else ""


def _alone(text: str) -> str:
    """The whole response, when it is nothing but an answer."""
    text = _THEREFORE.sub("", text.strip())
    if _CHOSEN.match(text) and "\n" not in text and choice(clean(text[:TAIL])).letter:
        return text.rstrip(".")
    if len(text) > TAIL or "\n" in text or "\\boxed" in text or (len(words(text)) > 1 and not quantity(clean(text))):
        return ""
    return value(text)


def _concluded(tail: str) -> str:
    """The one formula or number of a last sentence that is complete and draws a conclusion or is all there is; or of a bold last line."""
    text = _HOPE.sub("", tail.rstrip())
    line = text.rsplit("\n", 1)[-1].strip()
    bold = _BOLD_LINE.fullmatch(line)
    if bold and quantity(clean(bold[1])):
        return bold[1].strip()
    sentence = _THEN.split(SENTENCE_END.split(line)[-1])[-1]
    said = _CONCLUSION.match(sentence) or (sentence == text.strip() and not _PREMISE.match(sentence))
    return only(sentence) if said and text[-1:] in (".", "!", "*", "$", ")") else ""
