"""Padded tensors to a method's batch and back, and what an update measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aer_kernels import BELOW_START, EntropyControlConfig, entropy_slopes
from aer_kernels.integrations.control import Sums, group_accuracy, held_sums, spread, token_batch, unsolved_share
from aer_kernels.methods import AER, ForkingTokensConfig, method_for


def padded(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Six responses to three prompts, of up to five tokens; the third has none."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 5, generator=draw) < 0.7
    mask[2] = False
    return mask, *(torch.randn(6, 5, generator=draw) for _ in range(3))


def test_a_batch_has_the_tokens_in_their_order():
    mask, logprobs, advantages, entropy = padded()
    prompt = torch.tensor([0, 0, 1, 1, 2, 2])
    scores = {"logprobs": logprobs, "advantages": advantages, "entropy": entropy, "reference_entropy": entropy + 1}
    tokens = token_batch(mask, prompt, torch.tensor([0.5, 0.0, 1.0]), **scores, seed=7)
    places = [(row, column) for row in range(6) for column in range(5) if mask[row, column]]
    assert list(zip(tokens.response.tolist(), tokens.position.tolist(), strict=True)) == places
    for name, values in scores.items():
        assert getattr(tokens, name).tolist() == [values[place] for place in places], name
    assert tokens.prompt_of_token.tolist() == [row // 2 for row, _ in places] and tokens.seed == 7
    assert torch.equal(spread(tokens.logprobs, mask, -9.0), logprobs.masked_fill(~mask, -9.0))


def test_terms_of_a_whole_update_are_not_those_of_a_part():
    """Spread over the mask of a micro-batch they would give it the first rows' values."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weight = torch.tensor([0.1, 0.2, 0.9])
    assert spread(weight, mask)[1:].tolist() == [[pytest.approx(0.9), 0.0, 0.0]]
    with pytest.raises(ValueError, match=r"values must have shape \(1,\), one number a token of loss_mask, got \(3,\)"):
        spread(weight, mask[1:])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"loss_mask": torch.ones(6, 5, dtype=torch.int64)}, TypeError, "loss_mask must have dtype bool, got torch.int64"),
        ({"loss_mask": torch.ones(6, 5)}, TypeError, "loss_mask must have dtype bool, got torch.float32"),
        ({"advantages": torch.zeros(6, 1)}, ValueError, r"advantages must have shape \(6, 5\) like loss_mask, got \(6, 1\)"),
        ({"entropy": torch.zeros(6)}, ValueError, r"entropy must have shape \(6, 5\) like loss_mask, got \(6,\)"),
        (
            {"prompt": torch.tensor([0, 0, 1, 1, 2])},
            ValueError,
            r"loss_mask must have shape \(R, T\) and prompt \(R,\), got \(6, 5\) and \(5,\)",
        ),
        ({"prompt": torch.tensor([0, 1, 0, 1, 2, 2])}, ValueError, r"prompt must ascend from 0 or more, got \[0, 1, 0, 1, 2, 2\]"),
        ({"prompt": torch.tensor([-1, 0, 1, 1, 2, 2])}, ValueError, r"prompt must ascend from 0 or more, got \[-1, 0"),
        (
            {"prompt": torch.tensor([0, 0, 1, 1, 2, 3])},
            ValueError,
            r"accuracy must have a number for each prompt, shape \(P,\), got shape \(3,\)",
        ),
        ({"accuracy": torch.tensor([0.0, -1.0, torch.nan])}, ValueError, r"accuracy must lie in \[0, 1\], got \[0.0, -1.0, nan\]"),
    ],
    ids=[
        "mask of numbers",
        "mask of floats",
        "an advantage a response",
        "an entropy a response",
        "a response without a prompt",
        "not ascending",
        "below 0",
        "no such prompt",
        "a reward of -1",
    ],
)
def test_what_a_batch_is_made_of_is_checked(change, error, match):
    mask, logprobs, advantages, _ = padded()
    given = {"loss_mask": mask, "prompt": torch.tensor([0, 0, 1, 1, 2, 2]), "accuracy": torch.full((3,), 0.5), "advantages": advantages}
    with pytest.raises(error, match=match):
        token_batch(**given | {"logprobs": logprobs} | change)


def test_a_prompt_without_accuracy_is_left_out():
    """The batch is that of the others alone, and so are the weights of its prompts."""
    mask, logprobs, advantages, _ = padded()
    prompt, accuracy = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0.25, torch.nan, 1.0])
    mask[2:4] = False
    tokens = token_batch(mask, prompt, accuracy, logprobs=logprobs, advantages=advantages)
    rest = [0, 1, 4, 5]
    alone = token_batch(mask[rest], prompt[[0, 1, 2, 3]], accuracy[[0, 2]], logprobs=logprobs[rest], advantages=advantages[rest])
    assert tokens.accuracy.tolist() == [0.25, 1.0]
    for kind in (EntropyControlConfig(kind="fixed", coef=0.1), BELOW_START):
        assert torch.equal(method_for(kind, 1).terms(tokens).entropy_coef, method_for(kind, 1).terms(alone).entropy_coef)
    nothing = token_batch(mask & False, prompt, torch.full((3,), torch.nan), logprobs=logprobs, advantages=advantages)
    assert method_for(BELOW_START, 1).terms(nothing).entropy_coef.shape == (0,)


def test_logprobs_that_nobody_has_are_not_numbers():
    """A method that said it would not look at them, and does, is refused."""
    mask, _, advantages, _ = padded()
    tokens = token_batch(mask, torch.tensor([0, 0, 1, 1, 2, 2]), torch.full((3,), 0.5), logprobs=None, advantages=advantages)
    method = AER(replace(BELOW_START, target=1.0))
    with pytest.raises(ValueError, match="entropy_coef must be finite"):
        method.terms(tokens).check(tokens)
    assert method.needs_logprobs and not AER(EntropyControlConfig()).needs_logprobs


def test_accuracy_is_the_mean_of_what_was_scored():
    nan = torch.nan
    found = group_accuracy(torch.tensor([0.0, 1.0, nan, 1.0, nan, nan, 0.25]), torch.tensor([0, 0, 1, 1, 2, 2, 0]), "a reward", "")
    assert found[:2].tolist() == pytest.approx([1.25 / 3, 1.0]) and bool(found[2].isnan())
    assert unsolved_share(torch.tensor([0.0, 0.5])) == 0.5 and unsolved_share(torch.zeros(0)) is None
    for wrong in (1.5, -0.5, float("inf")):
        with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got .* from a reward: name another"):
            group_accuracy(torch.tensor([0.0, wrong]), torch.tensor([0, 0]), "a reward", "name another")


def test_sums_are_of_all_micro_batches_and_ranks():
    """Cut in three on two ranks: the same as of the whole, each token as it is held, in one reduction."""
    mask, logprobs, advantages, entropy = padded()
    held = mask * torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0, 2.0])[:, None]
    whole = held_sums(entropy, mask, held)
    by_hand = [(held * entropy).sum(), held.sum(), 1.0 + 1.0 + 0.5 + 2.0]
    assert whole.tolist() == pytest.approx([float(x) for x in by_hand])
    assert held_sums(entropy, mask, None).tolist() == pytest.approx([float((mask * entropy).sum()), float(mask.sum()), 5.0])
    ranks, reduced = [Sums(), Sums()], []
    for rows, rank in ((slice(0, 1), 0), (slice(1, 4), 1), (slice(4, 6), 0)):
        ranks[rank].add_entropy(entropy[rows], mask[rows], held[rows])
        part = {"advantages": advantages[rows], "weights": torch.ones(1), "loss_mask": mask[rows]}
        ranks[rank].add_slopes(entropy_slopes(logprobs[rows], entropy[rows], **part))
    ranks[1].measured(lambda sums: reduced.append(sums) or sums, None)
    found = ranks[0].measured(lambda sums: sums + reduced[0], 0.25)
    slopes = entropy_slopes(logprobs, entropy, advantages=advantages, weights=torch.ones(1), loss_mask=mask)
    assert (found.entropy, found.tokens, found.responses) == pytest.approx(tuple(whole.tolist()))
    assert found.slopes == pytest.approx((float(slopes.policy), float(slopes.bonus))) and found.unsolved == 0.25
    with pytest.raises(ValueError, match="sums must hold a pass"):
        ranks[0].measured(lambda sums: sums, None)


def test_a_method_is_told_the_number_of_updates():
    schedule = EntropyControlConfig(tau_end=0.5)
    assert method_for(schedule, 12).controller.config.updates == 12
    assert method_for(replace(schedule, updates=3), 12).controller.config.updates == 3
    assert method_for(ForkingTokensConfig(), 12).config == ForkingTokensConfig()
