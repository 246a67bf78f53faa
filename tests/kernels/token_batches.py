"""Updates for the tests of methods: tokens at random or by hand, in any order of their responses, and a small policy with its paper's loss."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F

from aer_kernels import fused_policy_loss
from aer_kernels.methods import Measured, TokenBatch, make_method, method_class
from aer_kernels.methods.seam import OF_TOKENS


def batch(lengths=((3, 1), (2, 0, 4)), seed=0):
    """Responses of these lengths by prompt; one has no tokens."""
    generator = torch.Generator().manual_seed(seed)
    flat = [length for group in lengths for length in group]
    response = torch.arange(len(flat)).repeat_interleave(torch.tensor(flat))
    position = torch.cat([torch.arange(length) for length in flat])
    prompt = torch.arange(len(lengths)).repeat_interleave(torch.tensor([len(group) for group in lengths]))
    count = len(response)
    return TokenBatch(
        -3 * torch.rand(count, generator=generator),
        torch.randn(len(flat), generator=generator)[response],
        response,
        position,
        prompt,
        torch.rand(len(lengths), generator=generator),
        seed,
        2 * torch.rand(count, generator=generator),
    )


def full(lengths=((3, 1), (2, 0, 4)), seed=0):
    """The same with every optional field."""
    tokens, generator = batch(lengths, seed), torch.Generator().manual_seed(seed + 1)
    count, responses, prompts = len(tokens.logprobs), len(tokens.prompt), len(tokens.accuracy)
    return replace(
        tokens,
        rewards=(torch.rand(responses, generator=generator) > 0.5).float(),
        ids=torch.arange(responses),
        prompt_logprobs=-torch.rand(prompts, generator=generator),
        text=[f" w{i % 5}" for i in range(count)],
        current_entropy=tokens.entropy * (1 + 0.1 * torch.randn(count, generator=generator)),
        reference_entropy=tokens.entropy.flip(0),
        kept_entropy=tokens.entropy * torch.rand(count, generator=generator),
        mean_surprise=0.1 * torch.randn(count, generator=generator),
        statistic=torch.rand(responses, generator=generator),
    )


def permuted(tokens: TokenBatch, seed: int) -> tuple[TokenBatch, torch.Tensor, torch.Tensor]:
    """The same update with its prompts, and the responses of each, in another order; and where each token and response is taken from."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randperm(len(tokens.accuracy), generator=generator)
    shuffled = torch.randperm(len(tokens.prompt), generator=generator)
    place_of_prompt = prompts.argsort()
    responses = shuffled[place_of_prompt[tokens.prompt[shuffled]].argsort(stable=True)]
    place_of_response = responses.argsort()
    of_token = place_of_response[tokens.response].argsort(stable=True)
    taken: dict[str, Any] = {}
    for part, names in (
        (of_token, ("logprobs", "advantages", "position", *OF_TOKENS)),
        (responses, ("rewards", "ids", "statistic")),
        (prompts, ("accuracy", "prompt_logprobs")),
    ):
        taken |= {name: getattr(tokens, name)[part] for name in names if getattr(tokens, name) is not None}
    if tokens.text is not None:
        taken["text"] = [tokens.text[i] for i in of_token.tolist()]
    taken |= {"response": place_of_response[tokens.response[of_token]], "prompt": place_of_prompt[tokens.prompt[responses]]}
    assert set(taken) | {"seed"} == {field.name for field in fields(tokens) if getattr(tokens, field.name) is not None}
    return replace(tokens, **taken), of_token, responses


def make(kind, **options):
    return make_method(method_class(kind).Config(**options))


def tokens_of(logprobs, advantages, entropy=None, accuracy=0.5):
    """Responses of one length: (R, T) nested lists; all to one prompt."""
    lp = torch.tensor(logprobs)
    number, length = lp.shape
    return TokenBatch(
        lp.flatten(),
        torch.tensor(advantages).repeat_interleave(length),
        torch.arange(number).repeat_interleave(length),
        torch.arange(length).repeat(number),
        torch.zeros(number, dtype=torch.int64),
        torch.tensor([accuracy]),
        entropy=None if entropy is None else torch.tensor(entropy).flatten(),
    )


def feed(method, entropies, tokens=10.0):
    """Updates with these mean entropies; returns what the regulator moved after each."""
    found = []
    for entropy in entropies:
        method.update(Measured(entropy * tokens, tokens, 2.0))
        found.append(method.regulator.value)
    return found


class Problem:
    """Responses of a policy with a small head, in float64: hidden states with a gradient, and what was sampled by an older policy."""

    def __init__(self, seed=0, drift=0.0, lengths=(7, 1, 4, 9), greedy=False):
        generator = torch.Generator().manual_seed(seed)
        count = sum(lengths)
        self.hidden = (1.5 * torch.randn(count, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        self.weight = torch.randn(23, 6, generator=generator, dtype=torch.float64)
        self.targets = torch.randint(0, 23, (count,), generator=generator)
        self.logp = F.log_softmax(self.hidden @ self.weight.T, -1)
        self.targets = self.logp.argmax(-1) if greedy else self.targets
        self.logprobs = self.logp.gather(1, self.targets[:, None])[:, 0]
        self.entropy = -(self.logp.exp() * self.logp).sum(-1)
        self.old = self.logprobs.detach() + drift * torch.randn(count, generator=generator, dtype=torch.float64)
        response = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self.advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)[response]
        self.reference = self.entropy.detach().float().flip(0)
        self.tokens = TokenBatch(
            self.old.float(),
            self.advantages.float(),
            response,
            torch.cat([torch.arange(length) for length in lengths]),
            torch.arange(len(lengths)) // 2,
            torch.full((len(lengths) // 2,), 0.5),
            seed,
            self.entropy.detach().float(),
        )

    def entropy_over(self, kept):
        """Entropy of each token over the set that is drawn by sorting and masking, differentiable."""
        p, order = self.logp.detach().exp().sort(-1, descending=True)
        if kept.top_p is None:
            inside = torch.arange(p.shape[1]) < math.ceil(kept.top_share * p.shape[1])
        else:
            inside = (p.cumsum(-1) - p if kept.crossing else p.cumsum(-1)) < kept.top_p
        inside = inside.expand_as(p).clone()
        inside[:, 0] = True
        logq = self.logp.masked_fill(~torch.zeros_like(inside).scatter(1, order, inside), -torch.inf).log_softmax(-1)
        return -(logq.exp() * logq.clamp(min=-1e4)).sum(-1)

    @property
    def ratio(self):
        return (self.logprobs - self.old).exp()

    def clipped(self, low=0.2, high=0.2, advantages=None):
        advantages = self.advantages if advantages is None else advantages
        return torch.minimum(self.ratio * advantages, self.ratio.clamp(1 - low, 1 + high) * advantages)

    def check(self, loss, terms, tolerance=1e-6, kept=None, **options):
        """The gradient of `loss` is that of the fused loss with these terms, entropies over the kept set."""
        bounds = {name: getattr(terms, name) for name in ("clip_low", "clip_high", "dual_clip") if getattr(terms, name) is not None}
        (expected,) = torch.autograd.grad(loss, self.hidden, retain_graph=True)
        hidden = self.hidden.detach().requires_grad_()
        if kept is not None:
            options |= {"floor": kept.floors(hidden.detach(), self.weight), "floor_scope": "entropy"}
        output = fused_policy_loss(
            hidden,
            self.weight,
            self.targets,
            advantages=self.advantages + (0.0 if terms.shift is None else terms.shift),
            old_logprobs=self.old,
            importance_weights=terms.weight,
            entropy_coef=0.0 if terms.entropy_coef is None else terms.entropy_scale * terms.entropy_coef,
            ref_logprobs=None if terms.divergence_coef is None else self.old,
            kl_coef=0.0 if terms.divergence_coef is None else terms.divergence_coef,
            kl="abs_k1",
            loss_mask=torch.ones(len(self.targets), dtype=torch.bool),
            **(bounds | options),
        )
        output.loss.backward()
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(hidden.grad, expected, rtol=tolerance, atol=tolerance)
