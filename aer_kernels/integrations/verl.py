"""AER, and every other method of this library, inside verl's trainers.

    python -m aer_kernels.integrations.verl <the overrides of verl.trainer.main_ppo> +aer.head=true

verl's own configuration, task runner, trainers, workers and loss; `verl_trainer` says what is added, `verl_options` what `+aer.*` can be.
"""

from __future__ import annotations

from typing import Any

import hydra

import aer_kernels.integrations.verl_version  # noqa: F401  another verl is told before Hydra looks for its configuration


@hydra.main(config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None)
def main(config: Any) -> None:
    """Train; what is wrong with the options is told before Ray starts."""
    from verl.trainer.main_ppo import run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    from aer_kernels.integrations.verl_options import prepare
    from aer_kernels.integrations.verl_trainer import AERTaskRunner

    auto_set_device(config)
    prepare(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, task_runner_class=AERTaskRunner)


if __name__ == "__main__":
    main()
