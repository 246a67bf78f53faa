"""verl on a CPU: its real FSDP2 worker on the Countdown policy, and rows as its queue holds them."""

from __future__ import annotations

import os
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
os.environ.update(VERL_USE_EXTERNAL_MODULES="verl_cpu", VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TQ_NUM_THREADS="1")
PATHS = [str(ROOT / "examples"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)  # of the processes that this one starts

GROUP, PROMPTS = 4, 4
POLICY = ROOT / "aer_train" / "tasks" / "countdown_policy"


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def queue_rows(seed: int = 0, rows: int = PROMPTS * GROUP) -> TensorDict:
    """Random rows with all that verl's loss reads, as its queue hands them to a worker: jagged, of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    number = lambda low, high: int(torch.randint(low, high, (1,), generator=draw))  # noqa: E731
    prompts = [torch.randint(3, 17, (number(4, 8),), generator=draw) for _ in range(rows)]
    responses = [torch.randint(3, 17, (number(2, 7),), generator=draw) for _ in range(rows)]
    masks = [(torch.rand(len(response), generator=draw) < 0.8).long() for response in responses]
    whole = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]

    def floats(scale: float, shift: float) -> torch.Tensor:
        return jagged([scale * torch.randn(len(response), generator=draw) + shift for response in responses])

    fields = {
        "prompts": jagged(prompts),
        "responses": jagged(responses),
        "input_ids": jagged(whole),
        "position_ids": jagged([torch.arange(len(ids)) for ids in whole]),
        "attention_mask": jagged([torch.ones_like(ids) for ids in whole]),
        "response_mask": jagged(masks),
        "loss_mask": jagged(masks),
        "advantages": floats(1.0, 0.0),
        "old_log_probs": floats(0.3, -1.0),
        "entropy": floats(0.1, 1.0),
        "rm_scores": jagged([torch.cat([torch.zeros(len(mask) - 1), torch.ones(1) * (i % 3 == 0)]) for i, mask in enumerate(masks)]),
    }
    return TensorDict(fields, batch_size=rows)


def extra(infos: list[dict[str, Any]]) -> NonTensorStack:
    """The queue's `extra_fields` with what a reward function returned for each row."""
    return NonTensorStack(*[{"reward_extra_info": info} for info in infos])


def actor_config(**changes: Any) -> Any:
    """verl's configuration of an actor, as its worker makes it."""
    from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig

    settings: dict[str, Any] = {
        "strategy": "fsdp2",
        "rollout_n": GROUP,
        "ppo_micro_batch_size_per_gpu": 4,
        "use_torch_compile": False,
        "fsdp_config": FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": "fp32"},
            use_torch_compile=False,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=4,
            infer_micro_batch_size_per_gpu=4,
        ),
        "optim": FSDPOptimizerConfig(lr=5e-4, weight_decay=0.0),
    }
    return FSDPActorConfig(**(settings | changes))


def worker(config: Any, head: str | None = None) -> Any:
    """verl's TrainingWorker with its FSDP2 engine on the Countdown policy; head: "verl" or "aer", fused both, or full logits."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import HFModelConfig, TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    model = HFModelConfig(
        path=str(POLICY),
        use_remove_padding=False,
        enable_gradient_checkpointing=False,
        override_config={"attn_implementation": "eager"},
        use_fused_kernels=head is not None,
        fused_kernel_options={"impl_backend": "torch"},
        external_lib="aer_kernels.integrations.verl_head" if head == "aer" else None,
    )
    made = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=config.fsdp_config,
            optimizer_config=config.optim,
            checkpoint_config=CheckpointConfig(),
        )
    )
    made.reset()
    return made


ROLLOUT = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"]


def hydra_composed(*overrides: str) -> Any:
    """verl's configuration with these overrides, as its main gets it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*ROLLOUT, *overrides])


@cache
def plain_config() -> bytes:
    return pickle.dumps(hydra_composed())


def composed(*overrides: str) -> Any:
    """The same with overrides of values alone: a copy, for Hydra takes its time."""
    config = pickle.loads(plain_config())
    for override in overrides:
        read = OverridesParser.create().parse_override(override)
        OmegaConf.update(config, read.key_or_group, read.value(), force_add=read.is_add())
    return config
