"""GRPO with adaptive entropy regularization in a loop of your own: no trainer, nothing to download.

python examples/plain_loop.py --steps 140 --seed 0
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from aer_kernels import EXPLORE_THEN_SETTLE, AdaptiveEntropyController, fused_logprobs, fused_policy_loss
from aer_train.model import COUNTDOWN_POLICY
from aer_train.tasks import task
from aer_train.tasks.prompts import make_prompts

COUNTDOWN = task("countdown")  # easy: 358=16? -> 8+5+3.  hard, needs a *, which the policy hardly ever writes: 358=43? -> 5*8+3
PROMPTS, GROUP, UPDATES, SHOW_EVERY = 32, 8, 2, 10


def hidden(model: Any, tokens: Tensor) -> Tensor:
    """Final hidden states (B, T - 1, D): each predicts the token after it. The fused functions apply the lm_head."""
    return model.model(tokens).last_hidden_state[:, :-1]


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: list) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (B, T), loss_mask (B, T - 1) of the response tokens, rewards (prompts, GROUP). All prompts have one length here."""
    ids = tokenizer([prompt.text for prompt in prompts], return_tensors="pt").input_ids
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": COUNTDOWN.max_new_tokens, "num_return_sequences": GROUP}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    responses = tokens[:, ids.shape[1] :]
    ends = (responses == tokenizer.eos_token_id).long()
    mask = torch.nn.functional.pad(ends.cumsum(1) == ends, (ids.shape[1] - 1, 0))  # up to the first end, which counts
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    rewards = [COUNTDOWN.score(text, prompts[i // GROUP].answer) for i, text in enumerate(texts)]
    return tokens, mask, torch.tensor(rewards).view(-1, GROUP)


def accuracy(prompts: list, rewards: Tensor) -> dict[str, float]:
    return {tier: rewards[[prompt.tier == tier for prompt in prompts]].mean().item() for tier in ("easy", "hard")}


def train(model: Any, tokenizer: Any, steps: int, seed: int) -> list[dict[str, float]]:
    """Train the model in place; returns and prints what each step showed."""
    controller = AdaptiveEntropyController(replace(EXPLORE_THEN_SETTLE, updates=steps))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
    prompts, weight, shown = make_prompts(COUNTDOWN, "train", steps * PROMPTS, seed), model.lm_head.weight, []
    for step in range(1, steps + 1):
        batch = prompts[(step - 1) * PROMPTS : step * PROMPTS]
        tokens, mask, rewards = sample(model, tokenizer, batch)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        with torch.no_grad():
            old = fused_logprobs(hidden(model, tokens), weight, tokens[:, 1:], loss_mask=mask)
        entropy_of_prompts = -old.logprobs.sum(1).view(-1, GROUP).mean(1)  # an estimate from the samples, nats per response
        coef, alpha = controller.coefficients(rewards.mean(1), entropy_of_prompts), controller.alpha
        for rows in torch.arange(len(tokens)).chunk(UPDATES):
            out = fused_policy_loss(
                hidden(model, tokens[rows]),
                weight,
                tokens[rows, 1:],
                advantages=advantages.view(-1, 1)[rows],
                old_logprobs=old.logprobs[rows],
                loss_mask=mask[rows],
                entropy_coef=coef.repeat_interleave(GROUP)[rows, None],
            )
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        controller.update(old.entropy.sum(), len(tokens))  # this configuration holds the entropy of a response, not of a token
        measured = {"loss": out.loss.item(), "entropy": controller.last_entropy, "target": controller.target, "coef": alpha}
        shown.append(accuracy(batch, rewards) | measured)
        if step % SHOW_EVERY == 0 or step == steps:
            last = shown[-SHOW_EVERY:]
            means = {name: sum(row[name] for row in last) / len(last) for name in last[0]}
            print(f"step {step:3d}  " + "  ".join(f"{name} {value:6.3f}" for name, value in means.items()), flush=True)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--seed", type=int, default=0)
    args, started = parser.parse_args(), time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # for a model as small as this, a second thread costs more than it gives
    tokenizer = AutoTokenizer.from_pretrained(COUNTDOWN_POLICY)
    model = AutoModelForCausalLM.from_pretrained(COUNTDOWN_POLICY, dtype=torch.float32)
    held_out = make_prompts(COUNTDOWN, "test")
    before = accuracy(held_out, sample(model, tokenizer, held_out)[2])
    train(model, tokenizer, args.steps, args.seed)
    after = accuracy(held_out, sample(model, tokenizer, held_out)[2])
    changes = "  ".join(f"{tier} {before[tier]:.3f} -> {after[tier]:.3f}" for tier in before)
    print(f"held-out accuracy  {changes}  ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
