"""The reward of the random models: something that every token can earn, so that every token has a gradient."""


def even_share(response: str, answer: str) -> float:
    """Share of the response's words w0, w1, ... whose number is even."""
    words = response.split()
    return sum(word[-1] in "02468" for word in words) / len(words) if words else 0.0
