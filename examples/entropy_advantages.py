"""Entropy advantages beside the exact bonus, on the embedded Countdown task: same controller, same target, only how the bonus is applied.

python examples/entropy_advantages.py --seeds 0 1 2

Prints the noise of a token's estimate at the start, and a table of held-out prompts (a minute or two a run on one core).
"""

import argparse
import io
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from aer_kernels import EXPLORE_THEN_SETTLE, EntropyControlConfig, entropy_advantages, surprisal_baseline
from aer_kernels.methods import AER, Measured, TokenBatch, TokenTerms
from aer_train.config.presets import countdown
from aer_train.model import COUNTDOWN_POLICY
from aer_train.run.folder import read_evals, read_metrics
from aer_train.tasks import task
from aer_train.tasks.prompts import make_prompts
from aer_train.trainer import train


@dataclass(frozen=True)
class SampledConfig:
    """The bonus of the presets' AER as advantages. Baseline: entropy (which costs a pass), constant (from the batch before), or none."""

    baseline: str
    kind: str = f"{__name__}.Sampled"
    updates: int | None = None


class Sampled(AER):
    """A method like any other: AER decides the coefficients, and they go into the advantages."""

    Config = SampledConfig

    def __init__(self, config: SampledConfig) -> None:
        super().__init__(replace(EXPLORE_THEN_SETTLE, updates=config.updates))
        self.kind, self.needs_entropy = config.baseline, config.baseline == "entropy"
        self.before = self.now = 0.0

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        found = super().terms(tokens)
        self.now = surprisal_baseline(tokens.logprobs)
        baseline = {"entropy": tokens.entropy, "constant": self.before, "none": None}[self.kind]
        return TokenTerms(shift=entropy_advantages(tokens.logprobs, found.entropy_scale * found.entropy_coef, baseline), held=found.held)

    def update(self, measured: Measured) -> None:
        super().update(measured)
        self.before = self.now


RUNS: dict[str, Any] = {
    "plain GRPO": EntropyControlConfig(kind="off"),
    "exact bonus": EXPLORE_THEN_SETTLE,
    "advantages, constant baseline": SampledConfig("constant"),
    "advantages, entropy as baseline": SampledConfig("entropy"),
    "advantages, no baseline": SampledConfig("none"),
}


@torch.no_grad()
def noise(count: int = 224) -> dict[str, float]:
    """Variance of a token's estimate at the logits over the squared norm of the exact gradient; both are means over tokens of the start."""
    tokenizer = AutoTokenizer.from_pretrained(COUNTDOWN_POLICY)
    model = AutoModelForCausalLM.from_pretrained(COUNTDOWN_POLICY, dtype=torch.float64)
    torch.manual_seed(0)
    ids = tokenizer([prompt.text for prompt in make_prompts(task("countdown"), "test", count)], return_tensors="pt").input_ids
    tokens = model.generate(ids, do_sample=True, top_k=0, max_new_tokens=6, attention_mask=torch.ones_like(ids))
    responses = tokens[:, ids.shape[1] :]
    ended = (responses == tokenizer.eos_token_id).cumsum(1) - (responses == tokenizer.eos_token_id).long()
    logp = model(tokens).logits[:, ids.shape[1] - 1 : -1].double().log_softmax(-1)[ended == 0]
    drawn = logp.gather(1, responses[ended == 0][:, None])
    p = logp.exp()
    entropy, square = -(p * logp).sum(1, keepdim=True), p.square().sum(1, keepdim=True)
    exact = -p * (logp + entropy)
    size = 1 - 2 * p + square  # |[v = y] - p|^2 for each y
    best = (p * size * -logp).sum(1, keepdim=True) / (p * size).sum(1, keepdim=True)
    signal = exact.square().sum(1).mean()
    constant = surprisal_baseline(drawn)
    baselines = {
        "no baseline": torch.zeros_like(entropy),
        f"entropy, {float(entropy.mean()):.2f} nats in the mean": entropy,
        f"constant, {constant:.2f} nats": torch.full_like(entropy, constant),
        "the best of each token": best,
    }
    return {name: _variance(p, logp, b, size, exact) / float(signal) for name, b in baselines.items()}


def _variance(p: Tensor, logp: Tensor, baseline: Tensor, size: Tensor, exact: Tensor) -> float:
    second_moment = (p * (-logp - baseline).square() * size).sum(1)
    return float((second_moment - exact.square().sum(1)).mean())


def run(method: Any, seed: int, steps: int, samples: int) -> list[str]:
    """The cells of a run: held-out accuracy and pass@k by tier, and the share of the entropy that is left."""
    preset = countdown()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = replace(
            preset.run, out=f"{folder}/run", steps=steps, seed=seed, threads=1, device="cpu", save_every=0, save_samples_every=0
        )
        evaluation = replace(preset.eval, samples=samples)
        out = train(replace(preset, method=method, run=options, eval=evaluation))
        tiers = list(read_evals(Path(out)).values())[-1]["tiers"]
        entropies = [row["entropy/mean"] for row in read_metrics(Path(out))]
    numbers = [value for tier in ("easy", "hard") for value in (tiers[tier]["accuracy"], list(tiers[tier]["pass@k"].values())[-1])]
    last = entropies[-10:]
    return [*(f"{number:.3f}" for number in numbers), f"{sum(last) / len(last) / entropies[0]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--samples", type=int, default=16, help="responses to each held-out prompt")
    args = parser.parse_args()
    for name, size in noise().items():
        print(f"noise over signal, {name}: {size:.1f}")
    header = (
        "method",
        "seed",
        "easy pass@1",
        f"easy pass@{args.samples}",
        "hard pass@1",
        f"hard pass@{args.samples}",
        "entropy kept",
        "seconds",
    )
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for seed in args.seeds:
        for name, method in RUNS.items():
            started = time.monotonic()
            cells = [name, str(seed), *run(method, seed, args.steps, args.samples)]
            print(f"| {' | '.join([*cells, f'{time.monotonic() - started:.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
