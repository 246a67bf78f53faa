"""The code of docs/integrations/recipes.md runs, on stand-ins with the data of the trainers that it is written for."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from aer_kernels import EntropyControlConfig
from aer_kernels.integrations.sampled import SampledEntropy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations" / "recipes.md"
FIXED = EntropyControlConfig(kind="fixed", coef=0.1, difficulty="uniform")
NAMES = {"torch": torch, "pad_sequence": pad_sequence, "SampledEntropy": SampledEntropy, "EntropyControlConfig": EntropyControlConfig}


def run(text: str, **names: Any) -> dict[str, Any]:
    """Run the page's block that has this text."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if text in block]
    scope = NAMES | names
    exec(block, scope)
    return scope


def test_skyrl() -> None:
    """The batch has a row of padding; rows of one prompt stand together."""

    class RayPPOTrainer:
        def compute_advantages_and_returns(self, data: Any) -> Any:
            data["advantages"] = torch.zeros(5, 3)
            return data

    class Batch(dict):
        metadata = {"uids": ["b", "b", "a", "a", "pad0"], "pad_size": 1}  # noqa: RUF012

    trainer = run("class AERTrainer", RayPPOTrainer=RayPPOTrainer)["AERTrainer"]()
    trainer.aer = SampledEntropy(FIXED)
    logprobs, mask = -torch.rand(5, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    rewards = torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]])
    for known in ({"action_log_probs": None, "rollout_logprobs": logprobs}, {"action_log_probs": logprobs, "rollout_logprobs": None}):
        trainer.aer = SampledEntropy(FIXED)
        found = trainer.compute_advantages_and_returns(Batch(rewards=rewards, loss_mask=mask, **known))["advantages"]
        torch.testing.assert_close(found, -0.1 * logprobs * mask)
        assert trainer.aer.status()["controlled"] == pytest.approx(float((-logprobs * mask).sum() / mask.sum()))


def test_prime_rl() -> None:
    """Credit stays in the order of the sampled tokens of a trace's nodes."""

    def assign_advantages(trace: Any, values: list[float]) -> None:
        for node in trace.nodes:
            if any(node.mask):
                node.advantages, values = values[: sum(node.mask)], values[sum(node.mask) :]

    class GRPOAlgorithm:
        async def score_group(self, episodes: list[Any]) -> None:
            for episode in episodes:
                for trace in episode.traces:
                    assign_advantages(trace, [trace.reward - 0.5] * sum(sum(node.mask) for node in trace.nodes))

    def node(mask: list[bool], logprob: float) -> Any:
        return SimpleNamespace(mask=mask, logprobs=[logprob] * len(mask), advantages=None)

    def episode(reward: float, *logprobs: float) -> Any:
        turns = [part for logprob in logprobs for part in (node([False], 0.0), node([True, True, False], logprob))]
        return SimpleNamespace(traces=[SimpleNamespace(reward=reward, nodes=turns)])

    def iter_trainable_traces(episodes: list[Any]) -> list[Any]:
        return [(episode, trace) for episode in episodes for trace in episode.traces]

    names = {"GRPOAlgorithm": GRPOAlgorithm, "assign_advantages": assign_advantages, "iter_trainable_traces": iter_trainable_traces}
    algorithm = run("class AERAlgorithm", **names)["AERAlgorithm"]()
    algorithm.aer = SampledEntropy(FIXED)
    group = [episode(1.0, -0.5, -2.0), episode(0.0, -1.0)]
    asyncio.run(algorithm.score_group(group))
    found = [part.advantages for each in group for trace in each.traces for part in trace.nodes if any(part.mask)]
    assert found == [pytest.approx(values) for values in ([0.55, 0.55], [0.7, 0.7], [-0.4, -0.4])]
