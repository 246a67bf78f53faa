"""Collection with a rollout and a verifier that the test drives: what is drawn when, and which groups are trained."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import AER
from aer_train.clock import Clock
from aer_train.collect import Collected, Wanted, collect, sample_groups
from aer_train.config.tree import OptimConfig, RolloutConfig, TrainConfig
from aer_train.monitor.metrics import collected_metrics
from aer_train.types import Group, Prompt, Sample, Sampling, Verdict

PROMPTS = [Prompt(str(i), f"p{i}", "") for i in range(10)]
CONFIG = TrainConfig(rollout=RolloutConfig(group_size=2, refill="zero_variance"), optim=OptimConfig(prompts_per_step=4))


class Backend:
    """Rollout and verifier in one: a prompt of `solved` gets rewards 1 and 0, one of `easy` 1 and 1, any other 0 and 0.

    Samples come last one first.
    """

    def __init__(self, solved: set[str], easy: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.solved, self.easy = solved, easy
        self.events: list[str] = []
        self.draws: list[tuple[tuple[int | str, ...], list[str]]] = []

    def stream(
        self, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        self.draws.append((seed, [prompt.id for prompt in prompts]))
        for place in reversed(range(len(prompts))):
            self.events.append(f"generate {place}")
            yield [Sample(place, i, [1], [2], [0.0], f"{prompts[place].id} {i}", True) for i in reversed(range(group_size))]

    def submit(self, pairs: list[tuple[str, str]]) -> Any:
        self.events.append(f"submit {pairs[0][0]}")
        known = [(text, *text.split()) for text, *_ in pairs]
        rewards = [float(name in self.easy or (name in self.solved and index == "0")) for _, name, index in known]
        verdicts = [Verdict("correct" if reward else "wrong", reward, text, 0.0) for (text, *_), reward in zip(known, rewards, strict=True)]

        class Pending:
            def result(this) -> list[Verdict]:
                self.events.append("result")
                return verdicts

        return Pending()


def run(backend: Any, position: int = 0, step: int = 1, **rollout: Any) -> Collected:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, **rollout))
    method = AER(EntropyControlConfig(kind="fixed", coef=0.1))
    return collect(backend, backend, PROMPTS, position, step, method, config, Clock())


def order() -> list[str]:
    """The ids of the first twenty prompts that training takes."""
    backend = Backend(set())
    for position in range(0, 20, 4):
        run(backend, position)
    return [name for _, names in backend.draws for name in names]


def test_verification_begins_while_others_are_generated() -> None:
    backend = Backend(set())
    groups = sample_groups(backend, backend, Wanted(PROMPTS[:3], 2, (0,)), Clock())  # type: ignore[arg-type]
    begun = ["generate 2", "submit 2 1", "generate 1", "submit 1 1", "generate 0", "submit 0 1"]
    assert backend.events == [*begun, "result", "result", "result"]
    assert [group.prompt for group in groups] == PROMPTS[:3]
    assert [[sample.text for sample in group.samples] for group in groups] == [["0 0", "0 1"], ["1 0", "1 1"], ["2 0", "2 1"]]
    assert all(verdict.extracted == sample.text for group in groups for sample, verdict in zip(group.samples, group.verdicts, strict=True))


def test_fresh_groups_with_a_signal_take_the_places_of_those_without() -> None:
    ids = order()
    backend = Backend({ids[1], ids[5], ids[8]})  # of the first four the second, then of three the second, then of two the second
    found = run(backend, refill_rounds=3)
    assert backend.draws == [
        ((0, "train", 1), ids[:4]),
        ((0, "train", 1, "refill", 1), ids[4:7]),
        ((0, "train", 1, "refill", 2), ids[7:9]),
        ((0, "train", 1, "refill", 3), ids[9:10]),
    ]
    assert [group.prompt.id for group in found.groups] == [ids[5], ids[1], ids[8], ids[3]], "what is left after the last round stays"
    assert found.position == 10
    row = collected_metrics(found, 1e-6)
    assert row["reward/mean"] == 1 / 8 and row["reward/zero_variance_frac"] == 0.75, "of the step's own prompts: refill cannot bias it"
    assert (row["refill/rounds"], row["refill/groups_replaced"], row["refill/samples_wasted"], row["tokens/generated"]) == (3, 2, 12, 20)


def test_rewards_and_entropy_by_tier() -> None:
    """-logprob of a whole response, averaged over the samples of a tier: 3 and 1 nats, and 0.5 twice."""
    groups = [
        Group(Prompt("1", "p", "", "hard"), [_said([-2.0, -1.0]), _said([-1.0])], [Verdict("wrong", 0.0, "", 0.0)] * 2),
        Group(Prompt("2", "p", "", "easy"), [_said([-0.5])] * 2, [Verdict("correct", 1.0, "", 0.0), Verdict("wrong", 0.0, "", 0.0)]),
    ]
    row = collected_metrics(Collected(groups, [groups], 0, 2), 1e-6)
    assert (row["entropy/tier/hard"], row["entropy/tier/easy"]) == (2.0, 0.5)
    assert (row["reward/tier/hard"], row["reward/tier/easy"]) == (0.0, 0.5)
    alone = collected_metrics(Collected(groups[:1], [groups[:1]], 0, 1), 1e-6)
    assert not [name for name in alone if "/tier/" in name], "one tier is no breakdown"


def _said(logprobs: list[float]) -> Sample:
    return Sample(0, 0, [1], [2] * len(logprobs), logprobs, "", True)


def test_more_fresh_groups_than_places_and_an_early_end() -> None:
    ids = order()
    found = run(backend := Backend(set(ids) - {ids[0]}), refill_rounds=5)
    assert len(backend.draws) == 2 and [group.prompt.id for group in found.groups] == [ids[4], *ids[1:4]]
    assert run(Backend(set(ids)), refill_rounds=5).position == 4


def test_all_wrong_groups_stay_for_their_entropy_pressure_and_are_not_imported() -> None:
    ids = order()
    found = run(Backend({ids[1], ids[5]}, easy={ids[0], ids[3]}), refill="no_signal", refill_rounds=1)
    assert [group.prompt.id for group in found.groups] == [ids[5], ids[1], ids[2], ids[3]], "of the fresh ones, 4 is all wrong"
    assert found.left == 1


@pytest.mark.parametrize(("refill", "rounds"), [("zero_variance", 0), ("no_signal", 3)])
def test_nothing_is_replaced(refill: str, rounds: int) -> None:
    """Off; and on, where all-wrong groups have AER's entropy pressure."""
    found = run(backend := Backend(set()), refill=refill, refill_rounds=rounds)
    assert len(backend.draws) == 1 and found.groups == found.rounds[0] and found.position == 4
    assert collected_metrics(found, 1e-6)["refill/samples_wasted"] == 0
