"""User mistakes: the message names the argument, the rule and the value. No GPU and no kernel is needed."""

import pytest
import torch

from aer_kernels import FusedLMHead, fused_logprobs, fused_policy_loss, logprobs_from_logits

H, W, Y, A = torch.randn(6, 4), torch.randn(9, 4), torch.zeros(6, dtype=torch.long), torch.ones(6)


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, r"weight must have shape \(V, 4\) to match hidden \(6, 4\), got \(9, 3\)", lambda: fused_logprobs(H, W[:, :3], Y)),
        (ValueError, r"targets must have shape \(6,\), one target a token, got \(5,\)", lambda: fused_logprobs(H, W, Y[:5])),
        (TypeError, "weight must have the dtype of hidden", lambda: fused_logprobs(H.bfloat16(), W, Y)),
        (TypeError, "targets must be int64 or int32, got torch.float32", lambda: fused_logprobs(H, W, Y.float())),
        (TypeError, "hidden must have dtype float32, bfloat16, float16 for impl='triton', got torch.float64",
         lambda: fused_logprobs(H.double(), W.double(), Y, impl="triton")),
        (TypeError, "hidden must be a torch.Tensor, got list", lambda: fused_logprobs([1.0], W, Y)),
        (ValueError, r"bias must have shape \(9,\) to match weight \(9, 4\), got \(4,\)", lambda: fused_logprobs(H, W, Y, bias=torch.zeros(4))),
        (ValueError, "temperature must be > 0, got 0", lambda: fused_logprobs(H, W, Y, temperature=0)),
        (ValueError, "temperature must be > 0, got -1.0", lambda: fused_logprobs(H, W, Y, temperature=torch.full((6,), -1.0))),
        (ValueError, r"temperature must have a shape that broadcasts to targets \(6,\), got \(4,\)",
         lambda: fused_logprobs(H, W, Y, temperature=torch.ones(4))),
        (ValueError, "softcap must be > 0, got -3.0", lambda: fused_logprobs(H, W, Y, softcap=-3.0)),
        (ValueError, "impl must be one of 'auto', 'triton', 'torch', 'reference', got 'cuda'", lambda: fused_logprobs(H, W, Y, impl="cuda")),
        (ValueError, "memory_budget must be > 0, got 0", lambda: fused_logprobs(H, W, Y, memory_budget=0)),
        (ValueError, r"memory_budget must be at least \d+ bytes .* for these shapes, got 10", lambda: fused_logprobs(H, W, Y, memory_budget=10)),
        (ValueError, r"memory_budget must be at least \d+ bytes .* for these shapes, got 10",
         lambda: fused_policy_loss(H, W, Y, advantages=A, memory_budget=10)),
        (ValueError, r"advantages must have a shape that broadcasts to targets \(6,\), got \(5,\)", lambda: fused_policy_loss(H, W, Y, advantages=A[:5])),
        (TypeError, "advantages must have a float dtype, got torch.int64", lambda: fused_policy_loss(H, W, Y, advantages=Y)),
        (ValueError, "objective must be one of 'ppo', 'cispo', got 'trpo'", lambda: fused_policy_loss(H, W, Y, advantages=A, objective="trpo")),
        (ValueError, "clip_low must be >= 0, got -0.1", lambda: fused_policy_loss(H, W, Y, advantages=A, clip_low=-0.1)),
        (ValueError, "dual_clip must be > 1 or None, got 1.0", lambda: fused_policy_loss(H, W, Y, advantages=A, dual_clip=1.0)),
        (ValueError, "dual_clip must be None for objective='cispo', got 3.0",
         lambda: fused_policy_loss(H, W, Y, advantages=A, objective="cispo", dual_clip=3.0)),
        (ValueError, "ref_logprobs must be given with kl_coef", lambda: fused_policy_loss(H, W, Y, advantages=A, kl_coef=0.1)),
        (ValueError, "normalizer must be > 0, got 0", lambda: fused_policy_loss(H, W, Y, advantages=A, normalizer=0)),
        (ValueError, r"normalizer must be a float or a 0-dim tensor, got shape \(2,\)",
         lambda: fused_policy_loss(H, W, Y, advantages=A, normalizer=torch.ones(2))),
        (ValueError, "normalizer must be given for aggregation='constant', got None", lambda: fused_policy_loss(H, W, Y, advantages=A, aggregation="constant")),
        (ValueError, "entropy_normalizer must be given with normalizer, entropy_coef and aggregation='constant': the loss tokens of the whole",
         lambda: fused_policy_loss(H, W, Y, advantages=A, aggregation="constant", normalizer=9.0, entropy_coef=0.1)),
        (ValueError, "entropy_normalizer must be given with normalizer, entropy_coef and aggregation='sequence_mean'",
         lambda: fused_policy_loss(H, W, Y, advantages=A, aggregation="sequence_mean", sequence_ids=Y, normalizer=9.0, entropy_coef=A)),
        (TypeError, "entropy_coef must be a float or a torch.Tensor, got list", lambda: fused_policy_loss(H, W, Y, advantages=A, entropy_coef=[0.1])),
        (TypeError, "kl_coef must be a float or a torch.Tensor, got str", lambda: fused_policy_loss(H, W, Y, advantages=A, kl_coef="0.1")),
        (ValueError, "importance_weights must be >= 0, got -1.0", lambda: fused_policy_loss(H, W, Y, advantages=A, importance_weights=-torch.ones(6))),
        (ValueError, "loss_mask must hold 0 and 1, got 0.5", lambda: fused_logprobs(H, W, Y, loss_mask=torch.full((6,), 0.5))),
        (TypeError, "bias must be left to the head, which has its own",
         lambda: FusedLMHead(W.shape[1], W.shape[0])(H, Y, bias=torch.zeros(W.shape[0]))),
        (ValueError, "sequence_ids must be given for aggregation='sequence_mean'",
         lambda: fused_policy_loss(H, W, Y, advantages=A, aggregation="sequence_mean")),
        (ValueError, "sequence_ids must be None unless aggregation is 'sequence_mean'", lambda: fused_policy_loss(H, W, Y, advantages=A, sequence_ids=Y)),
        (ValueError, "aggregation must be one of 'token_mean', 'sequence_mean', 'constant', got 'mean'",
         lambda: fused_policy_loss(H, W, Y, advantages=A, aggregation="mean")),
        (ValueError, r"logits must have shape \(..., V\) with V >= 1, got \(6, 0\)", lambda: logprobs_from_logits(torch.zeros(6, 0), Y)),
        (ValueError, r"targets must be in \[0, 9\) or ignore_index, got -3", lambda: logprobs_from_logits(H @ W.T, Y - 3)),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_message(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_triton_on_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        ValueError, match=r"impl='triton' must be given CUDA tensors \(or run with TRITON_INTERPRET=1\), got tensors on cpu"
    ):
        fused_logprobs(H, W, Y, impl="triton")


def test_masked_tokens_may_hold_anything():
    targets = Y.clone()
    targets[2] = 10**6
    old = torch.full((6,), float("nan"))
    old[[0, 1, 3, 4, 5]] = -1.0
    out = fused_policy_loss(H, W, targets, advantages=A, old_logprobs=old, loss_mask=torch.arange(6) != 2)
    assert torch.isfinite(out.loss)
