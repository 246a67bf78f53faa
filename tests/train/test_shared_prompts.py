"""A prompt that is read once for several responses: the numbers are those of reading it for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aer_train.config.tree import ModelConfig, ObjectiveConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy, load_policy
from aer_train.model.probes import _window
from aer_train.model.shared_prompts import SharedPrompts
from aer_train.step import scores
from aer_train.step.batching import MicroBatch, micro_batches
from aer_train.step.shared import unit_width, units
from aer_train.step.tokens import Layout
from aer_train.step.update import update_policy
from aer_train.types import Group, Prompt, Sample, Verdict
from tests.train.conftest import save_tokenizer
from tests.train.worth import weighed

CPU = torch.device("cpu")
WIDE = SharedPrompts("sdpa", 10**6, None)
"""Attention costs nothing: everything is read together."""
LENGTHS = [[3, 1, 6, 2], [5, 5, 4, 1], [2, 2, 2, 6]]
"""Of the responses to prompts of 4, 1 and 7 tokens; one of 1 token has no token of its own in the sequence."""
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 2.0, 1.5, -2.0, 0.1, 0.3, -0.3, 0.7, -0.7]
COEF = [0.5, 1.0, 1.5, 0.1] * 3
CONFIG = TrainConfig(rollout=RolloutConfig(max_new_tokens=6), optim=OptimConfig(lr=1e-3, warmup_steps=0, grad_clip=1e3))


@pytest.fixture
def shared(model_folder: Path) -> Policy:
    policy = load_policy(ModelConfig(name=str(model_folder)), CPU)
    assert policy.shared == SharedPrompts("sdpa", 32, None)
    return replace(policy, shared=WIDE)


@pytest.fixture
def groups() -> list[Group]:
    rng = np.random.default_rng(0)
    found = []
    for number, (prompt, lengths) in enumerate(zip((4, 1, 7), LENGTHS, strict=True)):
        text = rng.integers(2, 17, prompt).tolist()
        drawn = [(rng.integers(2, 17, size).tolist(), (-rng.random(size)).tolist()) for size in lengths]
        samples = [Sample(number, index, text, tokens, logprobs, "", True) for index, (tokens, logprobs) in enumerate(drawn)]
        found.append(Group(Prompt(str(number), "", ""), samples, [Verdict("wrong", 0.0, None, 0.0)] * 4))
    return found


def samples_of(groups: list[Group]) -> list[Sample]:
    return [sample for group in groups for sample in group.samples]


def packed(policy: Policy, samples: list[Sample], tokens: int = 10**6) -> list[MicroBatch]:
    return micro_batches(samples, range(len(samples)), None, tokens_per_microbatch=tokens, pad_id=0, device=CPU, shared=policy.shared)


def states(policy: Policy, samples: list[Sample], tokens: int = 10**6) -> dict[int, torch.Tensor]:
    """The hidden states that predict each sample's response."""
    found = {}
    for micro in packed(policy, samples, tokens):
        hidden = micro.hidden(policy)
        found |= {row: hidden[b, span] for b, (row, span) in enumerate(zip(micro.rows, micro.spans, strict=True))}
    return found


def test_gradients_are_within_twice_the_rounding_of_unshared_ones(shared: Policy, policy: Policy, groups: list[Group]) -> None:
    """Of every parameter, with a random upstream gradient, against the unshared model in float64."""
    samples = samples_of(groups)
    upstream = {row: torch.randn(len(sample.tokens), 32, dtype=torch.float64) for row, sample in enumerate(samples)}

    def gradients(one: Policy) -> list[torch.Tensor]:
        one.model.zero_grad()
        sum((upstream[row].to(found.dtype) * found).sum() for row, found in states(one, samples).items()).backward()
        return [parameter.grad.double() for name, parameter in one.model.named_parameters() if "lm_head" not in name]

    together, apart = gradients(shared), gradients(policy)
    policy.model.double()
    for a, b, exact in zip(together, apart, gradients(policy), strict=True):
        size = exact.abs().max()
        assert (a - exact).abs().max() <= 2 * (b - exact).abs().max() + 1e-6 * size


@pytest.mark.parametrize("tokens", [10**6, 20, 12, 1])
def test_states_do_not_depend_on_the_packing(shared: Policy, policy: Policy, groups: list[Group], tokens: int) -> None:
    expected, found = states(policy, samples_of(groups)), states(shared, samples_of(groups), tokens)
    assert sorted(found) == list(range(12))
    for row, value in found.items():
        torch.testing.assert_close(value, expected[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ppo", "cispo", "gspo"])
@pytest.mark.parametrize("updates", [1, 3])
def test_an_update_is_the_same(shared: Policy, policy: Policy, groups: list[Group], kind: Any, updates: int) -> None:
    optim = replace(CONFIG.optim, updates_per_step=updates)
    config = replace(CONFIG, objective=ObjectiveConfig(kind=kind, aggregation="sequence_mean"), optim=optim)
    batch = weighed(groups, ADVANTAGES, COEF, scale=0.3)
    results = []
    for one in (shared, policy):
        optimizer = torch.optim.SGD(one.model.parameters(), lr=1.0)
        results.append(update_policy(one, optimizer, batch, config, step=1))
    for a, b in zip(shared.model.parameters(), policy.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    together, apart = results
    assert together.metrics.pop("tokens/padding_frac") != apart.metrics.pop("tokens/padding_frac")
    for name, value in together.metrics.items():
        assert value == pytest.approx(apart.metrics[name], rel=1e-3, abs=1e-5), name
    assert together.measured.entropy == pytest.approx(apart.measured.entropy, rel=1e-5)


def test_a_repeated_update_has_the_same_bits(shared: Policy, groups: list[Group], model_folder: Path) -> None:
    other = replace(load_policy(ModelConfig(name=str(model_folder)), CPU), shared=WIDE)
    batch = weighed(groups, ADVANTAGES, COEF, scale=0.3)
    for one in (shared, other):
        update_policy(one, torch.optim.SGD(one.model.parameters(), lr=1.0), batch, CONFIG, step=1)
    for a, b in zip(shared.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_scores_are_the_same(shared: Policy, policy: Policy, groups: list[Group]) -> None:
    batch = weighed(groups, ADVANTAGES, COEF).batch
    rows, layout = list(range(12)), Layout.of(batch)
    together, apart = (scores.score(one, batch.samples, rows, CONFIG).flat(layout) for one in (shared, policy))
    for name in ("logprobs", "entropy"):
        np.testing.assert_allclose(together[name], apart[name], rtol=1e-4, atol=1e-5)


def test_how_many_tokens_pass(shared: Policy, groups: list[Group]) -> None:
    """P + sum (R - 1) a group in place of sum (P + R - 1)."""
    count = [0]
    shared.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: count.__setitem__(0, count[0] + kwargs["input_ids"].numel()), with_kwargs=True
    )
    states(shared, samples_of(groups), tokens=30)
    assert count[0] == sum(prompt + sum(lengths) - 4 for prompt, lengths in zip((4, 1, 7), LENGTHS, strict=True))


@pytest.mark.slow
def test_flex_attention_has_the_mask_of_sdpa(
    shared: Policy, groups: list[Group], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs, entropies and gradients, in torch's unfused form: its kernels need a GPU, and its backward pass on a CPU is refused."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    batch = weighed(groups, ADVANTAGES, COEF, scale=0.3)
    rows, layout = list(range(12)), Layout.of(batch.batch)
    with torch.compiler.set_stance("force_eager"):
        flex = load_policy(ModelConfig(name=str(model_folder), attn_implementation="flex_attention"), CPU)
        assert flex.shared is not None and flex.shared.attention == "flex_attention"
        found, expected = (scores.score(one, batch.samples, rows, CONFIG).flat(layout) for one in (flex, shared))
        for one in (flex, shared):
            update_policy(one, torch.optim.SGD(one.model.parameters(), lr=1.0), batch, CONFIG, step=1)
    for name in ("logprobs", "entropy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(flex.model.parameters(), shared.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_which_samples_are_read_together(groups: list[Group]) -> None:
    samples, rows = samples_of(groups), list(range(12))
    assert units(samples, rows, None, 10**6) == [[row] for row in rows]
    assert units(samples, rows, WIDE, 10**6) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert units(samples, [0, 2, 5, 8, 9], WIDE, 10**6) == [[0, 2], [5], [8, 9]], "those that are left, as after dead samples"
    assert units(samples, rows, WIDE, 10**6, world=6) == [[2 * half, 2 * half + 1] for half in range(6)], "every rank has one"
    for budget in (1, 8, 12, 17):
        found = units(samples, rows, WIDE, budget)
        assert [row for unit in found for row in unit] == rows
        assert all(unit_width(unit, samples) <= budget for unit in found if len(unit) > 1)
    windowed = replace(WIDE, window=10)
    assert units(samples, rows, windowed, 10**6) == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9], [10], [11]], "7 + 6 tokens see not all"


def test_long_responses_are_not_worth_a_mask() -> None:
    """A dense mask pays for every pair of tokens; flex_attention does not."""
    model = SharedPrompts("sdpa", 576, None)
    assert model.together(70, 17, 8) == 8
    assert model.together(200, 4000, 8) == 1 and replace(model, attention="flex_attention").together(200, 4000, 8) == 8
    assert 1 < model.together(1000, 400, 8) < 8


def tiny(config: Any, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=1)


def gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=17,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=24,
        eos_token_id=1,
    )


def mamba() -> Any:
    from transformers import MambaConfig

    return MambaConfig(vocab_size=17, hidden_size=32, num_hidden_layers=1, state_size=4, eos_token_id=1)


def bloom() -> Any:
    """ALiBi: positions are counted from the mask."""
    from transformers import BloomConfig

    return BloomConfig(vocab_size=17, hidden_size=32, n_layer=1, n_head=2, eos_token_id=1)


@pytest.mark.slow
@pytest.mark.parametrize("config, window", [(gpt2, None), (gemma2, 24)], ids=["learned positions", "sliding window"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_that_share(tmp_path: Path, groups: list[Group], config: Any, window: int | None, attention: str) -> None:
    folder = tiny(config(), tmp_path)
    policy = load_policy(ModelConfig(name=str(folder), attn_implementation=attention, share_prompts=True), CPU)
    assert policy.shared is not None and policy.shared.window == window
    expected, found = (states(replace(policy, shared=way), samples_of(groups)) for way in (None, replace(WIDE, attention=attention)))
    for row, value in found.items():
        torch.testing.assert_close(value, expected[row], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [mamba, bloom], ids=["recurrent", "alibi"])
def test_models_that_cannot_share_read_for_each(tmp_path: Path, config: Any) -> None:
    folder = tiny(config(), tmp_path)
    try:
        policy = load_policy(ModelConfig(name=str(folder)), CPU)
    except ValueError as error:
        pytest.skip(f"cannot be trained at all: {error}")
    assert policy.shared is None
    with pytest.raises(ValueError, match=r"model\.share_prompts must be false or left out for .*, got true: "):
        load_policy(ModelConfig(name=str(folder), share_prompts=True), CPU)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": None, "attention_chunk_size": 8192}, 8192),
        ({"window_size": 256, "sliding_window": 512}, 256),
        ({"index_topk": 2048}, 2048),
        ({"max_window_layers": 28, "sliding_window_pattern": 6, "chunk_size_feed_forward": 4}, None),
    ],
)
def test_the_fewest_tokens_that_a_layer_sees(options: dict[str, Any], limit: int | None) -> None:
    from types import SimpleNamespace

    assert _window(SimpleNamespace(**options)) == limit
