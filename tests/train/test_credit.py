from dataclasses import replace

import pytest

from aer_kernels import AdaptiveEntropyController, EntropyControlConfig
from aer_train.config import ObjectiveConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.judge import judge, replaceable
from aer_train.types import Group, Prompt, Sample
from aer_train.verify import Verdict

CONFIG = TrainConfig(rollout=RolloutConfig(max_new_tokens=10), objective=ObjectiveConfig(advantage="group_mean"))


def group(*responses: tuple[float, int], logprob: float = 0.0) -> Group:
    """Responses as (reward, length) with one log-prob for all tokens; one of 10 tokens was cut."""
    samples = [Sample(0, i, [1], [2] * length, [logprob] * length, "", length < 10) for i, (_, length) in enumerate(responses)]
    return Group(
        Prompt("0", "", ""), samples, [Verdict("correct" if reward == 1 else "wrong", reward, None, 0.0) for reward, _ in responses]
    )


MIXED, RIGHT, WRONG, HALF = group((1, 4), (0, 4)), group((1, 4), (1, 4)), group((0, 4), (0, 4)), group((0.5, 4), (0.5, 4))


def controller(**options: object) -> AdaptiveEntropyController:
    return AdaptiveEntropyController(EntropyControlConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("refill", "entropy", "expected"),
    [
        ("no_signal", {"kind": "aer"}, [False, True, False, False]),
        ("no_signal", {"kind": "aer", "include_all_wrong": False}, [False, True, True, False]),
        ("no_signal", {"kind": "aer", "rho": 0.5}, [False, True, False, True]),
        ("no_signal", {"kind": "aer", "difficulty": "uniform"}, [False, False, False, False]),
        ("no_signal", {"kind": "off"}, [False, True, True, True]),
        ("zero_variance", {"kind": "aer"}, [False, True, True, True]),
        ("zero_variance", {"kind": "off"}, [False, True, True, True]),
    ],
)
def test_which_groups_teach_nothing(refill: str, entropy: dict[str, object], expected: list[bool]) -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, refill=refill))
    control = controller(**entropy)
    assert control.alpha == 0.0, "the weight counts, not the coefficient of the moment"
    assert replaceable([MIXED, RIGHT, WRONG, HALF], control, config) == expected


def test_what_is_masked_teaches_nothing() -> None:
    masked = replace(CONFIG, rollout=replace(CONFIG.rollout, overlong="mask", refill="no_signal"))
    cut, half_cut = group((0, 10), (0, 10)), group((1, 4), (0, 10))
    assert replaceable([cut, half_cut, WRONG], controller(), masked) == [True, False, False]
    assert replaceable([cut, half_cut, WRONG], controller(), CONFIG) == [False, False, False]
    batch = judge([cut, half_cut], controller(), masked)
    assert batch.trained == [False, False, True, False] and batch.advantages == [0, 0, 0.5, -0.5], "it stays in its group's mean"


def test_float_noise_is_replaced() -> None:
    noise = group((0.3, 4), (0.1 + 0.2, 4))
    assert noise.rewards[0] != noise.rewards[1]
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, refill="zero_variance"))
    assert replaceable([noise], controller(), config) == [True]
    assert replaceable([group((0.3, 4), (0.301, 4))], controller(), config) == [False]
    assert replaceable([group((0.3, 4), (0.301, 4))], controller(), replace(config, reward=RewardConfig(tolerance=0.01))) == [True]


@pytest.mark.parametrize(("quantity", "expected"), [("token", [1.0, 0.5, 0.5]), ("response", [1.0, 0.5, 0.0])])
def test_the_samples_say_how_much_entropy_a_prompt_has(quantity: str, expected: list[float]) -> None:
    """1, 1.5 and 1.5 nats a token, 4, 6 and 9 a response of 4, 4 and 6 tokens on average; the target is 1 or 4."""
    groups = [group((0, 4), (0, 4), logprob=-1.0), group((0, 4), (0, 4), logprob=-1.5), group((0, 3), (0, 9), logprob=-1.5)]
    entropy = EntropyControlConfig(surplus=1.0, target=1.0 if quantity == "token" else 4.0, quantity=quantity, normalize_weights=False)  # type: ignore[arg-type]
    batch = judge(groups, AdaptiveEntropyController(entropy), replace(CONFIG, entropy=entropy))
    assert batch.entropy_weight[::2] == pytest.approx(expected)


def test_the_entropy_of_difficult_prompts_is_held() -> None:
    entropy = EntropyControlConfig(held="difficult", rho=0.5, least_weight=0.5)
    groups = [group((0, 4), (0, 4)), group((0, 4), (0.5, 4)), group((1, 4), (0, 4)), group((1, 4), (1, 4))]
    batch = judge(groups, AdaptiveEntropyController(entropy), replace(CONFIG, entropy=entropy))
    assert batch.held == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert judge(groups, controller(), CONFIG).held == [1.0] * 8


def test_a_penalty_moves_advantages_and_not_the_difficulty() -> None:
    config = replace(CONFIG, reward=RewardConfig(overlong_buffer=4, overlong_penalty=1.0))
    right, wrong = group((1, 4), (1, 9)), group((0, 10), (0, 8))
    control = controller(kind="fixed", coef=0.1)
    plain, shaped = judge([right, wrong], control, CONFIG), judge([right, wrong], control, config)
    assert shaped.rewards == [1.0, 0.25, -1.0, -0.5]
    assert shaped.advantages == [0.375, -0.375, -0.25, 0.25] and plain.advantages == [0.0] * 4
    assert shaped.entropy_coef == plain.entropy_coef == pytest.approx([0.0, 0.0, 0.2, 0.2])
    assert replaceable([right, wrong], control, config) == [False, False], "the penalty is a signal"
