import torch

from aer_train.batching import IGNORE_INDEX, micro_batches, response_slice
from aer_train.types import Sample

CPU = torch.device("cpu")


def sample(prompt: list[int], tokens: list[int]) -> Sample:
    return Sample(0, 0, prompt, tokens, [-0.5] * len(tokens), "", True)


SAMPLES = [sample([5, 6], [7, 8, 1]), sample([5], [9]), sample([3, 4, 5], [2, 1])]


def pack(tokens: int, old: list[list[float]] | None = None) -> list:
    return micro_batches(SAMPLES, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3], old, tokens_per_microbatch=tokens, pad_id=0, device=CPU)


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
    assert batch.advantages.tolist() == [2.0, 1.0, 3.0]
    assert torch.allclose(batch.entropy_coef, torch.tensor([0.2, 0.1, 0.3]))
    assert [response_slice(s) for s in SAMPLES] == [slice(1, 4), slice(0, 1), slice(2, 4)]


def test_the_token_budget_is_kept() -> None:
    assert [b.rows for b in pack(8)] == [[1, 0], [2]]
    assert [b.rows for b in pack(7)] == [[1], [0], [2]]
    assert [b.rows for b in pack(1)] == [[1], [0], [2]], "at least one row"
    assert pack(8)[0].old_logprobs is None
