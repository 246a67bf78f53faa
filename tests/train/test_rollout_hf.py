import math

import numpy as np
import pytest
import torch

from aer_kernels import KeptSet, fused_logprobs
from aer_train.config.tree import RolloutConfig
from aer_train.data.encode import encode_prompt
from aer_train.model import Policy
from aer_train.rollout import pick
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.pick import pick_tokens
from aer_train.types import Prompt, Sampling

PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]


def rollout(policy: Policy, **options: object) -> HFRollout:
    return HFRollout(policy, RolloutConfig(**{"max_new_tokens": 7, "batch_size": 64, **options}))


def test_samples_do_not_depend_on_the_batch(policy: Policy) -> None:
    whole = rollout(policy).generate(PROMPTS, 3, (0, "train", 5))
    one_by_one = rollout(policy, batch_size=1).generate(PROMPTS, 3, (0, "train", 5))
    assert [(s.prompt, s.index) for s in whole] == [(p, i) for p in range(4) for i in range(3)]
    for a, b in zip(whole, one_by_one, strict=True):
        assert (a.tokens, a.text, a.finished, a.prompt_tokens) == (b.tokens, b.text, b.finished, b.prompt_tokens)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_keys_are_not_copied_for_each_head(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two query heads to a key, with a mask; the samples have the same bits as with copies, and transformers is as it was."""
    from contextlib import nullcontext

    from transformers.integrations import sdpa_attention

    theirs, copies, repeat = sdpa_attention.use_gqa_in_sdpa, [0], sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *args: copies.__setitem__(0, copies[0] + 1) or repeat(*args))
    generate = rollout(policy).generate
    copies[0] = 0
    shared = generate(PROMPTS, 3, (0, "train", 5))
    assert copies[0] == 0 and sdpa_attention.use_gqa_in_sdpa is theirs
    monkeypatch.setattr("aer_train.rollout.growing.keys_are_shared", lambda device: nullcontext())
    assert generate(PROMPTS, 3, (0, "train", 5)) == shared and copies[0] > 10


def test_the_stream_gives_the_same_samples_as_they_end(policy: Policy) -> None:
    """Short ones first; long ones do not wait in a batch of their own, and each prompt is read once."""
    generation = rollout(policy, max_new_tokens=30)
    parts = list(generation.stream(PROMPTS, 8, (0, "train", 5)))
    assert len(parts) > 3 and max(len(s.tokens) for s in parts[0]) < max(len(s.tokens) for s in parts[-1]) == 30
    streamed = sorted((s for part in parts for s in part), key=lambda s: (s.prompt, s.index))
    assert streamed == generation.generate(PROMPTS, 8, (0, "train", 5))


def test_the_seed_names_the_draw(policy: Policy) -> None:
    generate = rollout(policy).generate
    assert generate(PROMPTS, 2, (0, 5)) == generate(PROMPTS, 2, (0, 5))
    assert [s.tokens for s in generate(PROMPTS, 2, (0, 5))] != [s.tokens for s in generate(PROMPTS, 2, (0, 6))]


def test_global_generators_are_left_alone(policy: Policy) -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    rollout(policy).generate(PROMPTS, 2, (0,))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_are_those_of_the_tempered_policy(policy: Policy, temperature: float) -> None:
    for sample in rollout(policy, temperature=temperature).generate(PROMPTS, 2, (1,)):
        ids = torch.tensor([sample.prompt_tokens + sample.tokens])
        hidden = policy.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1]))
        found = fused_logprobs(hidden, policy.head.weight, ids[:, 1:], temperature=temperature).logprobs[0]
        assert found[len(sample.prompt_tokens) - 1 :].tolist() == pytest.approx(sample.logprobs, abs=1e-4)


def test_top_p_draws_from_the_nucleus_and_records_its_log_probs(policy: Policy) -> None:
    """What the trainer's pass over the same weights finds, which seeks the nucleus by itself; tokens outside it are never drawn."""
    kept = KeptSet(top_p=0.6)
    inside = []
    for sample in rollout(policy, temperature=0.8, top_p=0.6).generate(PROMPTS, 3, (1,)):
        ids = torch.tensor([sample.prompt_tokens + sample.tokens])
        hidden, weight = policy.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1])), policy.head.weight
        floor = kept.floors(hidden, weight, bias=policy.head.bias, softcap=policy.softcap, temperature=0.8)
        found = fused_logprobs(hidden, weight, ids[:, 1:], temperature=0.8, floor=floor).logprobs[0]
        assert found[len(sample.prompt_tokens) - 1 :].tolist() == pytest.approx(sample.logprobs, abs=1e-4)
        p = torch.softmax(policy.model(input_ids=ids).logits[0, len(sample.prompt_tokens) - 1 : -1].double() / 0.8, -1)
        above = torch.where(p > p.gather(1, torch.tensor(sample.tokens)[:, None]), p, 0.0).sum(1)
        inside += (above < 0.6 + 1e-6).tolist()
    assert all(inside) and len(inside) > 30
    count = 20_000
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -3.0])
    uniforms = torch.from_numpy(np.random.Generator(np.random.Philox(key=1)).random(count))
    chosen, logprobs = pick_tokens(logits.expand(count, 5), uniforms, Sampling(0.7, 0.9))
    expected = torch.softmax(logits / 0.7, 0) * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    expected /= expected.sum()
    assert torch.bincount(chosen, minlength=5) / count == pytest.approx(expected.tolist(), abs=0.01)
    assert torch.allclose(logprobs, expected.log()[chosen], atol=1e-5)


@pytest.mark.parametrize("block", [2, 512])
def test_frequencies_follow_the_softmax(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Whether the cumulative sum is taken at once or in blocks, the last of them padded."""
    monkeypatch.setattr(pick, "CDF_BLOCK", block)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    count = 20_000
    chosen, logprobs = pick_tokens(
        logits.expand(count, 5), torch.from_numpy(np.random.Generator(np.random.Philox(key=1)).random(count)), Sampling(0.7)
    )
    expected = torch.softmax(logits / 0.7, 0) * count
    observed = torch.bincount(chosen, minlength=5)
    assert observed[4] == 0
    chi_square = ((observed - expected)[:4] ** 2 / expected[:4]).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = .001
    assert torch.allclose(logprobs, torch.log_softmax(logits / 0.7, 0)[chosen])


@pytest.mark.parametrize("block", [1, 2, 512])
def test_extreme_uniforms_stay_in_the_support(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(pick, "CDF_BLOCK", block)
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).repeat(3, 1)
    uniforms = torch.tensor([0.0, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert pick_tokens(logits, uniforms, Sampling())[0].tolist() == [1, 2, 2]


def test_a_draw_is_the_inverse_of_the_cumulative_sum() -> None:
    """A vocabulary of many blocks against the definition in float64."""
    logits = 3 * torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))
    uniforms = torch.from_numpy(np.random.Generator(np.random.Philox(key=2)).random(200))
    cdf = torch.softmax(logits.double() / 1.3, -1).cumsum(-1)
    chosen, logprobs = pick_tokens(logits, uniforms, Sampling(1.3))
    below = torch.where(chosen == 0, 0.0, cdf.gather(-1, (chosen - 1).clamp(min=0)[:, None]).squeeze(-1))
    assert (below <= uniforms + 1e-6).all() and (uniforms <= cdf.gather(-1, chosen[:, None]).squeeze(-1) + 1e-6).all()
    exact = torch.log_softmax(logits.double() / 1.3, -1).gather(-1, chosen[:, None]).squeeze(-1)
    assert logprobs.tolist() == pytest.approx(exact.tolist(), abs=2e-6)


def test_greedy_is_the_argmax(policy: Policy) -> None:
    a, b = rollout(policy).generate(PROMPTS[:1], 2, (0,), Sampling(0.0))
    assert a.tokens == b.tokens
    ids = torch.tensor([a.prompt_tokens + a.tokens])
    logits = policy.model(input_ids=ids).logits[0, len(a.prompt_tokens) - 1 : -1]
    assert logits.argmax(-1).tolist() == a.tokens


def test_end_of_sequence(policy: Policy) -> None:
    samples = rollout(policy, max_new_tokens=30).generate(PROMPTS, 8, (0,))
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert s.finished == (s.tokens[-1] == policy.tokenizer.eos_token_id)
        assert policy.tokenizer.eos_token_id not in s.tokens[:-1]
        assert len(s.tokens) == len(s.logprobs) <= 30
        assert "<" not in s.text and len(s.text) <= len(s.tokens)


def test_published_generation_settings_do_not_bend_the_samples(policy: Policy, model_folder, tmp_path) -> None:
    import json
    import shutil

    from aer_train.config.tree import ModelConfig
    from aer_train.model import load_policy

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    settings = {"eos_token_id": [1], "repetition_penalty": 3.0, "suppress_tokens": [4, 5, 6], "top_k": 1, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    bent = load_policy(ModelConfig(name=str(folder)), torch.device("cpu"))
    assert rollout(bent).generate(PROMPTS, 4, (0,)) == rollout(policy).generate(PROMPTS, 4, (0,))
    assert bent.generation_config.repetition_penalty == 3.0


def test_prompt_tokens(policy: Policy) -> None:
    assert encode_prompt(policy.tokenizer, PROMPTS[0]) == [3, 4, 15, 16]


def test_a_diverged_policy_is_reported(policy: Policy) -> None:
    sampling = rollout(policy)
    with torch.no_grad():
        policy.head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"logits must be finite, got NaN .*: the policy has diverged, lower optim.lr"):
        sampling.generate(PROMPTS, 2, (0,))
