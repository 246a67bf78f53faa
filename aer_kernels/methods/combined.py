"""Several methods at once: kind "a+b", with the options of each under its name.

Every part decides about the same tokens, and the loss gets the terms of all. Two parts must not move the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aer_kernels.kept_set import KeptSet
from aer_kernels.methods.seam import (
    Measured,
    Method,
    TokenBatch,
    TokenTerms,
    also_needs,
    kept_of,
    learns,
    moves,
    needs_logprobs,
    restored,
    terms_of_nothing,
)


class Combined:
    """Methods by name, as one.

    Raises:
        ValueError: two parts move the same thing, or one changes what is measured while another is told of it.
    """

    reward_bonus: Callable[[TokenBatch], Tensor] | None = None
    statistic: Callable[[Tensor], Tensor] | None = None
    kept: KeptSet | None = None

    def __init__(self, parts: Mapping[str, Method]) -> None:
        self.parts = dict(parts)
        self.needs_entropy = any(part.needs_entropy for part in self.parts.values())
        self.also_needs = frozenset[str]().union(*map(also_needs, self.parts.values()))
        self.needs_logprobs = any(map(needs_logprobs, self.parts.values()))
        self.learns = any(map(learns, self.parts.values()))
        self._check()
        bonuses = [part.reward_bonus for part in self.parts.values() if hasattr(part, "reward_bonus")]
        if bonuses:
            self.reward_bonus = lambda tokens: torch.stack([bonus(tokens) for bonus in bonuses]).sum(0)
        self.statistic = next((getattr(part, "statistic") for part in self.parts.values() if hasattr(part, "statistic")), None)  # noqa: B009
        self.kept = next((found for found in map(kept_of, self.parts.values()) if found is not None), None)

    def _check(self) -> None:
        owners: dict[str, str] = {}
        for name, part in self.parts.items():
            for moved in sorted(moves(part)):
                if moved in owners:
                    raise ValueError(
                        f"kind must combine methods that move different things, got {owners[moved]} and {name}, which move {moved}"
                    )
                owners[moved] = name
        held = [name for name, part in self.parts.items() if terms_of_nothing(part).held is not None or kept_of(part)]
        told = [name for name, part in self.parts.items() if part.state_dict() and [name] != held[:1]]
        if held and told:
            raise ValueError(f"kind must not combine {held[0]}, which holds the entropy of some tokens, with {told[0]}, which holds all")

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        found: dict[str, Any] = {}
        for part in self.parts.values():
            terms = part.terms(tokens)
            names = terms.moved() | {"held"} | ({"entropy_scale"} if terms.entropy_coef is not None else set())
            found |= {name: getattr(terms, name) for name in names if getattr(terms, name) is not None}
        return TokenTerms(**found)

    def update(self, measured: Measured) -> None:
        for part in self.parts.values():
            part.update(measured)

    def status(self) -> dict[str, float | None]:
        """Numbers of all parts; one that an earlier part has too goes by the name of its part and its own."""
        found: dict[str, float | None] = {}
        for name, part in self.parts.items():
            found |= {f"{name}_{key}" if key in found else key: value for key, value in part.status().items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in restored(self.parts, state).items():
            self.parts[name].load_state_dict(part)
