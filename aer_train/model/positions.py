"""How long a sequence a model takes."""

from __future__ import annotations

from typing import Any


def positions(config: Any) -> int | None:
    """Return how many positions a model has, prompt and response together, by its transformers config; None for no limit.

    Position embeddings that are stretched (yarn, dynamic and linear scaling) count at their stretched length.
    """
    text = config.get_text_config()
    if getattr(text, "alibi", False) or getattr(getattr(text, "attn_config", None), "alibi", False):
        return None
    limit = next(
        (found for name in ("max_position_embeddings", "max_seq_len") if isinstance(found := getattr(text, name, None), int)), None
    )
    rope = getattr(text, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in ("yarn", "dynamic", "linear"):
        return limit
    return max(limit, int((rope.get("original_max_position_embeddings") or limit) * (rope.get("factor") or 1)))
