"""Options that do nothing while another is off: whoever sets one alone believes that it acts."""

from __future__ import annotations

from collections.abc import Callable

from aer_train.config.rules.check import check
from aer_train.config.tree import TrainConfig

INERT: dict[str, tuple[str, Callable[[TrainConfig], bool]]] = {
    "reward.overlong_penalty": ("reward.overlong_buffer > 0", lambda config: config.reward.overlong_buffer > 0),
    "objective.kl": ("objective.kl_coef > 0", lambda config: config.objective.kl_coef > 0),
    "difficulty.width": ("difficulty.target", lambda config: config.difficulty.target is not None),
    "difficulty.unsolved": ("difficulty.boost > 1", lambda config: config.difficulty.boost > 1),
    "difficulty.min_group": ("difficulty.boost > 1", lambda config: config.difficulty.boost > 1),
}
"""Each option, what it takes to act, and whether a configuration has that."""


def check_inert(config: TrainConfig) -> None:
    """Raise ValueError for an option that was changed, and does nothing."""
    for name, (needed, acts) in INERT.items():
        section, option = name.split(".")
        options = getattr(config, section)
        value, default = getattr(options, option), getattr(type(options), option)
        check(name, value, value == default or acts(config), f"be its default ({default}) without {needed}")
