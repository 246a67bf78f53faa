"""AER in the Tinker cookbook's training loop, where the loss is on a server that gives log-probs alone.

    advantages_P = compute_advantages(trajectory_groups_P)
    data_D, metadata_D = assemble_training_data(trajectory_groups_P, advantages_P)
    metrics |= add_entropy_advantages(aer, data_D, metadata_D, accuracy_P)            # aer: SampledEntropy, made once

That is in `prepare_minibatch` of `tinker_cookbook.rl.train`, where the cookbook's own KL penalty changes the advantages in the same way.
It imports neither tinker nor the cookbook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from aer_kernels.integrations.sampled import SampledEntropy
from aer_kernels.methods.seam import reported


def add_entropy_advantages(
    aer: SampledEntropy, data: Sequence[Any], metadata: Sequence[Mapping[str, int]], accuracy: Sequence[float]
) -> dict[str, float]:
    """Add the entropy bonus to the advantages of a batch, in place; returns numbers to log, with the coefficient that was applied.

    Args:
        aer: the controller; its state belongs into the run's checkpoints.
        data: D datums with logprobs, advantages and mask in `loss_fn_inputs`, as the cookbook assembles them. Their loss sums over tokens.
        metadata: of each datum, with group_idx and traj_idx, groups ascending. Datums of one trajectory are one response.
        accuracy: of each group, in [0, 1]: mean of what says that a trajectory is right. NaN leaves a group out.
    Raises:
        ValueError: a group has no accuracy, or one outside [0, 1]; lengths differ; groups do not ascend.
    """
    owners = [(entry["group_idx"], entry["traj_idx"]) for entry in metadata]
    if len(data) != len(owners):
        raise ValueError(f"metadata must have an entry for each of {len(data)} datums, got {len(owners)}")
    if owners != sorted(owners) or (owners and owners[-1][0] >= len(accuracy)):
        raise ValueError(f"metadata must name groups and trajectories in ascending order, below {len(accuracy)}, got {owners}")
    if not data:
        return {}
    places = {owner: [place for place, other in enumerate(owners) if other == owner] for owner in dict.fromkeys(owners)}
    logprobs, mask = (
        pad_sequence([torch.cat([_column(data[place], name) for place in part]) for part in places.values()], batch_first=True)
        for name in ("logprobs", "mask")
    )
    prompt = torch.tensor([group for group, _ in places])
    before = aer.status()
    added = aer.advantages(logprobs, mask, prompt, torch.tensor(accuracy, dtype=torch.float32))
    for row, part in zip(added, places.values(), strict=True):
        lengths = [len(_column(data[place], "logprobs")) for place in part]
        for place, values in zip(part, row[: sum(lengths)].split(lengths), strict=True):
            inputs = data[place].loss_fn_inputs
            inputs["advantages"] = type(inputs["advantages"]).from_torch(_column(data[place], "advantages") + values)
    return {f"aer/{name}": float(value) for name, value in reported(before, aer.status()).items() if value is not None}


def _column(datum: Any, name: str) -> torch.Tensor:
    values: torch.Tensor = datum.loss_fn_inputs[name].to_torch().float()
    return values
