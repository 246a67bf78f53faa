"""A dense reward for tests, named by its dotted path."""


def digit_share(response: str, answer: str) -> float:
    """Share of the response's characters, out of the three it may have, that are digits."""
    return min(1.0, sum(c.isdigit() for c in response) / 3)
