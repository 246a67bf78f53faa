"""Reward functions for tests, named by their dotted paths."""


def digit_share(response: str, answer: str) -> float:
    """Share of the response's characters, out of the three it may have, that are digits."""
    return min(1.0, sum(c.isdigit() for c in response) / 3)


def broken(response: str, answer: str) -> float:
    """A reward function that never gives a verdict."""
    raise KeyError("no such column")
