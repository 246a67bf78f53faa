"""Rewards that need no skill: every response can earn them."""

DEAD = "dead"
"""The answer of a prompt whose responses all get 0."""


def even_share(response: str, answer: str) -> float:
    """Share of the response's words w0, w1, ... whose number is even."""
    words = response.split()
    return sum(word[-1] in "02468" for word in words) / len(words) if words else 0.0


def unless_dead(response: str, answer: str) -> float:
    """0 for a dead prompt; else a number in [0, 1] that differs from response to response, so that their group has advantages."""
    return 0.0 if answer == DEAD else sum(place * byte for place, byte in enumerate(response.encode(), 1)) % 101 / 100
