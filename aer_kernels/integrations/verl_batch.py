"""What verl's TransferQueue holds of a batch, as a method sees it, and a method's numbers back in the queue's order.

verl names a row `uid_session_index`. The rows of one uid answer one prompt. A session is one sample of a prompt; an agent can split it into
several rows, which are one response here: their tokens count together, and the score of the last row counts once. Rows that verl adds to
fill a batch (tag `is_padding`) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aer_kernels.integrations.control import flat_batch, group_accuracy, unsolved_share
from aer_kernels.methods import Measured, TokenBatch

FIELDS = ("response_mask", "rm_scores", "old_log_probs", "advantages", "entropy", "extra_fields")
"""Fields of the queue. entropy is there unless `bypass_mode` is on, extra_fields where the reward function returns more than a score."""


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch are real, by prompt, session and place in the session."""

    order: list[int]
    """Real rows in that order."""
    response: list[int]
    """Number of the response of each of them, from 0."""
    prompt: list[int]
    """Number of the prompt of each response, from 0."""
    last: list[int]
    """Last row of each response."""


def arrange(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> Rows:
    """Return the rows with these keys and tags.

    Raises:
        ValueError: a key does not have the form `uid_session_index`.
    """
    parts = []
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        fields = key.rsplit("_", 2)
        if len(fields) != 3 or not fields[2].isdigit():
            raise ValueError(f"keys must have the form uid_session_index, got {key!r}")
        if not tag.get("is_padding", False):
            parts.append((fields[0], fields[1], int(fields[2]), row))
    parts.sort()
    sessions = list(dict.fromkeys(part[:2] for part in parts))
    prompts = list(dict.fromkeys(uid for uid, _ in sessions))
    number, place = ({name: i for i, name in enumerate(names)} for names in (sessions, prompts))
    last = {part[:2]: part[3] for part in parts}
    return Rows(
        [part[3] for part in parts], [number[part[:2]] for part in parts], [place[uid] for uid, _ in sessions], [last[s] for s in sessions]
    )


def correctness(data: Any, rows: Rows, correct: str) -> Tensor:
    """Return how right each response is, (R,) fp32; NaN where the reward function gave None.

    Args:
        data: the queue's TensorDict.
        correct: "score" (what the reward function returned), "positive" (1 where that is > 0) or a field that it returned beside.
    Raises:
        ValueError: there is no such field.
    """
    if correct in ("score", "positive"):
        score = torch.stack([data["rm_scores"][row].sum() for row in rows.last]) if rows.last else torch.zeros(0)
        return score.float() if correct == "score" else (score > 0).float()
    if correct in data:
        values = _listed(data[correct])
        found = [values[row] for row in rows.last]
    else:
        extra = _listed(data["extra_fields"]) if "extra_fields" in data else []
        infos = [(extra[row] or {}).get("reward_extra_info") or {} for row in rows.last] if extra else [{}]
        known = sorted({name for info in infos for name in info} - {"score"})
        if not all(correct in info for info in infos):
            raise ValueError(f"aer.correct must be one of {', '.join(['score', 'positive', *known])}, got {correct!r}")
        found = [info[correct] for info in infos]
    return torch.tensor([torch.nan if value is None else float(value) for value in found])


def _listed(values: Any) -> list[Any]:
    """A field of the queue that is no tensor: it comes as an array or as a list, whatever the backend."""
    return list(values.tolist() if hasattr(values, "tolist") else values)


@dataclass(frozen=True)
class QueueBatch:
    """The loss tokens of a batch, and where they are in the queue's flat tensors."""

    tokens: TokenBatch
    index: Tensor
    """(N,) int64: place of each token among the response tokens of all rows, one row after another."""
    offsets: Tensor
    """(rows + 1,) int64: where each row begins there."""

    def nested(self, values: Tensor) -> Tensor:
        """Return a number of each token, (N,), as the queue's jagged tensor, fp32, and 0 elsewhere."""
        flat = torch.zeros(int(self.offsets[-1])).index_copy_(0, self.index, values.float())
        return torch.nested.as_nested_tensor(list(flat.split(self.offsets.diff().tolist())), layout=torch.jagged)

    def measured(self, held: Tensor | None, slopes: tuple[float, float] | None) -> Measured:
        """Return what the batch shows: its entropy under the policy before the update, or -logprob where verl made no pass, its estimate.

        Args:
            held: (N,) >= 0; None: 1.
            slopes: as in `Measured`.
        """
        tokens = self.tokens
        entropy = -tokens.logprobs if tokens.entropy is None else tokens.entropy
        kept = torch.ones_like(entropy, dtype=torch.float64) if held is None else held.double()
        count = tokens.per_response(torch.ones_like(kept))
        responses = tokens.per_response(kept) / count.clamp(min=1)
        return Measured(
            float((kept * entropy.double()).sum()), float(kept.sum()), float(responses.sum()), unsolved_share(tokens.accuracy), slopes
        )


def queue_batch(data: Any, keys: Sequence[str], tags: Sequence[Mapping[str, Any]], correct: str, seed: int) -> QueueBatch:
    """Return the loss tokens of all rows.

    Args:
        data: the queue's TensorDict with FIELDS, jagged tensors of the response tokens.
        keys, tags: of the rows.
        correct: as for `correctness`.
        seed: as in `TokenBatch`.
    Raises:
        ValueError: an accuracy cannot be found or lies outside [0, 1], or a key has another form.
    """
    rows = arrange(keys, tags)
    right, prompt = correctness(data, rows, correct), torch.tensor(rows.prompt, dtype=torch.int64)
    accuracy = group_accuracy(right, prompt, f"aer.correct={correct}", "name positive, or a field that the reward function returns")
    mask, offsets = data["response_mask"].values() > 0, data["response_mask"].offsets()
    order = torch.tensor(rows.order, dtype=torch.int64)
    length = offsets.diff()[order]
    number = torch.tensor(rows.response, dtype=torch.int64).repeat_interleave(length)
    index = _ranges(offsets[:-1][order], length)
    position = _ranges(torch.zeros_like(order), torch.bincount(number, minlength=len(rows.last)))
    counted = mask[index] & ~accuracy[prompt][number].isnan()
    index = index[counted]
    tokens = flat_batch(
        number[counted],
        position[counted],
        prompt,
        accuracy,
        logprobs=data["old_log_probs"].values()[index],
        advantages=data["advantages"].values()[index],
        entropy=data["entropy"].values()[index] if "entropy" in data else None,
        rewards=None if bool(right.isnan().any()) else right,
        seed=seed,
    )
    return QueueBatch(tokens, index, offsets)


def _ranges(start: Tensor, length: Tensor) -> Tensor:
    """start[0], start[0] + 1, ... of length[0] numbers, then the same of start[1]."""
    before = length.cumsum(0) - length
    return torch.arange(int(length.sum())) + (start[: len(length)] - before).repeat_interleave(length)
