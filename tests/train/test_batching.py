import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from aer_train.step.batching import IGNORE_INDEX, micro_batches, partition, response_slice
from aer_train.types import Sample
from tests.train.worth import columns

CPU = torch.device("cpu")


def sample(prompt: list[int], tokens: list[int]) -> Sample:
    return Sample(0, 0, prompt, tokens, [-0.5] * len(tokens), "", True)


SAMPLES = [sample([5, 6], [7, 8, 1]), sample([5], [9]), sample([3, 4, 5], [2, 1])]


def pack(tokens: int, old: list[list[float]] | None = None) -> list:
    worth = columns(SAMPLES, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], old)
    return micro_batches(SAMPLES, range(3), worth, tokens_per_microbatch=tokens, pad_id=0, device=CPU)


def test_one_micro_batch_by_hand() -> None:
    (batch,) = pack(1000, [[-1.0, -2.0, -3.0], [-4.0], [-5.0, -6.0]])
    assert batch.rows == [1, 0, 2]
    assert batch.input_ids.tolist() == [[5, 0, 0, 0], [5, 6, 7, 8], [3, 4, 5, 2]]
    assert batch.attention_mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    x = IGNORE_INDEX
    assert batch.targets.tolist() == [[9, x, x, x], [x, 7, 8, 1], [x, x, 2, 1]]
    assert torch.equal(batch.loss_mask, batch.targets != x)
    assert batch.old_logprobs.tolist() == [[-4, 0, 0, 0], [0, -1, -2, -3], [0, 0, -5, -6]]
    assert batch.rollout_logprobs.tolist() == [[-0.5, 0, 0, 0], [0, -0.5, -0.5, -0.5], [0, 0, -0.5, -0.5]]
    assert batch.advantages.tolist() == [[2, 0, 0, 0], [0, 1, 1, 1], [0, 0, 3, 3]]
    assert torch.equal(batch.entropy_coef, torch.tensor([[0.2, 0, 0, 0], [0, 0.1, 0.1, 0.1], [0, 0, 0.3, 0.3]]))
    assert batch.weights is batch.divergence_coef is batch.held is None


def test_some_of_the_samples_with_a_value_for_each_token() -> None:
    worth = replace(columns(SAMPLES, [0.0] * 3, [0.0] * 3), weights=np.arange(1.0, 7.0, dtype=np.float32))
    (batch,) = micro_batches(SAMPLES, [2, 0], worth, tokens_per_microbatch=1000, pad_id=0, device=CPU)
    assert batch.rows == [2, 0], "by their numbers"
    assert batch.weights.tolist() == [[0, 0, 5, 6], [0, 1, 2, 3]]
    (bare,) = micro_batches(SAMPLES, [2, 0], None, tokens_per_microbatch=1000, pad_id=0, device=CPU)
    assert torch.equal(bare.targets, batch.targets) and not bare.advantages.any() and not bare.entropy_coef.any()
    assert [response_slice(s) for s in SAMPLES] == [slice(1, 4), slice(0, 1), slice(2, 4)]


def test_prompts_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_tokens must hold at least one token, got none in sample 1"):
        micro_batches([SAMPLES[0], sample([], [7])], range(2), None, tokens_per_microbatch=8, pad_id=0, device=CPU)


def test_the_token_budget_is_kept() -> None:
    assert [b.rows for b in pack(8)] == [[1, 0], [2]]
    assert [b.rows for b in pack(7)] == [[0], [2], [1]]
    assert [b.rows for b in pack(1)] == [[0], [2], [1]], "at least one row"
    assert pack(8)[0].old_logprobs is None
    assert [b.loss_tokens for b in pack(8)] == [4, 2] and [b.padding for b in pack(8)] == [3, 0]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [1, 40, 200, 10**6])
def test_every_rank_gets_as_many_and_as_much(world: int, budget: int) -> None:
    draw = random.Random(world * budget)
    widths = [draw.randint(1, 60) for _ in range(50)]
    ranks = partition(widths, budget, world)
    assert ranks == partition(widths, budget, world), "a function of its arguments"
    assert len(ranks) == world and len({len(chunks) for chunks in ranks}) == 1
    assert sorted(i for chunks in ranks for chunk in chunks for i in chunk) == list(range(50))

    def cost(chunk: list[int]) -> int:
        return len(chunk) * max((widths[i] for i in chunk), default=0)

    assert all(cost(chunk) <= budget or len(chunk) == 1 for chunks in ranks for chunk in chunks)
    together = [[cost(chunk) for chunk in slot] for slot in zip(*ranks, strict=True)]
    waiting = sum(world * max(slot) - sum(slot) for slot in together)
    assert waiting <= 0.25 * sum(map(sum, together)), "ranks wait little for each other"


def test_packing_by_hand() -> None:
    widths = [3, 1, 2, 6]
    assert partition(widths, 6) == [[[3], [1, 2], [0]]], "2 * 2 tokens fit, 3 * 3 do not; the largest first"
    assert partition(widths, 6, world=2) == [[[3], [1]], [[0], [2]]], "four, since three cannot be shared; the rank with less gets more"
    assert partition([5], 8, world=3) == [[[0]], [[]], [[]]], "fewer samples than ranks"


def test_an_empty_micro_batch_runs_and_counts_nothing() -> None:
    (batch,) = micro_batches(
        SAMPLES, [0], columns(SAMPLES[:1], [1.0], [0.1]), tokens_per_microbatch=9, pad_id=4, device=CPU, rank=1, world=2
    )
    assert batch.rows == [] and batch.loss_tokens == 0 and batch.padding == 1 and not batch.loss_mask.any()
    assert batch.input_ids.tolist() == [[4]] and batch.attention_mask.tolist() == [[1]] and batch.targets.tolist() == [[IGNORE_INDEX]]
    assert batch.advantages.tolist() == batch.entropy_coef.tolist() == [[0.0]]
