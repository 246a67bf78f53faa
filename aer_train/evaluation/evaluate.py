"""Evaluation: from a rollout, a verifier and prompts to judged responses, and from those to numbers with intervals.

Every number is a function of the tallies, one for each problem, which are part of the result. The samples are a function of (seed, suite,
problem, sample): neither batches nor what was evaluated before can change them, and nothing of a training run is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np

from aer_train.clock import Clock
from aer_train.collect import Wanted, sample_groups
from aer_train.config.tree import TrainConfig
from aer_train.data.prompts import Message, PromptSet
from aer_train.evaluation.estimates import CURVES, Estimate, interval, majority_at_k, pass_at_k
from aer_train.rollout.protocol import Rollout
from aer_train.seeds import generator
from aer_train.types import Prompt, Row, Sample, Sampling, Verdict
from aer_train.verify.alternatives import stored, unreadable
from aer_train.verify.equality import answer_key
from aer_train.verify.extract import gold_answer
from aer_train.verify.rewards import Rewards
from aer_train.verify.sources import source_digests

CHUNK = 1024
"""Responses that are sampled, judged and kept together: what an interrupted evaluation loses at most."""


def evaluate(rollout: Rollout, verifier: Rewards, sets: Sequence[PromptSet], config: TrainConfig) -> tuple[Row, list[Row]]:
    """Evaluate the present weights, and return the result and a row for each response.

    Args:
        rollout: samples the responses.
        sets: what to evaluate on; see `load_eval_sets`.
        config: eval (samples, temperature, top_p), run.seed and the settings that the result names.
    """
    rows = [row for prompts in sets for _, part in judged_chunks(rollout, verifier, prompts, config) for row in part]
    return provenance(sets, config) | summarize(rows, config.eval.samples, config.run.seed), rows


def judged_chunks(
    rollout: Rollout,
    verifier: Rewards,
    prompts: PromptSet,
    config: TrainConfig,
    skip: Container[int] = (),
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[int, list[Row]]]:
    """Sample and judge the prompts chunk by chunk; yield the number of a chunk and a row for each response, by prompt and sample.

    Args:
        skip: numbers of chunks to leave out.
        progress: is told how many more responses are there.
    """
    size, drawn_from = max(1, CHUNK // config.eval.samples), Sampling(config.eval.temperature, config.eval.top_p)
    seed: tuple[int | str, ...] = (config.run.seed, "eval", prompts.name) if prompts.name else (config.run.seed, "eval")
    for chunk, first in enumerate(range(0, len(prompts.prompts), size)):
        if chunk not in skip:
            wanted = Wanted(prompts.prompts[first : first + size], config.eval.samples, seed, drawn_from, first)
            groups = sample_groups(rollout, verifier, wanted, Clock(), progress)
            yield chunk, [_row(g.prompt, s, v) for g in groups for s, v in zip(g.samples, g.verdicts, strict=True)]


def provenance(sets: Sequence[PromptSet], config: TrainConfig) -> Row:
    """Return what the numbers of an evaluation depend on, the weights aside."""
    digests = source_digests(config.reward)
    return {
        "samples": config.eval.samples,
        "temperature": config.eval.temperature,
        "top_p": config.eval.top_p,
        "max_new_tokens": config.rollout.max_new_tokens,
        **({"stop": list(config.rollout.stop)} if config.rollout.stop else {}),
        "seed": config.run.seed,
        "reward": " + ".join([f"{config.reward.kind}{' (lenient)' if config.reward.lenient else ''}", *config.reward.functions]),
        **({"functions": digests} if digests else {}),
        "backend": config.rollout.backend,
        "data": [prompts.origin for prompts in sets],
    }


def tell_unreadable(verifier: Rewards, sets: Sequence[PromptSet], message: Message) -> None:
    """Say which gold answers the verifier cannot read: no response to them can be right, and they stay in the denominators."""
    for prompts in sets:
        bad = unreadable(verifier, prompts.prompts)
        if bad:
            example = prompts.prompts[bad[0]]
            message(
                f"{prompts.origin['source']}: {len(bad)} of {len(prompts.prompts)} gold answers cannot be read and count as wrong "
                f"(problem {example.id}: {example.answer[:100]!r})"
            )


def summarize(rows: Sequence[Row], samples: int, seed: int) -> Row:
    """Return the numbers of an evaluation.

    Args:
        rows: of all prompts, `samples` for each, next to each other.
        samples: n responses to each prompt.
        seed: of the bootstrap.
    Returns:
        {"tiers": {tier: numbers}, "mean": numbers, "problems": tallies}. The tiers are those of the prompts (a suite is one) and, of
        several, "all". "mean" has the mean of the tiers, each counting the same, where there are several. Numbers are accuracy (avg@n),
        pass@k and, where responses have answers that can be compared, majority@k, each with `_interval` (95 %); a tier also has problems,
        truncated_frac, response_tokens, reward and outcomes.
    """
    tallies = [tally(rows[start : start + samples]) for start in range(0, len(rows), samples)]
    values = measures(tallies, samples)
    places = tier_places(tallies)
    estimates = {tier: Estimate.of(values[members], generator(seed, "bootstrap", tier)) for tier, members in places.items()}
    facts = {tier: _facts([tallies[i] for i in members], samples) for tier, members in places.items()}
    result: Row = {"tiers": {tier: facts[tier] | named(estimate, samples) for tier, estimate in estimates.items()}}
    if len(places) > 1:
        result["mean"] = named(Estimate.mean([estimate for tier, estimate in estimates.items() if tier != "all"]), samples)
    return result | {"problems": tallies}


def tier_places(tallies: Sequence[Row]) -> dict[str, list[int]]:
    """Return the places of each tier's problems and, of several tiers, those of "all"."""
    places: dict[str, list[int]] = {}
    for place, found in enumerate(tallies):
        places.setdefault(found["tier"], []).append(place)
    return places | {"all": list(range(len(tallies)))} if len(places) > 1 else places


def tally(rows: Sequence[Row]) -> Row:
    """Return what the responses to one problem came to.

    `votes` has [responses, correct ones] of each different answer; None where the verifier extracts none (custom rewards).
    """
    votes: dict[str, list[int]] = {}
    for row in rows:
        if row["extracted"] is not None:
            vote = votes.setdefault(answer_key(row["extracted"]), [0, 0])
            vote[0] += 1
            vote[1] += row["outcome"] == "correct"
    counted = bool(votes) or all(row["outcome"] != "correct" for row in rows)
    return {
        "id": rows[0]["problem_id"],
        "tier": rows[0]["tier"],
        "answer": gold_answer(rows[0]["answer"])[:100],
        "correct": sum(row["outcome"] == "correct" for row in rows),
        "truncated": sum(not row["finished"] for row in rows),
        "tokens": sum(row["num_tokens"] for row in rows),
        "reward": sum(row["reward"] for row in rows),
        "outcomes": dict(sorted(Counter(row["outcome"] for row in rows).items())),
        "votes": sorted(votes.values(), reverse=True) if counted else None,
    }


def measures(tallies: Sequence[Row], samples: int) -> np.ndarray:
    """Return (P, 1 + n) or, where every problem has votes, (P, 1 + 2n): accuracy, pass@1 .. pass@n, majority@1 .. majority@n."""
    correct = [found["correct"] for found in tallies]
    columns = [np.array(correct)[:, None] / samples, pass_at_k(samples, correct)]
    if all(found["votes"] is not None for found in tallies):
        columns.append(np.stack([majority_at_k(samples, [tuple(vote) for vote in found["votes"]]) for found in tallies]))
    return np.hstack(columns)


def named(estimate: Estimate, samples: int) -> Row:
    """Return estimates of the columns of `measures` by name."""
    value, low, high = (array.tolist() for array in (estimate.value, *interval(estimate.resampled)))
    numbers: Row = {"accuracy": value[0], "accuracy_interval": [low[0], high[0]]}
    for curve, start in zip(CURVES, range(1, len(value), samples), strict=False):
        numbers[curve] = {str(k): value[start + k - 1] for k in range(1, samples + 1)}
        numbers[f"{curve}_interval"] = {str(k): [low[start + k - 1], high[start + k - 1]] for k in range(1, samples + 1)}
    return numbers


def _facts(tallies: Sequence[Row], samples: int) -> Row:
    responses = len(tallies) * samples
    outcomes: Counter[str] = Counter()
    for found in tallies:
        outcomes.update(found["outcomes"])
    return {
        "problems": len(tallies),
        "truncated_frac": sum(found["truncated"] for found in tallies) / responses,
        "response_tokens": sum(found["tokens"] for found in tallies) / responses,
        "reward": sum(found["reward"] for found in tallies) / responses,
        "outcomes": dict(sorted(outcomes.items())),
    }


def _row(prompt: Prompt, sample: Sample, verdict: Verdict) -> Row:
    return {
        "tier": prompt.tier,
        "problem_id": prompt.id,
        "sample": sample.index,
        "prompt": prompt.text,
        "response": sample.text,
        "answer": prompt.answer,
        "other_answers": stored(prompt),
        "extracted": verdict.extracted,
        "outcome": verdict.outcome,
        "reward": verdict.reward,
        "num_tokens": len(sample.tokens),
        "finished": sample.finished,
    }
