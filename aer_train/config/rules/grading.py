"""How responses are graded, and what is evaluated."""

from __future__ import annotations

import math

from aer_train.config.rules.check import check
from aer_train.config.tree import TrainConfig
from aer_train.tasks import TASKS


def check_eval(config: TrainConfig) -> None:
    evaluation = config.eval
    check("eval.every", evaluation.every, evaluation.every >= 0, "be >= 0")
    on_something = evaluation.data is not None or bool(evaluation.suites)
    check("eval.every", evaluation.every, on_something or not evaluation.every, "be 0 without eval.data and eval.suites")
    check("eval.samples", evaluation.samples, 1 <= evaluation.samples <= 1024, "be in [1, 1024]")
    math_ok = not evaluation.suites or config.reward.kind not in TASKS
    check("eval.suites", evaluation.suites, math_ok, f"be empty for reward.kind {config.reward.kind}")
    check("eval.suites", evaluation.suites, len(set(evaluation.suites)) == len(evaluation.suites), "name each suite once")
    check("eval.top_p", evaluation.top_p, 0 < evaluation.top_p <= 1, "be in (0, 1]")
    check("eval.temperature", evaluation.temperature, evaluation.temperature >= 0, "be >= 0")
    greedy_ok = evaluation.temperature > 0 or evaluation.samples == 1
    check("eval.samples", evaluation.samples, greedy_ok, "be 1 for eval.temperature 0 (greedy samples are all the same)")
    check("eval.limit", evaluation.limit, evaluation.limit is None or evaluation.limit >= 1, "be >= 1 or None")


def check_reward(config: TrainConfig) -> None:
    reward, longest = config.reward, config.rollout.max_new_tokens
    check("reward.timeout", reward.timeout, reward.timeout > 0, "be > 0")
    check("reward.workers", reward.workers, reward.workers >= 1, "be >= 1")
    _check_functions(config)
    strict = not reward.lenient or reward.kind == "math"
    check("reward.lenient", reward.lenient, strict, f"be False for reward.kind {reward.kind}")
    most = reward.max_failure_frac
    check("reward.max_failure_frac", most, 0 <= most <= 1, "be in [0, 1]")
    buffer, penalty, tolerance = reward.overlong_buffer, reward.overlong_penalty, reward.tolerance
    fits = 0 <= buffer <= longest
    check("reward.overlong_buffer", buffer, fits, f"be in [0, rollout.max_new_tokens = {longest}]")
    check("reward.overlong_penalty", penalty, penalty >= 0, "be >= 0")
    check("reward.tolerance", tolerance, tolerance >= 0, "be >= 0")


def _check_functions(config: TrainConfig) -> None:
    reward = config.reward
    named = (reward.kind, *reward.functions)
    check(
        "reward.functions", reward.functions, len(set(named)) == len(named), f"name each function once, and not reward.kind ({reward.kind})"
    )
    given = len(reward.weights) in (0, len(named))
    check("reward.weights", reward.weights, given, f"be empty or one of reward.kind and each of reward.functions ({len(named)})")
    check("reward.weights", reward.weights, all(map(math.isfinite, reward.weights)), "be finite")
    check("reward.weights", reward.weights, not reward.weights or any(reward.weights), "not all be 0")
    check("reward.request_timeout", reward.request_timeout, 0 < reward.request_timeout < math.inf, "be > 0 and finite")
    check("reward.retries", reward.retries, reward.retries >= 0, "be >= 0")
