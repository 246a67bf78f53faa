"""The mathematical definition, in plain PyTorch, differentiated by autograd, in any float dtype up to float64.

This file is the truth that every fused path is tested against. It holds the full (N, V) logits and takes no shortcut.

Notation: x_n hidden (D), W weight (V, D), b bias (V), T_n temperature, y_n target, A_n advantage; sums over v run over the vocabulary.

Forward
  (1)  u_nv = x_n . W_v + b_v                                  raw logits; b may hold -inf (padded vocabulary)
  (2)  z_nv = cap(u_nv) / T_n                                  cap(u) = c tanh(u / c) with a softcap c, else u; cap(-inf) = -inf
  (3)  lse_n = log sum_v exp(z_nv)
  (4)  logp_nv = z_nv - lse_n,  p_nv = exp(logp_nv);           logprobs_n = logp_n,y_n
  (5)  H_n = - sum_v p_nv logp_nv                              entropy, nats; p log p = 0 where p = 0
       With a floor f_n the sums of (3)-(5) run over K_n = {v: z_nv >= f_n or v = y_n}. With scope "entropy" only (5) does, over
       K_n = {v: z_nv >= f_n}, with the distribution q of K_n: log q_nv = z_nv - log sum_K exp(z_n),  H_n = - sum_K q_nv log q_nv
  (6)  r_n = exp(clamp(logprobs_n - old_logprobs_n, -20, 20))  ratio; old_logprobs omitted: r_n = 1, with gradient
  (7)  ppo:    s_n = min(r_n A_n, clip(r_n, 1 - clip_low, 1 + clip_high) A_n), and for A_n < 0 with a dual clip c: max(s_n, c A_n)
       cispo:  s_n = sg[clip(r_n, 1 - clip_low, 1 + clip_high)] A_n logprobs_n
       w_n = sg[min(exp(clamp(logprobs_n - rollout_logprobs_n, -20, 20)), rollout_cap)]    weight for rollout mismatch, or a given one
  (8)  d_n = clamp(logprobs_n - ref_logprobs_n, -20, 20)                                   divergence from other log-probs, one of
       k1: d_n    abs_k1: |d_n|    k2: d_n^2 / 2    k3: exp(-d_n) + d_n - 1                (k3: an estimate of KL that is >= 0)
  (9)  loss = sum_n n_n (- w_n s_n + kl_coef_n k_n) - sum_n m_n entropy_coef_n H_n
       n_n = 1 / normalizer (token_mean, constant) or 1 / (normalizer * tokens in n's sequence) (sequence_mean)
       m_n = 1 / entropy_normalizer: the entropy term is a token mean whatever n_n is, so that a coefficient means one thing

Gradients (what the fused paths compute, with g_n = dL/dlogprobs_n and e_n = dL/dH_n)
  (10) dlogprobs_n / dz_nv = [v = y_n] - p_nv
  (11) dH_n / dz_nv        = - p_nv (logp_nv + H_n)                 with a floor - q_nv (log q_nv + H_n) in K_n, 0 elsewhere
  (12) dL / dz_nv          = g_n ([v = y_n] - p_nv) - e_n p_nv (logp_nv + H_n)
  (13) dL / du_nv          = dL/dz_nv * (1 - tanh(u_nv / c)^2) / T_n
  (14) dL / dx = (dL/du) W,   dL / dW = (dL/du)^T x,   dL / db = sum_n dL/du_n
  (15) g_n for the policy loss: n_n (- w_n ds_n/dlogp_n + kl_coef_n dk_n/dlogp_n)
       with ds/dlogp = r A where (7) is not clipped and 0 where it is (ppo); sg[clip(r)] A (cispo);   e_n = - m_n entropy_coef_n
       dk/dlogp = 1 (k1), sign(d) (abs_k1), d (k2), 1 - exp(-d) (k3); 0 where d is at a bound of its clamp

How the fused paths evaluate (3)-(5) without holding z: over vocabulary blocks they carry the running maximum m, s = sum exp(z - m) and the
recentred t = sum exp(z - m) (z - m); when m grows by dm: t <- exp(-dm) (t - dm s), s <- exp(-dm) s. Then
  (16) lse = m + log s,   logp_v = (z_v - m) - log s,   H = log s - t / s
which does not cancel for large |z|, as lse - sum p z would. With scope "entropy" t runs over K alone, and so does a further sum k of
exp(z - m), which takes the place of s in H.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound of the log-ratio in (6) and (8): beyond e^20 a run is broken, and finite numbers keep its metrics readable."""


def temper(raw: Tensor, bias: Tensor | None, temperature: float | Tensor, softcap: float | None) -> Tensor:
    """Equations (1)-(2) from raw products (N, V): bias, softcap, temperature (a float or (N,))."""
    if bias is not None:
        raw = raw + bias.to(raw.dtype)
    if softcap is not None:
        masked = raw == -torch.inf
        raw = (softcap * torch.tanh(raw.masked_fill(masked, 0.0) / softcap)).masked_fill(masked, -torch.inf)
    return raw / (temperature.to(raw.dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)


def token_statistics(
    logits: Tensor, targets: Tensor, floor: Tensor | None = None, floor_scope: str = "all"
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations (3)-(5): log-prob of the target, entropy and logsumexp of each row of (N, V) logits, from their floor (N,) on.

    An empty K has the entropy NaN.
    """
    if floor is not None:
        kept = logits >= floor.unsqueeze(-1)
        if floor_scope == "entropy":
            logprobs, _, logsumexp = token_statistics(logits, targets)
            return logprobs, _entropy(torch.log_softmax(logits.masked_fill(~kept, -torch.inf), dim=-1)), logsumexp
        kept = kept.scatter(-1, targets.unsqueeze(-1), True)
        logits = logits.masked_fill(~kept, -torch.inf)
    logp = torch.log_softmax(logits, dim=-1)
    logprobs = logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return logprobs, _entropy(logp), torch.logsumexp(logits, dim=-1)


def _entropy(logp: Tensor) -> Tensor:
    """- sum p log p. p log p -> 0: the masked fill keeps 0 * -inf out of the value and out of the gradient."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def policy_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    objective: str,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Equations (6)-(7): the per-token surrogate s, to be maximised."""
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    ratio = torch.exp((logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    if objective == "cispo":
        return clipped.detach() * advantages * logprobs
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return surrogate


def rollout_weights(logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """Equation (7): truncated importance weights for the difference between trainer and rollout backend, detached."""
    return torch.exp((logprobs - rollout_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)).clamp(max=cap).detach()


def divergence(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """Equation (8): the per-token estimate k of the divergence from the policy that gave ref_logprobs, nats."""
    d = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return d
    if kind == "abs_k1":
        return d.abs()
    if kind == "k2":
        return 0.5 * d.square()
    return torch.exp(-d) + d - 1.0
