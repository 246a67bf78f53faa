"""AER and other methods inside verl, without Ray: batches, and the trainer's functions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

if importlib.util.find_spec("verl") is None:  # not importorskip: verl must find its CPU platform when it is imported
    pytest.skip("verl is not installed", allow_module_level=True)

from tests.integrations.verl_setup import composed, extra, jagged, queue_rows

# isort: split
from tensordict import TensorDict

from aer_kernels.integrations import verl_trainer
from aer_kernels.integrations.verl_batch import arrange, queue_batch
from aer_kernels.integrations.verl_loss import COEF, DIVERGENCE, SCALARS, SLOPES, aer_ppo_loss
from aer_kernels.integrations.verl_options import prepare
from aer_kernels.integrations.verl_trainer import STATE, AERTrainerMixin
from aer_kernels.methods import PositiveAdvantageConfig, Stateless, TokenTerms, method_class

pytestmark = pytest.mark.verl

# the batch

KEYS = ["b_0_0", "a_1_1", "a_0_0", "pad_0_0", "a_1_0", "b_1_0", "c_0_0", "a_10_0"]
TAGS = [{"is_padding": key.startswith("pad")} for key in KEYS]


def batch(**changes: Any) -> TensorDict:
    """Rows of KEYS: prompt a has three sessions of which the second is two rows, b two and c one."""
    data = queue_rows(3, len(KEYS))
    for name, value in changes.items():
        data[name] = value
    return data


def test_rows_are_sessions() -> None:
    rows = arrange(KEYS, TAGS)
    assert [KEYS[row] for row in rows.order] == ["a_0_0", "a_1_0", "a_1_1", "a_10_0", "b_0_0", "b_1_0", "c_0_0"]
    assert rows.response == [0, 1, 1, 2, 3, 4, 5] and rows.prompt == [0, 0, 0, 1, 1, 2]
    assert [KEYS[row] for row in rows.last] == ["a_0_0", "a_1_1", "a_10_0", "b_0_0", "b_1_0", "c_0_0"]
    with pytest.raises(ValueError, match="keys must have the form uid_session_index, got 'a_0'"):
        arrange(["a_0"], [{}])


def test_a_batch_has_the_loss_tokens() -> None:
    """By hand: every loss token of the real rows, sessions as responses, and numbers go back to where they were."""
    data = batch()
    found = queue_batch(data, KEYS, TAGS, "score", seed=5)
    tokens, rows = found.tokens, arrange(KEYS, TAGS)
    expected, place, before = [], {}, dict.fromkeys(rows.response, 0)
    for row, response in zip(rows.order, rows.response, strict=True):
        mask = data["response_mask"][row]
        for column in mask.nonzero().flatten().tolist():
            place[row, column] = len(expected)
            expected.append(
                (response, before[response] + column, *(float(data[n][row][column]) for n in ("old_log_probs", "advantages", "entropy")))
            )
        before[response] += len(mask)
    columns = (tokens.response, tokens.position, tokens.logprobs, tokens.advantages, tokens.entropy)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected and tokens.seed == 5
    score = [float(data["rm_scores"][row].sum()) for row in rows.last]
    assert (
        tokens.accuracy.tolist() == pytest.approx([sum(score[:3]) / 3, sum(score[3:5]) / 2, score[5]]) and tokens.rewards.tolist() == score
    )
    back = found.nested(torch.arange(len(expected)) + 1.0)
    for row in range(len(KEYS)):
        assert back[row].tolist() == [place.get((row, column), -1) + 1 for column in range(len(back[row]))]


def test_what_a_batch_shows() -> None:
    found = queue_batch(batch(), KEYS, TAGS, "score", 0)
    held = torch.linspace(0, 2, len(found.tokens.logprobs))
    measured = found.measured(held, (1.0, 2.0))
    assert measured.entropy == pytest.approx(float((held * found.tokens.entropy).sum())) and measured.tokens == pytest.approx(
        float(held.sum())
    )
    means = [float(held[found.tokens.response == response].mean()) for response in found.tokens.response.unique()]
    assert measured.responses == pytest.approx(sum(means)) and measured.slopes == (1.0, 2.0)
    data = batch()
    del data["entropy"]  # verl's bypass_mode makes no pass
    plain = queue_batch(data, KEYS, TAGS, "score", 0).measured(None, None)
    assert plain.entropy == pytest.approx(float(-found.tokens.logprobs.double().sum())) and plain.tokens == len(found.tokens.logprobs)


def test_accuracy_is_what_is_named() -> None:
    infos = [{"score": 0.5, "acc": bool(i % 2), "other": None if i in (0, 5) else 0.25} for i in range(len(KEYS))]
    data = batch(extra_fields=extra(infos), rm_scores=jagged([torch.tensor([0.0, 1.0 - 2.0 * (i % 2)]) for i in range(len(KEYS))]))
    last = arrange(KEYS, TAGS).last
    assert queue_batch(data, KEYS, TAGS, "acc", 0).tokens.rewards.tolist() == [float(row % 2) for row in last]
    assert queue_batch(data, KEYS, TAGS, "positive", 0).tokens.rewards.tolist() == [float(row % 2 == 0) for row in last]
    unscored = queue_batch(data, KEYS, TAGS, "other", 0).tokens  # nothing of b was scored
    assert unscored.accuracy.tolist() == [0.25, 0.25] and unscored.rewards is None
    assert set(unscored.response.tolist()) <= {0, 1, 2, 5} and unscored.prompt[5] == 1
    with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got -1 from aer.correct=score: name positive, or a field"):
        queue_batch(data, KEYS, TAGS, "score", 0)
    with pytest.raises(ValueError, match=r"aer.correct must be one of score, positive, acc, other, got 'accuracy'"):
        queue_batch(data, KEYS, TAGS, "accuracy", 0)


# the trainer's functions


class Recorded(Stateless):
    """The same terms for every token; it keeps what it is told."""

    terms_given: ClassVar[dict[str, float]] = {}

    def __init__(self, config: Any) -> None:
        self.seen = list[Any]()

    def terms(self, tokens: Any) -> TokenTerms:
        if len(tokens.logprobs):  # not when it is asked what it moves
            self.seen.append(tokens)
        return TokenTerms(**{name: torch.full_like(tokens.advantages, value) for name, value in self.terms_given.items()}, clip_low=0.1)

    def update(self, measured: Any) -> None:
        self.seen.append(measured)


class Queue:
    """The two functions of the queue that the trainer calls."""

    def __init__(self) -> None:
        self.data = batch()

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return self.data.select(*[name for name in select_fields if name in self.data])

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> Any:
        self.data.update(fields)
        return Meta()


class Meta:
    keys, tags, partition_id = KEYS, TAGS, "train"

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}


class Parent:
    """What the mixin calls of verl's trainer."""

    def __init__(self, config: Any) -> None:
        self.config, self.global_steps, self.total_training_steps = config, 1, 6
        self.local_trigger_step, self.calls, self.resumed = 0, list[Any](), 0
        self.actor_rollout_wg = self

    def set_loss_fn(self, function: Any) -> None:
        self.calls.append(function)

    def _setup(self) -> None:
        self._load_checkpoint()

    def _compute_advantage(self, meta: Meta, metrics: dict[str, Any]) -> Meta:
        return meta

    def _update_actor(self, meta: Meta, metrics: dict[str, Any]) -> Meta:
        self.calls.append(dict(meta.extra_info))
        metrics.update({f"actor/{name}": 0.5 for name in SLOPES})
        return meta

    def _save_checkpoint(self) -> None:
        self.calls.append("saved")

    def _load_checkpoint(self) -> None:
        self.global_steps = self.resumed


class Trainer(AERTrainerMixin, Parent):
    pass


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(verl_trainer, "tq", made)
    return made


def step(trainer: Trainer) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    trainer._update_actor(trainer._compute_advantage(Meta(), metrics), metrics)
    return metrics


def test_a_step_of_the_trainer(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and shifts in the advantages, coefficients in fields of their own, scalars for the workers; then the method learns."""
    monkeypatch.setitem(verl_options_methods(), "positive_advantage", Recorded)
    monkeypatch.setattr(Recorded, "Config", PositiveAdvantageConfig, raising=False)
    monkeypatch.setattr(Recorded, "terms_given", {"weight": 0.5, "shift": 0.25, "entropy_coef": 0.1, "divergence_coef": 0.2, "held": 2.0})
    trainer = Trainer(composed("+aer.method=positive_advantage"))
    before = queue.data["advantages"].values().clone()
    metrics = step(trainer)
    tokens, measured = trainer.method.seen  # type: ignore[attr-defined]
    found = queue_batch(batch(), KEYS, TAGS, "score", 0)
    moved = before.clone()
    moved[found.index] = 0.5 * (found.tokens.advantages + 0.25)
    expected = torch.zeros_like(before).index_fill_(0, found.index, 1.0)
    after = queue.data["advantages"].values()
    torch.testing.assert_close(after, moved * expected)
    torch.testing.assert_close(queue.data[COEF].values(), 0.1 * expected)
    torch.testing.assert_close(queue.data[DIVERGENCE].values(), 0.2 * expected)
    assert trainer.calls == [{SCALARS: {"entropy_scale": 1.0, "clip_ratio_low": 0.1}}]
    assert measured.tokens == 2 * len(tokens.logprobs) and measured.slopes == (0.5, 0.5)
    assert not any("slope" in name for name in metrics) and metrics["aer/unsolved_frac"] == measured.unsolved


def verl_options_methods() -> dict[str, Any]:
    from aer_kernels.methods import METHODS

    return METHODS


def test_off_and_warmup_leave_verl_alone(queue: Queue) -> None:
    """Neither the queue nor the workers see anything of ours."""
    before = set(queue.data.keys())
    for overrides in (["+aer.kind=off"], ["+aer.kind=fixed", "+aer.coef=0.1", "trainer.critic_warmup=5"]):
        trainer = Trainer(composed(*overrides))
        trainer._compute_advantage(Meta(), {})
        assert set(queue.data.keys()) == before
    trainer = Trainer(composed("+aer.kind=off"))
    trainer._setup()
    assert step(trainer) == {f"actor/{name}": 0.5 for name in SLOPES} and trainer.calls == [{}]
    trainer = Trainer(composed("+aer.kind=fixed"))
    trainer._setup()
    assert trainer.calls[0].func is aer_ppo_loss


def test_the_controller_is_resumed(queue: Queue, tmp_path: Path) -> None:
    """3 + 3 steps are 6: by its own checkpoints, and by a path; another's checkpoint is refused."""
    options = ["+aer.target=9.0", "+aer.tau_end=0.5", f"trainer.default_local_dir={tmp_path}"]
    whole, first = (Trainer(composed(*options)) for _ in range(2))
    for trainer, steps in ((whole, 6), (first, 3)):
        for number in range(steps):
            trainer.global_steps = number + 1
            coef = step(trainer)["aer/coef"]
    assert coef > 0
    first._save_checkpoint()
    assert json.loads((tmp_path / "global_step_3" / STATE).read_text()) == first.method.state_dict() and first.calls[-1] == "saved"
    for more in ([], ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_3"]):
        second = Trainer(composed(*options, *more))
        second.resumed = 3
        second._setup()
        for number in range(3, 6):
            second.global_steps = number + 1
            step(second)
        assert second.method.state_dict() == whole.method.state_dict()
    (tmp_path / "global_step_3" / STATE).unlink()
    with pytest.raises(ValueError, match=r"trainer.resume_mode must be disable, or the checkpoint one of this method"):
        second._load_checkpoint()


def test_seeds_repeat_after_a_resume(queue: Queue) -> None:
    """Another one for each batch, whoever counts them."""

    def seeds(first: int, last: int) -> list[int]:
        more = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2"]
        trainer = Trainer(composed("+aer.kind=fixed", "data.seed=7", *more))
        found = []
        for trainer.global_steps in range(first, last):
            for trainer.local_trigger_step in range(2):
                found.append(trainer._aer_seed())
        return found

    assert seeds(1, 5) == seeds(1, 3) + seeds(3, 5) and len(set(seeds(1, 5))) == 8


def test_a_schedule_is_told_how_many_updates_there_are() -> None:
    trainer = Trainer(composed("+aer.tau=0.5", "+aer.tau_end=0.4"))
    assert trainer.method.controller.config.updates == 6  # type: ignore[attr-defined]
    more = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4"]
    trainer = Trainer(composed("+aer.tau=0.5", "+aer.tau_end=0.4", *more))
    assert trainer.method.controller.config.updates == 24  # type: ignore[attr-defined]


def test_an_accuracy_outside_its_range_stops_before_the_update(queue: Queue) -> None:
    queue.data["rm_scores"] = jagged([-scores for scores in queue.data["rm_scores"].unbind()])
    trainer = Trainer(composed("+aer.kind=fixed"))
    with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got -1 from aer.correct=score"):
        step(trainer)
    assert not trainer.calls and COEF not in queue.data


@pytest.mark.parametrize(
    "kind", ["aer", "balance", "bang_bang", "positive_advantage", "forking_tokens", "entropy_advantage", "kl_cov", "stare"]
)
def test_what_verls_loss_can_carry_is_taken(kind: str) -> None:
    """verl's default makes four updates on each batch."""
    assert isinstance(prepare(composed(f"+aer.method={kind}")).method, method_class(kind).Config)
