"""Which backend samples: rollout.backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aer_train.config.tree import TrainConfig
from aer_train.model import Policy
from aer_train.rollout.engine import Engine, EngineRollout
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.probe import Probe
from aer_train.rollout.protocol import Rollout
from aer_train.rollout.vllm import LocalEngine
from aer_train.rollout.vllm_server import ServerEngine
from aer_train.types import Prompt


def make_rollout(
    config: TrainConfig, policy: Policy, prompts: Sequence[Prompt], folder: Path, message: Callable[[str], None] = print
) -> Rollout:
    """Return the configured backend, not yet started: its first `sync` does that.

    Args:
        prompts: some of them become the probe of an engine with weights of its own.
        folder: of the run; a server writes its log to vllm/ in there.
        message: is told what takes long.
    Raises:
        ImportError - vLLM is not installed; ValueError - it cannot be configured so.
    """
    if config.rollout.backend == "hf":
        return HFRollout(policy, config.rollout)
    in_process = config.rollout.backend == "vllm"
    engine: Engine = LocalEngine(config, policy) if in_process else ServerEngine(config, policy, folder / "vllm", message)
    probe = Probe(policy, prompts, config.vllm.probe_tolerance, longest=engine.max_model_len - 1)
    return EngineRollout(policy, config.rollout, engine, probe, message)
