"""The passes over the samples of a step: those that form gradients, and those that only measure.

A sample is live while it has a gradient (`Weighed.has_signal`). Only live samples are in training passes. The others, dead ones, add
exactly 0 to the gradient, so that leaving them out changes nothing; they stay in all denominators. What a dead sample is measured for:

* its entropy and log-probs under the policy that sampled. Where no earlier pass has found them, a pass without a graph does;
* its ratios at a later update. They need a pass of the present policy, without a graph. (At an on-policy update they are 1.)

optim.dead_samples = skip leaves these passes out, unless the method learns from the entropy of the sample. A dead sample's share of the
mean entropy is then what its recorded log-probs say: sum_t -log p_t, without bias. Its mismatch and its later ratios are not in the means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aer_kernels.methods import Method
from aer_kernels.methods.seam import learns
from aer_train import dist
from aer_train.config.tree import TrainConfig
from aer_train.model import Policy
from aer_train.step.batching import Columns, MicroBatch
from aer_train.step.loss import MicroLoss, policy_loss
from aer_train.step.objective import Objective, loss_floor, make_objective
from aer_train.step.scores import Scores, pack
from aer_train.step.tokens import Weighed
from aer_train.step.totals import Totals
from aer_train.step.weighing import statistic_of


class Passes:
    """All of a step, with what they measure in `totals`."""

    def __init__(self, policy: Policy, weighed: Weighed, config: TrainConfig, totals: Totals, method: Method | None) -> None:
        self.policy, self.config, self.totals = policy, config, totals
        self._learns = method is not None and learns(method)
        self._parts: dict[str, Any] = {"statistic": None if method is None else statistic_of(method), "floor": loss_floor(config, method)}
        self._old_logprobs: np.ndarray | None = None
        self._scored: frozenset[int] = frozenset()
        self._whole = make_objective(config, weighed.terms, [weighed.samples[row] for row in weighed.layout.rows])
        self.weigh(weighed)

    def weigh(self, weighed: Weighed) -> None:
        """Use what the method says of the tokens from now on."""
        terms, self.weighed, self._signal = weighed.terms, weighed, weighed.has_signal()
        self.columns = Columns(
            weighed.layout.slices,
            weighed.advantages(),
            weighed.column(terms.entropy_coef, 0.0),
            weights=None if terms.weight is None else weighed.column(terms.weight, 1.0),
            divergence_coef=None if terms.divergence_coef is None else weighed.column(terms.divergence_coef, 0.0),
            held=None if terms.held is None else weighed.column(terms.held, 1.0),
            reference=weighed.reference,
            statistic_coef=None if terms.statistic_coef is None else terms.statistic_coef.float().numpy(),
        )

    def live(self, rows: list[int]) -> list[int]:
        """Return which of these samples have a gradient."""
        return [row for row in rows if self._signal[row]]

    def counts(self, row: int) -> bool:
        """Whether a sample is in a pass at all: it is live or measured."""
        return self._signal[row] or self.config.optim.dead_samples == "measure" or (self._learns and self._is_learnt_from(row))

    def take(self, scores: Scores) -> None:
        """Take note of what a pass of the policy that sampled found."""
        if not scores.rows:
            return
        self._old_logprobs, self._scored = scores.flat(self.weighed.layout)["logprobs"], frozenset(scores.rows)
        for micro, found in zip(self._pack(scores.rows, self.columns), scores.found, strict=True):
            self.totals.add_sampling_policy(micro, found["logprobs"], found["entropy"], self._whole, found.get("kept_entropy"))

    @torch.no_grad()
    def look(self, rows: list[int], off_policy: bool) -> None:
        """Measure the dead ones of an update's samples, before its optimizer step."""
        dead = [row for row in rows if not self._signal[row]]
        if off_policy:
            passed = dead if self.config.optim.dead_samples == "measure" else []
        else:
            passed = [row for row in dead if row not in self._scored and self.counts(row)]
        if passed:
            for _ in self._run(passed, self._objective(rows), off_policy, self.columns, self.totals):
                pass
        if dist.is_main():  # what needs no pass is counted once
            self._add_recorded([row for row in dead if row not in self._scored and not self.counts(row)])
            if not off_policy:
                self.totals.add_unmoved(self._weight(sorted(set(dead) - set(passed))))

    def backward(self, rows: list[int], off_policy: bool, columns: Columns, totals: Totals) -> Tensor:
        """Accumulate the gradient of the update on these samples; returns this rank's share of its loss, float64."""
        total = torch.zeros((), dtype=torch.float64, device=self.policy.device)
        for output in self._run(self.live(rows), self._objective(rows), off_policy, columns, totals):
            output.loss.backward()
            total += output.loss.detach()
        return total

    def _run(self, rows: list[int], objective: Objective, off_policy: bool, columns: Columns, totals: Totals) -> Iterator[MicroLoss]:
        """Pass the samples through the policy, micro-batch by micro-batch, and add what that shows."""
        for micro in self._pack(rows, replace(columns, old_logprobs=self._old_logprobs if off_policy else None)):
            output = policy_loss(self.policy, micro, objective)
            if self._scored.isdisjoint(rows):
                totals.add_sampling_policy(micro, output.logprobs, output.entropy, self._whole)
            totals.add_update(micro, output.metrics, self._weight(micro.rows))
            yield output

    def _objective(self, rows: list[int]) -> Objective:
        """The objective of an update on these samples: dead ones count in its denominators."""
        return replace(make_objective(self.config, self.weighed.terms, [self.weighed.samples[row] for row in rows]), **self._parts)

    def _weight(self, rows: list[int]) -> int:
        """What samples weigh in means over an update: their tokens or, for GSPO, their number."""
        return len(rows) if self.config.objective.kind == "gspo" else sum(len(self.weighed.samples[row].tokens) for row in rows)

    def _is_learnt_from(self, row: int) -> bool:
        """Whether the method counts a sample's entropy, or where a bonus would move it."""
        place, held = self.weighed.layout.slices[row], self.columns.held
        return held is None or bool(held[place].any()) or bool(self.columns.entropy_coef[place].any())

    def _add_recorded(self, rows: list[int]) -> None:
        """Add the entropies of unmeasured samples as their recorded log-probs estimate them."""
        for row in rows:
            place, sample = self.weighed.layout.slices[row], self.weighed.samples[row]
            held = np.ones(len(sample.tokens)) if self.columns.held is None else self.columns.held[place].astype(np.float64)
            self.totals.add_recorded(-np.asarray(sample.logprobs, np.float64), held)

    def _pack(self, rows: list[int], columns: Columns) -> list[MicroBatch]:
        return pack(self.policy, self.weighed.samples, rows, columns, self.config)
