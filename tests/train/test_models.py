"""What is published under one interface and computes differently: multipliers and caps of logits, noise of training, caches and padding.

The truth is each model's own logits, for whole sequences without padding and cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import fused_logprobs
from aer_train.config.tree import ModelConfig, RolloutConfig
from aer_train.model import Logits, Policy, fused_options, load_policy
from aer_train.model.recompute import everything_kept
from aer_train.rollout.hf import HFRollout
from aer_train.types import Prompt
from tests.train.conftest import save_tokenizer

CPU = torch.device("cpu")
PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?"])]
SMALL = {
    "vocab_size": 17, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
MAMBA = {
    "vocab_size": 17,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OPT = {
    "vocab_size": 17, "num_hidden_layers": 4, "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "max_position_embeddings": 64,
    "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def save(folder: Path, name: str, **options: Any) -> None:
    """A random model with logits of a realistic size."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, name)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
            elif "bias" in parameter_name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def load(folder: Path, name: str, changes: dict[str, Any], **options: Any) -> Policy:
    if not (folder / "config.json").exists():
        save(folder, name, **changes)
    return load_policy(ModelConfig(name=str(folder), **options), CPU)


def own_logprobs(policy: Policy, ids: torch.Tensor) -> torch.Tensor:
    """(T - 1,) of the tokens of one sequence but the first, by the model itself."""
    with torch.no_grad():
        logits = policy.model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]
    return logits.double().log_softmax(-1)[:-1].gather(-1, ids[1:, None]).squeeze(-1)


SCALED = {
    "Cohere": ("CohereConfig", {**SMALL, "logit_scale": 0.25}, 0.25, None),
    "Cohere 2": ("Cohere2Config", {**SMALL, "logit_scale": 4.0}, 4.0, None),
    "Granite": ("GraniteConfig", {**SMALL, "logits_scaling": 3.0}, 1 / 3, None),
    "Granite MoE": ("GraniteMoeConfig", {**SMALL, **EXPERTS, "logits_scaling": 3.0}, 1 / 3, None),
    "HyperCLOVA X": ("HyperCLOVAXConfig", {**SMALL, "logits_scaling": 0.3}, 0.3, None),
    "MiniCPM": ("MiniCPM3Config", {**SMALL, **MLA, "dim_model_base": 8}, 0.25, None),
    "Gemma 2": ("Gemma2Config", {**SMALL, "head_dim": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 7.0}, 1.0, 5.0),
    "a scale of 1": ("GraniteConfig", {**SMALL, "logits_scaling": 1.0}, 1.0, None),
}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("name", "options", "scale", "cap"), SCALED.values(), ids=SCALED.keys())
def test_multipliers_and_caps(
    tmp_path: Path, name: str, options: dict[str, Any], scale: float, cap: float | None, temperature: float
) -> None:
    """Log-probs, entropies and the gradient of both, and what rollouts record, against the model's own logits in float64."""
    policy = load(tmp_path, name, options)
    assert policy.scale == pytest.approx(scale) and policy.softcap == cap
    ids = torch.randint(2, 17, (1, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    options = fused_options(policy, temperature)
    found = fused_logprobs(policy.hidden(ids, mask)[:, :-1], policy.head.weight, ids[:, 1:], **options)
    (found.logprobs.sum() + 0.7 * found.entropy.sum()).backward()
    gradients = [parameter.grad.clone() for parameter in policy.model.parameters()]
    policy.model.zero_grad()
    z = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, :-1].double() / temperature
    logp = z.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    chosen = logp.gather(-1, ids[0, 1:, None]).squeeze(-1)
    (chosen.sum() + 0.7 * entropy.sum()).backward()
    torch.testing.assert_close(found.logprobs[0].double(), chosen, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy[0].double(), entropy, rtol=0, atol=1e-5)
    for mine, parameter in zip(gradients, policy.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=0, atol=1e-4 * max(1.0, float(parameter.grad.abs().max())))
    for sample in HFRollout(policy, RolloutConfig(max_new_tokens=6, temperature=temperature)).generate(PROMPTS, 2, (0,)):
        tokens = torch.tensor(sample.prompt_tokens + sample.tokens)
        with torch.no_grad():
            z = policy.model(input_ids=tokens[None], use_cache=False).logits[0].double() / temperature
        expected = z.log_softmax(-1)[:-1].gather(-1, tokens[1:, None]).squeeze(-1)[len(sample.prompt_tokens) - 1 :]
        assert sample.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_scale_and_a_cap_together() -> None:
    """cap tanh(s u / cap) / T is what the fused functions compute at T / s under cap / s."""
    from types import SimpleNamespace

    policy: Any = SimpleNamespace(scale=0.4, softcap=5.0, head=SimpleNamespace(bias=None))
    u = torch.randn(6, 9, dtype=torch.float64) * 20
    options = fused_options(policy, 0.7)
    theirs = 5.0 * torch.tanh(0.4 * u / 5.0) / 0.7
    ours = options["softcap"] * torch.tanh(u / options["softcap"]) / options["temperature"]
    torch.testing.assert_close(ours, theirs)


def test_a_multiplier_that_the_config_does_not_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scaled(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.logits = 1.5 * output.logits
        return output

    save(tmp_path, "LlamaConfig", **SMALL)
    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ValueError, match=r"model.name must be a model with a readable lm_head, got .* differ from its logits by"):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)


NOISY = {
    "control": ("LlamaConfig", SMALL),
    "jitter of routers": ("MixtralConfig", {**SMALL, **EXPERTS, "router_jitter_noise": 0.1}),
    "drawn experts": ("PhimoeConfig", {**SMALL, **EXPERTS}),
    "layerdrop": ("OPTConfig", {**OPT, "layerdrop": 0.3}),
    "dropout": ("GPT2Config", {"vocab_size": 17, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "shared keys": ("Gemma3nTextConfig", {**SMALL, "head_dim": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 8,
                    "vocab_size_per_layer_input": 17, "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0] * 4,
                    "layer_types": ["sliding_attention", "full_attention"] * 2}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NOISY.values(), ids=NOISY.keys())
def test_recomputation_changes_nothing(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """The pass of the update is that of scoring, and both are the model's own: log-probs and gradients, with and without it."""
    ids = torch.randint(2, 17, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    logprobs, gradients, saved = [], [], []
    for recomputed in (False, True):
        policy = load(tmp_path, name, options, gradient_checkpointing=recomputed)
        kept, whole = list[int](), list[int]()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            states = policy.hidden(ids, mask)
        found = fused_logprobs(states[:, :-1], policy.head.weight, ids[:, 1:], **fused_options(policy, 1.0)).logprobs
        found.sum().backward()
        with torch.no_grad():
            scored = policy.hidden(ids, mask)
        assert torch.equal(states, scored) and not any(module.training for module in policy.model.modules())
        with (
            everything_kept(policy.model),
            torch.autograd.graph.saved_tensors_hooks(lambda t, all=whole: all.append(t.numel()) or t, lambda t: t),
        ):
            policy.hidden(ids, mask)
        logprobs.append(found.detach())
        gradients.append([parameter.grad for parameter in policy.model.parameters()])
        saved.append(sum(kept))
    own = torch.stack([own_logprobs(policy, row) for row in ids])
    torch.testing.assert_close(logprobs[0].double(), own, rtol=0, atol=1e-4)
    assert torch.equal(*logprobs)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * max(1.0, 0.0 if a is None else float(a.abs().max())))
    assert sum(whole) == saved[0]
    assert saved[1] < saved[0] / 3, "that is what it is for"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mamba2Config", {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 1}),
        ("Llama4TextConfig", {**SMALL, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2}),
    ],
)
def test_rollouts_beside_longer_prompts(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    policy = load(tmp_path, name, options)
    for sample in HFRollout(policy, RolloutConfig(max_new_tokens=6)).generate(PROMPTS, 2, (0,)):
        expected = own_logprobs(policy, torch.tensor(sample.prompt_tokens + sample.tokens))[len(sample.prompt_tokens) - 1 :]
        assert sample.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("MambaConfig", MAMBA, r"its logits differ by \S+ of their spread"),
        ("FalconMambaConfig", MAMBA, r"its logits differ by \S+ of their spread"),
        ("RwkvConfig", {"vocab_size": 17, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}, r"its logits differ by"),
    ],
)
def test_models_that_cannot_be_sampled_so_are_refused(tmp_path: Path, name: str, options: dict[str, Any], reason: str, dtype: Any) -> None:
    policy = load(tmp_path, name, options, dtype=dtype)
    with pytest.raises(ValueError, match=rf"rollout.backend must be vllm or vllm_server for \w+, got hf: .*{reason}"):
        HFRollout(policy, RolloutConfig())


def test_a_cache_of_its_own_kind_is_told_in_a_line(tmp_path: Path) -> None:
    options = {**SMALL, **EXPERTS, "head_dim": 8, "layer_types": ["full_attention", "linear_attention"]}
    policy = load(tmp_path, "MiniMaxConfig", options)
    with pytest.raises(
        ValueError, match=r"rollout.backend must be vllm .* for MiniMaxForCausalLM, got hf: ValueError: MiniMax uses cache of its own"
    ) as error:
        HFRollout(policy, RolloutConfig())
    assert "\n" not in str(error.value)


def test_logits_of_rollouts_are_not_rounded_to_bfloat16(tmp_path: Path) -> None:
    """They are what the trainer's kernels compute of the same hidden states, in float32."""
    policy = load(tmp_path, "GPT2Config", NOISY["dropout"][1], dtype="bfloat16")
    ids = torch.randint(2, 17, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), policy.autocast():
        states = policy.hidden(ids, torch.ones_like(ids))
        theirs = fused_logprobs(states[:, :-1], policy.head.weight, ids[:, 1:]).logprobs[0]
        ours = Logits(policy)(states[0, :-1])
        rounded = policy.head(states[0, :-1]).float()
    assert ours.dtype == torch.float32
    targets = ids[0, 1:, None]
    assert (ours.log_softmax(-1).gather(-1, targets).squeeze(-1) - theirs).abs().max() < 1e-5
    assert (rounded.log_softmax(-1).gather(-1, targets).squeeze(-1) - theirs).abs().max() > 1e-3


def test_a_model_that_reads_the_padding_is_refused_at_load(tmp_path: Path) -> None:
    save(tmp_path, "CpmAntConfig", vocab_size=17, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=48, num_hidden_layers=2)
    with pytest.raises(
        ValueError, match=r"model.name must be a causal model that leaves padding out, got .*: .* differ by \S+ of their size"
    ):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)


def test_a_model_that_sees_what_comes_later_is_refused_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    forward = LlamaModel.forward

    def smeared(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    save(tmp_path, "LlamaConfig", **SMALL)
    monkeypatch.setattr(LlamaModel, "forward", smeared)
    with pytest.raises(ValueError, match=r"must be a causal model .* with more text behind"):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)


def test_attention_with_a_mask_of_its_own_keeps_samples_apart(tmp_path: Path) -> None:
    """GPT-Neo's masks know only places in a sequence of its own length, and its window is far longer than a proof at load."""
    neo = {"vocab_size": 17, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    policy = load(tmp_path, "GPTNeoConfig", {**neo, "window_size": 256, "max_position_embeddings": 512})
    assert policy.shared is None
    for option in ("share_prompts", "unpad"):
        with pytest.raises(ValueError, match=f"model.{option} must be .*: its attention has a mask of its own"):
            load_policy(ModelConfig(name=str(tmp_path), **{option: True}), CPU)


def test_steps_that_leave_out_a_bound_are_refused(tmp_path: Path) -> None:
    """Nemotron-H bounds time steps from below in whole sequences, and not when it goes on from a cache: log-probs are off by 0.01 nats."""
    hybrid = {
        "layers_block_type": ["mamba", "attention"],
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
    }
    policy = load(tmp_path, "NemotronHConfig", {**SMALL, **hybrid, "chunk_size": 8, "time_step_min": 0.5})
    with pytest.raises(ValueError, match=r"rollout.backend must be vllm or vllm_server for NemotronHForCausalLM, got hf: .* differ by"):
        HFRollout(policy, RolloutConfig())


@pytest.mark.parametrize("positions", [4, 8, 20])
def test_a_model_with_few_positions_is_proved_within_them(tmp_path: Path, positions: int) -> None:
    policy = load(tmp_path, "GPT2Config", {"vocab_size": 17, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": max(8, positions)})
    policy.model.config.n_positions = positions
    seen: list[int] = []
    policy.body.wpe.register_forward_hook(lambda module, args, output: seen.append(int(args[0].max())))
    HFRollout(policy, RolloutConfig(max_new_tokens=2))
    assert seen and max(seen) < positions


@pytest.mark.parametrize(
    ("raised", "told", "line"),
    [
        (
            AssertionError(),
            ValueError,
            r"model.name must be a causal language model of the usual form, got '.*': AssertionError: no reason",
        ),
        (KeyError("x"), ValueError, r"model.name must be a causal language model of the usual form, got '.*': KeyError: 'x'"),
        (
            RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"),
            MemoryError,
            r"out of memory: take a smaller model \(model.name\)",
        ),
    ],
)
def test_errors_of_a_models_own_code_are_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, told: type[Exception], line: str
) -> None:
    from transformers import LlamaForCausalLM

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    save(tmp_path, "LlamaConfig", **SMALL)
    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    with pytest.raises(told, match=line) as error:
        load_policy(ModelConfig(name=str(tmp_path)), CPU)
    assert "\n" not in str(error.value)
