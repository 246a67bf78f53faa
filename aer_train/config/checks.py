"""The rules of a configuration; the types and choices are checked where it is parsed."""

from __future__ import annotations

from aer_train.config.rules.grading import check_eval, check_reward
from aer_train.config.rules.inert import check_inert
from aer_train.config.rules.learning import check_methods, check_model, check_objective, check_optim, check_patience
from aer_train.config.rules.prompts import check_data, check_difficulty
from aer_train.config.rules.run import check_run
from aer_train.config.rules.sampling import check_rollout, check_vllm
from aer_train.config.tree import TrainConfig

PROMPTS, ROLLOUTS = (check_data, check_difficulty), (check_rollout, check_vllm)
LEARNING, REST = (check_model, check_objective, check_optim), (check_eval, check_reward, check_run)
BETWEEN = (check_methods, check_patience, check_inert)


def check_config(config: TrainConfig) -> None:
    """Raise ValueError, naming the option, for the first rule that is broken."""
    for check in (*ROLLOUTS, *PROMPTS, *LEARNING, *REST, *BETWEEN):
        check(config)
