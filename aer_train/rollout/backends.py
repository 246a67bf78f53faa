"""Which backend samples: rollout.backend."""

from __future__ import annotations

from collections.abc import Sequence

from aer_train.config import TrainConfig
from aer_train.model import Policy
from aer_train.rollout.engine import EngineRollout
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.probe import Probe
from aer_train.rollout.protocol import Rollout
from aer_train.rollout.vllm import LocalEngine
from aer_train.types import Prompt


def make_rollout(config: TrainConfig, policy: Policy, prompts: Sequence[Prompt]) -> Rollout:
    """Return the configured backend, not yet started: its first `sync` does that.

    Args:
        prompts: some of them become the probe of an engine with weights of its own.
    Raises:
        ImportError - vLLM is not installed; ValueError - it cannot be configured so.
    """
    if config.rollout.backend == "hf":
        return HFRollout(policy, config.rollout)
    engine = LocalEngine(config, policy)
    probe = Probe(policy, prompts, config.vllm.probe_tolerance, longest=engine.max_model_len - 1)
    return EngineRollout(policy, config.rollout, engine, probe)
