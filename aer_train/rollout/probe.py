"""Proof that an engine samples from the policy's weights: fixed texts, scored by both sides after every update.

An engine may take an update without an error and go on with old weights, all of them or some (a tied lm_head, say). Three things show it:

* Engines start from random weights. What the first update does not reach is noise, and shows in the first probe.
* The log-probs of both sides differ by rounding only: their mean |difference| must stay within a tolerance.
* When the trainer's log-probs have moved, the engine's must have moved as well, however small the step was. Updates that do nothing are
  found in this way long before they add up to the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from aer_train import dist
from aer_train.data.encode import encode_prompt
from aer_train.model import Policy
from aer_train.rollout.protocol import SyncError
from aer_train.step.batching import micro_batches
from aer_train.step.loss import measure
from aer_train.step.padding import pad_id
from aer_train.types import Prompt, Sample

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Nats. float32: a thousand times the rounding of a small model. bfloat16: three times what trainers report for a fresh engine
(0.01 to 0.018), a quarter of what one reported with stale weights (0.2)."""

NUM_TOKENS = 1024
"""Enough for a stable mean; scoring them costs a fraction of a training micro-batch."""
LONGEST = 256
"""Tokens of one text: an engine may hold their logits all at once."""

MOVED = 1 / 50
"""Share of the tolerance by which the trainer must have moved before the engine is asked whether it has."""
FOLLOWED = 0.1
"""An engine that moved by a smaller share of the trainer's movement has not followed. A fresh one moves by about as much, plus rounding."""

WAYS_OUT = "resume with rollout.backend hf, or with another vllm.weight_transfer or version of vLLM"


class Probe:
    """The texts, and what both sides said of them last."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], tolerance: float | None = None, longest: int = LONGEST) -> None:
        """
        Args:
            prompts: the texts are the first of them, each followed by its gold answer.
            tolerance: largest mean |difference| in nats, > 0; None depends on the policy's dtype.
            longest: tokens of a text, which is cut there.
        """
        self.policy = policy
        self.tolerance = TOLERANCE[policy.dtype] if tolerance is None else tolerance
        whole = (replace(prompt, text=prompt.text + prompt.answer) for prompt in prompts[:NUM_TOKENS])
        texts = [encode_prompt(policy.tokenizer, text)[: min(longest, LONGEST)] for text in whole]
        self.sequences: list[list[int]] = []
        for text in texts:
            if len(text) > 1 and sum(map(len, self.sequences)) < NUM_TOKENS:
                self.sequences.append(text)
        self._before: tuple[Tensor, Tensor] | None = None
        """Log-probs of the trainer (tokens,) and of the copies of the engine (copies, tokens)."""

    def check(self, score: Callable[[list[list[int]]], list[list[list[float]]]], version: int) -> dict[str, float | None]:
        """Compare both sides; all training processes must call it together.

        Args:
            score: of every copy of the engine that this process can reach, the log-probs (nats, temperature 1) of all tokens but the
                first of each sequence.
            version: for the message.
        Returns:
            rollout/probe_mean and _max: of |difference|, nats. rollout/probe_moved and _followed: by how much (mean, nats) the log-probs of
            the trainer and of the engine have moved, None the first time. Of several copies always the worst.
        Raises:
            SyncError - a copy does not have the policy's weights; on every process.
        """
        trainer = self._trainer()
        copies = [copy for part in dist.all_gather(score(self.sequences)) for copy in part]
        engine = torch.tensor([[value for text in copy for value in text] for copy in copies], dtype=torch.float64)
        difference = (engine - trainer).abs()
        moved, followed = None, None
        if self._before is not None:
            moved = (trainer - self._before[0]).abs().mean().item()
            followed = (engine - self._before[1]).abs().mean(1).min().item()
        found = {
            "rollout/probe_mean": difference.mean(1).max().item(),
            "rollout/probe_max": difference.max().item(),
            "rollout/probe_moved": moved,
            "rollout/probe_followed": followed,
        }
        problems = dist.all_gather(self._problem(found, version))
        if any(problems):
            raise SyncError(next(filter(None, problems)))
        if moved is None or moved > MOVED * self.tolerance:  # smaller movements add up until they can be told from rounding
            self._before = trainer, engine
        return found

    def _problem(self, found: dict[str, float | None], version: int) -> str | None:
        mean, most, moved, followed = found.values()
        if moved is not None and followed is not None and moved > MOVED * self.tolerance and followed < FOLLOWED * moved:
            return (
                f"vLLM still has older weights after step {version}: the trainer's log-probs of fixed texts have moved by {moved:.3g} nats "
                f"on average, vLLM's by {followed:.3g}. {WAYS_OUT}"
            )
        if not (mean is not None and mean <= self.tolerance):  # NaN is not
            return (
                f"vLLM does not have the policy's weights after step {version}: its log-probs of fixed texts differ from the trainer's by "
                f"{mean:.3g} nats on average ({most:.3g} at most), vllm.probe_tolerance is {self.tolerance:g}. Was rollout/probe_mean near "
                "this from the start? Then it is this model's rounding: raise vllm.probe_tolerance. If not, weights did not arrive: "
                f"{WAYS_OUT}"
            )
        return None

    def _trainer(self) -> Tensor:
        """The trainer's log-probs of the tokens that the engine scores, in its order, float64."""
        samples = [Sample(0, 0, text[:1], text[1:], [0.0] * (len(text) - 1), "", True) for text in self.sequences]
        rows: dict[int, Tensor] = {}
        for micro in micro_batches(
            samples,
            range(len(samples)),
            None,
            tokens_per_microbatch=NUM_TOKENS,
            pad_id=pad_id(self.policy),
            device=self.policy.device,
        ):
            logprobs = measure(self.policy, micro, temperature=1.0)["logprobs"]
            rows |= dict(zip(micro.rows, logprobs.double().cpu(), strict=True))
        return torch.cat([rows[row][: len(text) - 1] for row, text in enumerate(self.sequences)])
