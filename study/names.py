"""Names of methods in study.toml that the code speaks of, and what readers call them."""

from __future__ import annotations

AER = "aer_uniform_clock"
"""EXPLORE_THEN_SETTLE of the library, and the preset `countdown` of the trainer. AER-full is `aer`."""

WAITS = "aer_waits"
"""The same with patience = 16: it waits, and may do nothing at all."""

TOKENS = "token_targets_lower"
"""AER with a target of its own for each token."""

HEATS = {"hot115": "sampling at 1.15", "hot130": "sampling at 1.3", "hot150": "sampling at 1.5"}
"""Plain GRPO whose rollouts are hotter, in words."""

FIXED = {f"fixed{coef:02}": f"fixed .{coef:02}" for coef in (2, 3, 5, 7, 10, 14, 20)}
"""The grid of fixed coefficients, in words."""

ANNEALED = {"annealed10": ".1, then to 0", "annealed20": ".2, then to 0"}
"""Coefficients that the clock takes back, in words."""
