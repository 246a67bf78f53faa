from dataclasses import replace

import pytest

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import AER, Stateless, TokenBatch, TokenTerms
from aer_train.collect import replaceable
from aer_train.config.tree import ObjectiveConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.step.credit import assign_credit
from aer_train.step.tokens import token_batch
from aer_train.types import Group, Prompt, Sample, Verdict

CONFIG = TrainConfig(rollout=RolloutConfig(max_new_tokens=10), objective=ObjectiveConfig(advantage="group_mean"))


def group(*responses: tuple[float, int], logprob: float = 0.0) -> Group:
    """Responses as (reward, length) with one log-prob for all tokens; one of 10 tokens was cut."""
    samples = [Sample(0, i, [1], [2] * length, [logprob] * length, "", length < 10) for i, (_, length) in enumerate(responses)]
    return Group(
        Prompt("0", "", ""), samples, [Verdict("correct" if reward == 1 else "wrong", reward, None, 0.0) for reward, _ in responses]
    )


MIXED, RIGHT, WRONG, HALF = group((1, 4), (0, 4)), group((1, 4), (1, 4)), group((0, 4), (0, 4)), group((0.5, 4), (0.5, 4))


def method(**options: object) -> AER:
    return AER(EntropyControlConfig(**options))  # type: ignore[arg-type]


FIXED: dict[str, object] = {"kind": "fixed", "coef": 0.1}


@pytest.mark.parametrize(
    ("refill", "entropy", "expected"),
    [
        ("no_signal", FIXED, [False, True, False, False]),
        ("no_signal", FIXED | {"include_all_wrong": False}, [False, True, True, False]),
        ("no_signal", FIXED | {"rho": 0.5}, [False, True, False, True]),
        ("no_signal", FIXED | {"difficulty": "uniform"}, [False, False, False, False]),
        ("no_signal", {"kind": "aer", "difficulty": "uniform"}, [False, True, True, True]),  # the coefficient is 0 at first
        ("no_signal", {"kind": "off"}, [False, True, True, True]),
        ("zero_variance", FIXED, [False, True, True, True]),
        ("zero_variance", {"kind": "off"}, [False, True, True, True]),
    ],
)
def test_which_groups_teach_nothing(refill: str, entropy: dict[str, object], expected: list[bool]) -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, refill=refill))
    assert replaceable([MIXED, RIGHT, WRONG, HALF], method(**entropy), config) == expected


def test_a_group_may_have_other_signals_than_its_rewards() -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, refill="no_signal"))

    class Shifted(Stateless):
        def terms(self, tokens: TokenBatch) -> TokenTerms:
            return TokenTerms(shift=(tokens.prompt_of_token == 1).float(), weight=(tokens.prompt_of_token != 0).float())

    assert replaceable([MIXED, RIGHT, WRONG], Shifted(), config) == [True, False, True]  # type: ignore[arg-type]


def test_what_is_masked_teaches_nothing() -> None:
    masked = replace(CONFIG, rollout=replace(CONFIG.rollout, overlong="mask", refill="no_signal"))
    cut, half_cut = group((0, 10), (0, 10)), group((1, 4), (0, 10))
    assert replaceable([cut, half_cut, WRONG], method(**FIXED), masked) == [True, False, False]
    assert replaceable([cut, half_cut, WRONG], method(**FIXED), CONFIG) == [False, False, False]
    batch = assign_credit([cut, half_cut], masked)
    assert batch.trained == [False, False, True, False] and batch.advantages == [0, 0, 0.5, -0.5], "it stays in its group's mean"


def test_float_noise_is_replaced() -> None:
    noise = group((0.3, 4), (0.1 + 0.2, 4))
    assert noise.rewards[0] != noise.rewards[1]
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, refill="zero_variance"))
    assert replaceable([noise], method(), config) == [True]
    assert replaceable([group((0.3, 4), (0.301, 4))], method(), config) == [False]
    assert replaceable([group((0.3, 4), (0.301, 4))], method(), replace(config, reward=RewardConfig(tolerance=0.01))) == [True]


def test_a_penalty_moves_advantages_and_not_the_accuracy() -> None:
    config = replace(CONFIG, reward=RewardConfig(overlong_buffer=4, overlong_penalty=1.0))
    right, wrong = group((1, 4), (1, 9)), group((0, 10), (0, 8))
    plain, shaped = assign_credit([right, wrong], CONFIG), assign_credit([right, wrong], config)
    assert shaped.rewards == [1.0, 0.25, -1.0, -0.5]
    assert shaped.advantages == [0.375, -0.375, -0.25, 0.25] and plain.advantages == [0.0] * 4
    assert shaped.accuracy == plain.accuracy == [1.0, 0.0]
    assert replaceable([right, wrong], method(**FIXED), config) == [False, False], "the penalty is a signal"


def test_the_tokens_of_a_step_by_hand() -> None:
    """A masked response has a number and no token."""
    masked = replace(CONFIG, rollout=replace(CONFIG.rollout, overlong="mask"))
    groups = [group((1, 2), (0, 1), logprob=-0.5), group((1, 10), (0, 3), logprob=-0.25)]
    tokens = token_batch(assign_credit(groups, masked), (0, 1))
    assert tokens.response.tolist() == [0, 0, 1, 3, 3, 3] and tokens.position.tolist() == [0, 1, 0, 0, 1, 2]
    assert tokens.prompt.tolist() == [0, 0, 1, 1] and tokens.prompt_of_token.tolist() == [0, 0, 0, 1, 1, 1]
    assert tokens.advantages.tolist() == [0.5, 0.5, -0.5, -0.5, -0.5, -0.5]
    assert tokens.logprobs.tolist() == [-0.5] * 3 + [-0.25] * 3 and tokens.accuracy.tolist() == [0.5, 0.5]
    assert tokens.seed == token_batch(assign_credit(groups, masked), (0, 1)).seed != token_batch(assign_credit(groups, masked), (0, 2)).seed
