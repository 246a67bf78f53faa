r"""What an answer is made of: one value, a list, a set, a tuple or interval, a union of intervals, a matrix, a ratio."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from aer_train.verify.brackets import enclosing, inside, split
from aer_train.verify.intervals import as_interval, as_member, named_interval, without_builder
from aer_train.verify.latex import squeeze
from aer_train.verify.quantity import quantity

ORDERED = ("()", "[]", "(]", "[)")
"""Kinds of tuples and intervals."""


class Shape(NamedTuple):
    """An answer, taken apart."""

    kind: str
    """value, list, set, union (of intervals), ratio, matrix (with the lengths of its rows), or the two brackets of a tuple or interval."""
    parts: list[str]
    name: str
    """What stands before the equals sign: x = 5 has the name x."""


_GEOMETRY = (
    r"m? ?\\(?:angle|measuredangle|overline|widehat|widetilde|overrightarrow|vec|hat|bar) ?"
    r"(?:\{ ?[A-Za-z]+'? ?\}|[A-Z]{1,4}(?![A-Za-z])|\\[a-z]+)"
    r"|\| ?[A-Z]{2} ?\||\\frac\{ ?[A-Z]{2} ?\}\{ ?[A-Z]{2} ?\}"
)
"""Names of angles, lengths and ratios of lengths."""
VARIABLE = r"(?:\\Delta )?\\?[A-Za-z]+'?(?:_(?:\w|\{[^{}]*\}))?"
"""x, \\alpha, v_0, V_{max}, \\Delta t."""
_SYMBOL = rf"(?:\\text ?\{{[^{{}}]*\}}|{_GEOMETRY}|{VARIABLE})"
NAME = re.compile(
    rf"(?!\\pi ?\\approx)(?:{_SYMBOL}(?: ?\([A-Za-z](?:, ?[A-Za-z])*\))?|\([A-Za-z](?:, ?[A-Za-z])*\)|{_SYMBOL}(?: ?: ?{_SYMBOL})+)"
    r" ?(?:=|\\in(?![A-Za-z])|:=|\\approx(?![A-Za-z])) ?(?!=)"
)
DENIED = re.compile(
    r"(?:\b(?:[Nn](?:ot|ever|o(?!\.))|[Ww]rong|[Ii](?:ncorrect|f)|[Ff]alse|[Mm]aybe|[Pp](?:erhaps|ossibly)|[Uu]nless)\b|n't\b)[^=]*="
)
"""Words before an equals sign with which what stands behind it is not said."""
_RECKONED = re.compile(r"^-?\d|\+")
"""In what is more than a name: 2x = \\{1, 2\\}, 1 + x = (1,2)."""
_WORD_SEPARATOR = re.compile(r",? ?(?:\\text ?\{ ?,? ?(?:and|or) ?,? ?\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?", re.IGNORECASE)
_WORD_WITHIN = re.compile(r"\\text ?\{([^{}]*?),? ?\b(and|or)\b ?([^{}]*)\}")
_COMMA_WITHIN = re.compile(r"\\text ?\{([^{}]*?), ?\} ?")
_LETTERS = re.compile(r"\\text ?\{ ?((?:[A-Z](?:,? ?(?:and|or) |, ?| ?(?=\})))+)\}")  # \text{A and C}
_MATRIX = re.compile(r"(.*?)(?:\* ?)?([\[(]?)\\begin\{matrix\}(.*)\\end\{matrix\}([\])]?)(\^ ?(?:T|\\top|\{ ?(?:T|\\top) ?\}))?", re.DOTALL)
_CASES = re.compile(r"(?:\\\{ ?)?\\begin\{(?:cases|aligned|align|gathered)\*?\}(.*)\\end\{(?:cases|aligned|align|gathered)\*?\}", re.DOTALL)
_BRACKET = re.compile(r"[(\[{]")
_THOUSANDS = re.compile(
    r"(?:(?<=[-+*/=x] )\d{1,3}(?:,\d{3})+|(?<![\d,.])\d{1,3}(?:,\d{3})+(?=(?:\.\d+)? [-+*/=x]))(?![\d,])"
)  # in a sum: 8,094 - 1,649 = 6,445
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_CLOCK = re.compile(r"\d{1,2}:\d\d(?!\d)")
_CONDITION = re.compile(r"^[, ]*\\text ?\{ ?(?:if|for|when|where)? ?\}|^[, ]*(?:if|for|when|where)\b")


@lru_cache(maxsize=2_000)
def shape(text: str) -> Shape:
    """Take a cleaned text apart."""
    if "," in text and not _BRACKET.search(text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = _as_tuples(without_builder(text.strip().rstrip(" .;"))).replace(";", ", ")
    named = None if DENIED.search(text) else NAME.match(text)
    name, body = (_name(named[0]), text[named.end() :]) if named else ("", text)
    sides = split(text, "=")
    if len(sides) > (2 if named else 1) and all(sides) and "\\text" not in sides[0] and not _RECKONED.search(sides[0]):
        *between, last = (shape(side) for side in sides[1:])
        if last.kind not in ("value", "list") and all(side.kind == last.kind for side in between):
            return last._replace(name=squeeze(sides[0]))  # A \cap B = \{1, 2\}, (x,y) = (1+1,3) = (2,3)
    if not body or len(split(body, "=")) > 1:  # an equation, a chain of them, or several
        name, body = "", text
    if quantity(body) is not None:
        return Shape("value", [body], name)
    if "\\begin" in body:
        found = _rows(body)
        return found._replace(name=name) if found else Shape("value", [body], name)
    about, body = named_interval(_unwrapped(body))
    name = name or squeeze(about)
    if len(pieces := split(body, "\\cup")) > 1 or "\\setminus" in body:
        return Shape("union", [as_interval(piece) for piece in pieces], name)
    if brackets := enclosing(body):
        parts = _listed(inside(body, brackets))
        if brackets in ("\\{\\}", "{}") and parts != [""] and not re.search(r"[|:]", body):
            return Shape("set", list({squeeze(part): part for part in parts}.values()), name)
        return Shape(brackets, parts, name) if len(parts) > 1 else Shape("value", [body], name)
    if len(pieces := split(body, ":")) > 1 and all(pieces) and not _CLOCK.match(body):
        return Shape("ratio", pieces, name)
    if letters := _LETTERS.fullmatch(text):
        text = letters[1]
    elif any(character.isdigit() for character in text):
        text = _WORD_WITHIN.sub(_parted, _COMMA_WITHIN.sub(r"\\text{\1}, ", text))
    pieces = [piece for piece in _WORD_SEPARATOR.split(text) if piece.strip()]
    parts = [as_member(part) for piece in pieces for part in _listed(piece.strip(" ,"))]
    return Shape("list", parts, "") if len(parts) > 1 else Shape("value", [body], name)


def _as_tuples(text: str) -> str:
    """Write solutions in the same unknowns, p=5, q=2; p=7, q=2, as the tuples that they are: (5, 2), (7, 2)."""
    if text.count("=") < 4:
        return text
    solutions = [split(solution, ",") for part in split(text, ";") for solution in _WORD_SEPARATOR.split(part)]
    named = [[(NAME.match(value), value) for value in values] for values in solutions]
    if len(named) < 2 or not all(match for values in named for match, _ in values):
        return text
    if len(named[0]) < 2 or len({tuple(_name(match[0]) for match, _ in values if match) for values in named}) > 1:
        return text
    return ", ".join(f"({', '.join(value[match.end() :] for match, value in values if match)})" for values in named)


def _name(written: str) -> str:
    return re.sub(r"(?:=|\\in|:=|\\approx)$", "", squeeze(written).rstrip("="))


def _unwrapped(text: str) -> str:
    r"""The text without braces around the whole that are only LaTeX's: {n \le k \le 2n}, but not {1, 2}."""
    brackets = enclosing(text)
    return inside(text, "{}") if brackets == "{}" and len(_listed(inside(text, "{}"))) == 1 else text


def _rows(text: str) -> Shape | None:
    """A matrix, times what stands before it; or the rows of cases as a list."""
    if cases := _CASES.fullmatch(text):
        rows = [[_CONDITION.sub("", cell).strip(" ,&") for cell in row.split("&")] for row in cases[1].split("\\\\") if row.strip()]
        return Shape("list", [as_member(row[0]) if len(row) == 1 else f"({', '.join(row)})" for row in rows], "")
    matrix = _MATRIX.fullmatch(text)
    if matrix is None or "\\begin" in matrix[3]:
        return None
    factor, rows = (
        matrix[1].strip(),
        [[cell.strip() for cell in row.split("&")] for row in matrix[3].strip().removesuffix("\\\\").split("\\\\")],
    )
    if matrix[5] and len({len(row) for row in rows}) == 1:
        rows = [list(column) for column in zip(*rows, strict=True)]
    cells = [cell for row in rows for cell in row]
    if factor:
        cells = [f"{'-' if factor == '-' else f'({factor})'}({cell})" for cell in cells]
    return Shape(f"matrix {[len(row) for row in rows]}", cells, "")


def _parted(match: re.Match[str]) -> str:
    return "".join(f" \\text{{{words}}} " for words in match.groups() if words)


def _listed(text: str) -> list[str]:
    """The parts between commas; a comma inside a number (1,234) is none where others are followed by a space."""
    spaced = split(text, ", ")
    parts = spaced if len(spaced) > 1 and not re.search(r",\S", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)) else split(text, ",")
    return [piece for part in parts for piece in _plus_minus(part)]


def _plus_minus(text: str) -> list[str]:
    """Both values of a text with one \\pm or \\mp."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    return [_PLUS_MINUS.sub(sign, text) for sign in "+-"] if len(_PLUS_MINUS.findall(text)) == 1 else [text]
