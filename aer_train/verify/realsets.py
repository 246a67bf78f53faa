r"""Sets of real numbers: unions of intervals and points, without points: (-\infty,0) \cup (0,\infty) is \mathbb{R} \setminus \{0\}."""

from __future__ import annotations

from typing import NamedTuple

from aer_train.verify.algebra.identity import Work, constant, equal
from aer_train.verify.algebra.numbers import inexact
from aer_train.verify.algebra.parse import parse
from aer_train.verify.algebra.tree import Unreadable
from aer_train.verify.brackets import split
from aer_train.verify.intervals import as_interval
from aer_train.verify.latex import squeeze
from aer_train.verify.shape import ORDERED, shape

MAX_PIECES = 16


class End(NamedTuple):
    """An end of an interval."""

    text: str
    value: float
    """To sort by, and infinite at the ends of the line; ends are compared exactly."""
    closed: bool


Piece = tuple[End, End]


def same_union(work: Work, answer: str, gold: str) -> bool:
    """Whether two cleaned texts are the same set of real numbers; False when one of them is none with known ends."""
    try:
        found, expected = _joined(_read(answer, work), work), _joined(_read(gold, work), work)
    except Unreadable:
        return False
    return len(found) == len(expected) and all(
        a.closed == b.closed and _meet(a, b, work)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def is_real_set(text: str) -> bool:
    """Whether a cleaned text is a set of real numbers with known ends."""
    try:
        return bool(_read(text, Work()))
    except Unreadable:
        return False


def _read(text: str, work: Work) -> list[Piece]:
    taken = shape(text)
    if taken.kind == "union" and r"\setminus" in as_interval(text):
        whole, *removed = split(as_interval(text), r"\setminus")
        pieces = _read(whole, work)
        for part in removed:
            for point in _points(part):
                pieces = [rest for piece in pieces for rest in _without(piece, point, work)]
        return pieces
    if taken.kind in ("union", "list"):
        pieces = [piece for part in taken.parts for piece in _read(part, work)]
    elif taken.kind in ORDERED and len(taken.parts) == 2:
        low, high = (_end(part, bracket in "[]", work) for part, bracket in zip(taken.parts, taken.kind, strict=True))
        pieces = [(low, high)]
    else:
        pieces = [(_end(part, True, work), _end(part, True, work)) for part in _points(text)]
    if len(pieces) > MAX_PIECES:
        raise Unreadable("too many intervals")
    return pieces


def _points(text: str) -> list[str]:
    taken = shape(text)
    if taken.kind != "set":
        raise Unreadable("no set of points")
    return taken.parts


def _end(text: str, closed: bool, work: Work) -> End:
    plain = squeeze(text).removeprefix("+")
    if plain in (r"\infty", r"-\infty"):
        return End(plain, float("inf") if plain == r"\infty" else float("-inf"), False)
    value = constant(parse(text), work)
    if value is None:
        raise Unreadable("an end that is not known")
    try:
        return End(text, float(inexact(value)), closed)
    except (TypeError, OverflowError):  # complex
        raise Unreadable("an end that is not real") from None


def _meet(a: End, b: End, work: Work) -> bool:
    """Whether two ends are the same number."""
    return a.text == b.text or (abs(a.value) < float("inf") > abs(b.value) and equal(parse(a.text), parse(b.text), work))


def _without(piece: Piece, point: str, work: Work) -> list[Piece]:
    low, high = piece
    hole = _end(point, False, work)
    if _meet(low, hole, work) or _meet(high, hole, work):
        kept = (
            low._replace(closed=low.closed and not _meet(low, hole, work)),
            high._replace(closed=high.closed and not _meet(high, hole, work)),
        )
        return [] if _meet(low, high, work) else [kept]
    return [(low, hole), (hole, high)] if low.value < hole.value < high.value else [piece]


def _joined(pieces: list[Piece], work: Work) -> list[Piece]:
    """The pieces in order, those that touch or overlap as one."""
    found: list[Piece] = []
    for low, high in sorted(pieces, key=lambda piece: (piece[0].value, not piece[0].closed)):
        if found:
            before, last = found[-1]
            touches = _meet(last, low, work)
            if (touches and (last.closed or low.closed)) or (not touches and low.value < last.value):
                same_end = _meet(last, high, work)
                later = last._replace(closed=last.closed or high.closed) if same_end else max(last, high, key=lambda end: end.value)
                found[-1] = (before, later)
                continue
        found.append((low, high))
    return found
