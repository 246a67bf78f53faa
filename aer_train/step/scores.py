"""What a forward pass of the present policy says about samples: log-probs and entropies, and what a method reads in hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aer_kernels import KeptSet
from aer_train import dist
from aer_train.config.tree import MOST_TOKENS, TrainConfig
from aer_train.model import Policy
from aer_train.step.batching import Columns, MicroBatch, micro_batches
from aer_train.step.loss import measure, measure_statistic
from aer_train.step.objective import Floor, Statistic
from aer_train.step.padding import pad_id
from aer_train.step.tokens import Layout
from aer_train.types import Group, Sample

NAMES = ("logprobs", "entropy")
"""What is always found."""


@dataclass(frozen=True)
class Scores:
    """What this rank's micro-batches of some samples showed."""

    samples: Sequence[Sample]
    rows: list[int]
    """The samples that were scored, on all ranks."""
    packed: list[tuple[list[int], list[slice]]]
    """The samples of each of this rank's micro-batches, and where their response tokens are."""
    found: list[dict[str, Tensor]]
    """What `measure` found in each, (B, T), on the device."""

    def flat(self, layout: Layout) -> dict[str, np.ndarray]:
        """Return what was found, by name, of all ranks among the N loss tokens of the step, 0 where a sample was not scored; the device is
        read only now, so that it need not wait between micro-batches."""
        mine: list[tuple[int, dict[str, np.ndarray]]] = []
        for (rows, spans), found in zip(self.packed, self.found, strict=True):
            arrays = {name: values.cpu().numpy() for name, values in found.items()}
            mine += [(row, {n: x[b, span] for n, x in arrays.items()}) for b, (row, span) in enumerate(zip(rows, spans, strict=True))]
        everywhere = [pair for part in dist.all_gather(mine) for pair in part]
        flat = {name: np.zeros(layout.size, np.float32) for name in (everywhere[0][1] if everywhere else NAMES)}
        for row, arrays in everywhere:
            for name, values in arrays.items():
                flat[name][layout.slices[row]] = values
        return flat


def score(
    policy: Policy,
    samples: Sequence[Sample],
    rows: list[int],
    config: TrainConfig,
    floor: Floor | None = None,
    kept: KeptSet | None = None,
    moments: bool = False,
) -> Scores:
    """Score these samples, worked out by all ranks. The options are those of `measure`."""
    micros = pack(policy, samples, rows, None, config)
    temperature, memory = config.rollout.temperature, config.optim.loss_memory_mib
    options: dict[str, Any] = {"temperature": temperature, "memory_budget": None if memory is None else memory << 20}
    found = [measure(policy, micro, floor=floor, kept=kept, moments=moments, **options) for micro in micros]
    return Scores(samples, rows, [(micro.rows, micro.spans) for micro in micros], found)


def statistics(policy: Policy, samples: Sequence[Sample], rows: list[int], statistic: Statistic, config: TrainConfig) -> Tensor:
    """Return the statistic of each of all samples, (R,) float32, 0 where one is not among these rows; worked out by all ranks."""
    micros = pack(policy, samples, rows, None, config)
    mine = [pair for micro in micros for pair in zip(micro.rows, measure_statistic(policy, micro, statistic).tolist(), strict=True)]
    found = torch.zeros(len(samples))
    for part in dist.all_gather(mine):
        for row, value in part:
            found[row] = value
    return found


def prompt_logprobs(policy: Policy, groups: Sequence[Group], config: TrainConfig) -> Tensor:
    """Return the mean log-prob of the tokens of each prompt but the first, (P,) float32, nats; 0 for a prompt of one token.

    A prompt is scored once, as if it were a response to its own first token.
    """
    samples = [_prompt_as_response(group.samples[0]) for group in groups]
    rows = [row for row, sample in enumerate(samples) if sample.tokens]
    lengths = np.array([len(sample.tokens) for sample in samples])
    ends = lengths.cumsum()
    layout = Layout(rows, {row: slice(int(ends[row] - lengths[row]), int(ends[row])) for row in rows}, int(lengths.sum()))
    logprobs = score(policy, samples, rows, config).flat(layout)["logprobs"].astype(np.float64)
    return torch.tensor([logprobs[layout.slices[row]].mean() if row in layout.slices else 0.0 for row in range(len(samples))]).float()


def _prompt_as_response(sample: Sample) -> Sample:
    first, *rest = sample.prompt_tokens
    return replace(sample, prompt_tokens=[first], tokens=rest, logprobs=[0.0] * len(rest))


def pack(policy: Policy, samples: Sequence[Sample], rows: list[int], columns: Columns | None, config: TrainConfig) -> list[MicroBatch]:
    """Return this rank's micro-batches of these samples."""
    return micro_batches(
        samples,
        rows,
        columns,
        tokens_per_microbatch=config.optim.tokens_per_microbatch or MOST_TOKENS,
        pad_id=pad_id(policy),
        device=policy.device,
        rank=dist.rank(),
        world=dist.world(),
        shared=policy.shared,
    )
