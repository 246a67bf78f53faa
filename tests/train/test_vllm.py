"""vLLM lane: the log-probs that vLLM reports for what it sampled are those that the fused loss computes from the same weights.

pip install vllm        (or a CPU build), then: pytest -m vllm
"""

import os

import pytest
import torch

from aer_kernels import fused_logprobs
from aer_train.tasks import builtin_prompts
from aer_train.tasks.warmup import build_model, build_tokenizer

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_equal_fused_logprobs(tmp_path, temperature):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams

    torch.manual_seed(0)
    model, tokenizer = build_model().eval(), build_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = LLM(
        model=str(tmp_path),
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": tokenizer(p.text)["input_ids"]} for p in builtin_prompts("builtin:countdown", "test", 8, 0)]
    sampling = SamplingParams(temperature=temperature, max_tokens=6, logprobs=0, seed=0)
    for output in engine.generate(prompts, sampling, use_tqdm=False):
        tokens = list(output.outputs[0].token_ids)
        reported = torch.tensor([step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)])
        ids = torch.tensor([[*output.prompt_token_ids, *tokens]])
        with torch.no_grad():
            hidden = model.model(ids[:, :-1]).last_hidden_state
            ours = fused_logprobs(hidden, model.lm_head.weight, ids[:, 1:], temperature=temperature).logprobs[0, -len(tokens) :]
        torch.testing.assert_close(ours, reported, rtol=0, atol=1e-4)
