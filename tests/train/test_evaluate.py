import json
from itertools import combinations
from pathlib import Path

import pytest

from aer_train.checks import check_config
from aer_train.config import EvalConfig, ModelConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.evaluate import evaluate, evaluate_model, pass_at_k, pass_ks, summarize
from aer_train.model import Policy
from aer_train.types import Prompt
from aer_train.verify import Verifier


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(samples: int) -> None:
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_enough_samples() -> None:
    with pytest.raises(ValueError, match=r"k must be in \[1, samples = 4\], got 5"):
        pass_at_k(4, 2, 5)
    assert [pass_ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_summary_by_hand() -> None:
    assert summarize([4, 1, 0], [0, 0, 3], 4) == {
        "problems": 3,
        "accuracy": 5 / 12,
        "truncated_frac": 3 / 12,
        "pass@k": {"1": pytest.approx(5 / 12), "2": pytest.approx((1 + 0.5 + 0) / 3), "4": pytest.approx(2 / 3)},
    }


def test_evaluate_by_tier(policy: Policy) -> None:
    prompts = [Prompt("a", "12=?", "12", "easy"), Prompt("b", "7", "7", "hard"), Prompt("c", "98", "98", "hard")]
    with Verifier("math") as verifier:
        options = {"samples": 3, "temperature": 1.0, "max_new_tokens": 4, "seed": 0}
        result = evaluate(policy, prompts, verifier, batch_size=64, **options)
        assert result == evaluate(policy, prompts, verifier, batch_size=2, **options)
    assert list(result["tiers"]) == ["easy", "hard", "all"]
    assert [tier["problems"] for tier in result["tiers"].values()] == [1, 2, 3]
    for tier in result["tiers"].values():
        assert list(tier["pass@k"]) == ["1", "2", "3"]
        assert tier["pass@k"]["1"] == pytest.approx(tier["accuracy"])


def test_evaluate_model_writes_what_it_returns(model_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        rollout=RolloutConfig(max_new_tokens=6),
        reward=RewardConfig(kind="countdown"),
        eval=EvalConfig(data="builtin:countdown", samples=1, temperature=0, limit=6),
        model=ModelConfig(name="unused"),
    )
    check_config(config)
    result = evaluate_model(str(model_folder), config, tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    assert {name: tier["problems"] for name, tier in result["tiers"].items()} == {"easy": 3, "hard": 3, "all": 6}


def test_evaluate_model_errors(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data must be given when the settings name no eval.data"):
        evaluate_model(str(model_folder), TrainConfig(), tmp_path / "eval.json")
    (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"--model must be a run with a complete checkpoint, got .*run"):
        evaluate_model(str(tmp_path / "run"), TrainConfig(eval=EvalConfig(data="builtin:countdown")), tmp_path / "eval.json")
