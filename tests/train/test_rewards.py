"""Several rewards as one: how each function is called, what it adds, and what a failure does."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_train.cli import main
from aer_train.collect import Collected
from aer_train.config.checks import check_config
from aer_train.config.tree import ObjectiveConfig, RewardConfig, TrainConfig
from aer_train.monitor.metrics import collected_metrics
from aer_train.run.files import read_parquet
from aer_train.run.folder import read_metrics
from aer_train.step.advantage import group_advantages
from aer_train.step.credit import assign_credit
from aer_train.types import Group, Prompt, Question, Sample, Verdict
from aer_train.verify import Verifier, served
from aer_train.verify.rewards import Rewards, names_of
from tests.train.reward_server import serving

HERE = "tests.train.rewards"
ROW = {"level": 3, "raw": ["g"], "prompt": "not this one", "data_source": "toy", "extra_info": {"index": 1}}
QUESTION = Question("r", "g", "p", ROW)
CHAT = QUESTION._replace(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "p"}])


@pytest.mark.parametrize(
    ("name", "question"),
    [(name, QUESTION) for name in ("by_place", "by_name", "keyword_only", "whatever", "asynchronous", "trl", "verl")]
    + [("trl_chat", CHAT), ("by_name", CHAT), ("verl", CHAT)],
)
def test_a_function_is_called_by_the_names_of_its_parameters(name: str, question: Question) -> None:
    with Verifier(f"{HERE}.{name}", workers=1) as verifier:
        verifier.check(question)
        right, wrong = verifier.score_many([question, question._replace(response="other")])
    assert (right.outcome, right.reward, right.detail) == ("correct", 1.0, "") and wrong.reward == 0.0


@pytest.mark.slow
def test_functions_of_trl_itself() -> None:
    """One on the text of a conversation, and one that needs a column with the solution; it says None where that cannot be read."""
    pytest.importorskip("trl.rewards", reason="the trl extra is not installed")
    question = CHAT._replace(response="<think>so</think>\\boxed{4}", columns={"solution": r"\boxed{4}"})
    reward = RewardConfig(kind="trl.rewards.accuracy_reward", functions=("trl.rewards.think_format_reward",), workers=1, timeout=60)
    with Rewards(reward) as rewards:
        good, bad, none = rewards.submit(
            [question, question._replace(response="\\boxed{5}"), question._replace(response="<think>so</think>\\boxed{4}")]
        ).result()
    assert (good.accuracy, good.reward) == (1.0, 2.0) and (bad.accuracy, bad.reward) == (0.0, 0.0) and none.scores == good.scores


def test_a_default_is_not_overwritten_by_the_answer() -> None:
    with Verifier(f"{HERE}.tuned", workers=1) as verifier:
        assert verifier.score_many([QUESTION])[0].reward == 0.5


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("by_name", "level"),
        ("keyword_only", "level"),
        ("trl", "level"),
        ("trl_state", "trainer_state"),
        ("misspelled", "awnser"),
        ("half_known", "output"),
    ],
)
def test_what_a_function_needs_must_be_there(name: str, missing: str) -> None:
    """Two names are values by place only if neither is known: else the gold answer would stand for what is misspelled or missing."""
    reward = RewardConfig(kind="countdown", functions=(f"{HERE}.{name}",))
    with (
        Rewards(reward) as rewards,
        pytest.raises(ValueError, match=rf"reward.functions must name a function of .* needs {missing} \(prompt 7 of X"),
    ):
        rewards.check([Prompt("7", "p", "g", columns={"level": 3} if name == "half_known" else {})], "X")


def test_values_that_json_lacks_arrive_as_text() -> None:
    import datetime

    with Verifier(f"{HERE}.whatever", workers=1) as verifier:
        assert verifier.score_many([QUESTION._replace(columns=ROW | {"day": datetime.date(2026, 1, 1)})])[0].outcome == "correct"


def grade(responses: list[str], **options: Any) -> list[Verdict]:
    with Rewards(RewardConfig(kind=f"{HERE}.digit_share", workers=1, **options)) as rewards:
        return rewards.submit([Question(response, "") for response in responses]).result()


def test_the_reward_is_the_weighted_sum_and_accuracy_is_that_of_kind() -> None:
    options: dict[str, Any] = {"functions": (f"{HERE}.length", f"{HERE}.none_of"), "weights": (2.0, -0.25, 5.0)}
    right, half = grade(["123", "12345678ab"[:1] + "abc"], **options)
    assert (right.outcome, right.reward, right.accuracy) == ("correct", 2.0 - 0.75, 1.0)
    assert (half.outcome, half.accuracy) == ("wrong", pytest.approx(1 / 3)) and half.reward == pytest.approx(2 / 3 - 1)
    assert right.scores == {"digit_share": 1.0, "length": 3.0, "none_of": None} and right.judged and not right.failed


def test_a_function_of_trl_may_have_nothing_to_say() -> None:
    silent = grade(["123"], functions=(f"{HERE}.trl_none",))[0]
    assert silent.scores == {"digit_share": 1.0, "trl_none": None} and silent.reward == 1.0 and silent.judged


def test_without_functions_nothing_changes() -> None:
    alone = grade(["123"])[0]
    assert (alone.reward, alone.accuracy, alone.scores, alone.kind_reward) == (1.0, 1.0, None, None)


def test_a_function_that_fails_is_counted_and_named() -> None:
    failed, good = grade(["a23", "123"], functions=(f"{HERE}.fails_on_a",))
    assert failed.outcome == "wrong" and failed.failed == ("fails_on_a",) and not failed.judged
    assert failed.detail == "fails_on_a: crash: KeyError: 'a'" and failed.scores is not None and failed.scores["fails_on_a"] is None
    assert failed.reward == failed.accuracy == pytest.approx(2 / 3) and good.judged and good.reward == 2.0
    with pytest.raises(ChildProcessError, match=r"reward.on_failure stop: fails_on_a: crash: KeyError"):
        grade(["123", "a23"], functions=(f"{HERE}.fails_on_a",), on_failure="stop")


def test_one_weight_alone_counts() -> None:
    assert grade(["123"], weights=(2.5,))[0].reward == 2.5


@pytest.mark.parametrize("functions", [(), (f"{HERE}.none_of",)])
def test_accuracy_out_of_range_stops_and_names_the_option(functions: tuple[str, ...]) -> None:
    with (
        Rewards(RewardConfig(kind=f"{HERE}.length", functions=functions, workers=1)) as rewards,
        pytest.raises(ValueError, match=r"reward.kind must give a number in \[0, 1\], got 3.0 from tests"),
    ):
        rewards.submit([Question("123", "")]).result()


def test_names_are_short_where_that_is_enough() -> None:
    reward = RewardConfig(kind="math", functions=("a.brief", "b.brief", "c.tidy", "http://host:80/score"))
    assert names_of(reward) == ["math", "a.brief", "b.brief", "tidy", "host:80/score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"functions": ("a.b", "a.b")}, r"reward.functions must name each function once, and not reward.kind \(math\), got"),
        ({"functions": ("math",)}, "reward.functions must name each function once"),
        ({"weights": (1.0, 2.0)}, r"reward.weights must be empty or one of reward.kind and each of reward.functions \(1\), got"),
        ({"functions": ("a.b",), "weights": (1.0, float("nan"))}, "reward.weights must be finite"),
        ({"weights": (0.0,)}, "reward.weights must not all be 0"),
        ({"request_timeout": 0.0}, "reward.request_timeout must be > 0 and finite, got 0"),
        ({"retries": -1}, "reward.retries must be >= 0, got -1"),
    ],
)  # fmt: skip
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(reward=RewardConfig(**options)))


def test_functions_must_exist() -> None:
    with pytest.raises(ValueError, match=r"reward.functions must be a URL or a dotted path to a function, got 'no.such'"):
        Rewards(RewardConfig(functions=("no.such",)))


# servers


def lengths(body: dict[str, list[Any]]) -> dict[str, list[float]]:
    return {"rewards": [len(text) / 10 for text in body["completions"]]}


def test_a_server_is_asked_in_trl_form_and_in_batches() -> None:
    entered, go = threading.Event(), threading.Event()

    def slowly(body: dict[str, list[Any]]) -> dict[str, list[float]]:
        entered.set()
        go.wait(10)
        return lengths(body)

    with serving(slowly) as server, Verifier(server.url, workers=1) as verifier:
        first = verifier.submit([QUESTION])
        entered.wait(10)
        others = verifier.submit([QUESTION._replace(response="r" * n) for n in range(1, 101)])
        go.set()
        assert [v.reward for v in [*first.result(), *others.result()]] == [
            0.1,
            *(min(n / 10, 0.0 if n > 10 else 1.0) for n in range(1, 101)),
        ]
    assert [len(body["completions"]) for body in server.asked] == [1, served.BATCH, 100 - served.BATCH], "what waits goes together"
    assert server.asked[0] == {
        "prompts": ["p"], "completions": ["r"], "answer": ["g"], "level": [3], "raw": [["g"]], "data_source": ["toy"], "extra_info": [{"index": 1}],
    }  # fmt: skip


def test_a_server_sees_conversations_and_may_have_nothing_to_say() -> None:
    with serving(lambda body: [None] * len(body["completions"])) as server:
        reward = RewardConfig(kind=f"{HERE}.digit_share", functions=(server.url,), workers=1)
        with Rewards(reward) as rewards:
            verdict = rewards.submit([CHAT]).result()[0]
    assert verdict.reward == 0.0 and verdict.judged and server.asked[0]["completions"] == [[{"role": "assistant", "content": "r"}]]


@pytest.mark.parametrize(
    ("answers", "outcome", "detail", "requests"),
    [
        ([503, 429, "0"], "correct", "", 3),
        ([503, 503, 503], "crash", "answered 503: no", 3),
        ([400], "crash", "answered 400: no", 1),
        (["2", "2", "2"], "timeout", "did not answer within 0.3 s", 3),
        (["2", "0"], "correct", "", 2),
        ([b"not json"] * 3, "crash", "must answer in JSON", 3),
        ([{"rewards": [1, 2]}], "crash", 'must answer {"rewards": [..]} with 1 finite numbers or null, got {"rewards": [1, 2]}', 1),
        ([{"rewards": ["1"]}], "crash", "with 1 finite numbers", 1),
        ([{"rewards": [float("nan")]}], "crash", "with 1 finite numbers", 1),
        ([{}], "crash", "with 1 finite numbers", 1),
        ([{"rewards": [7]}], "crash", "in [0, 1], got 7", 1),
    ],
)
def test_what_a_server_may_do(monkeypatch: pytest.MonkeyPatch, answers: list[Any], outcome: str, detail: str, requests: int) -> None:
    monkeypatch.setattr(served, "PAUSE", 0.01)
    left = iter(answers)
    with serving(lambda body: next(left)) as server, Verifier(server.url, workers=1, request_timeout=0.3, retries=2) as verifier:
        verdict = verifier.score_many([("r", "g")])[0]
    assert verdict.outcome == outcome and detail in verdict.detail and len(server.asked) == requests


def test_a_server_that_is_not_there_is_told_before_the_first_step() -> None:
    reward = RewardConfig(functions=("http://127.0.0.1:9/score",), retries=0)
    with (
        Rewards(reward) as rewards,
        pytest.raises(
            ValueError,
            match=r"reward.functions must be the URL of a server that answers, got 'http://127.0.0.1:9/score': .*cannot be reached",
        ),
    ):
        rewards.check([Prompt("7", "p", "g")], "X")


def test_closing_does_not_wait_for_a_server() -> None:
    with serving(lambda body: "5") as server:
        with Verifier(server.url, workers=1) as verifier:
            pending, start = verifier.submit([QUESTION, QUESTION]), time.monotonic()
        with pytest.raises(ValueError, match="verifier must be open until its verdicts are there"):
            pending.result()
        assert time.monotonic() - start < 2


# from verdicts to credit and metrics


def group(*verdicts: Verdict, prompt: str = "0") -> Group:
    return Group(Prompt(prompt, "", ""), [Sample(0, i, [1], [2, 3], [0.0, 0.0], "", True) for i in range(len(verdicts))], list(verdicts))


GOOD = Verdict("correct", 3.0, None, 0.0, scores={"math": 1.0, "len": 2.0}, kind_reward=1.0)
BAD = Verdict("wrong", 5.0, None, 0.0, scores={"math": 0.0, "len": 5.0}, kind_reward=0.0)
LOST = Verdict("wrong", 0.0, None, 0.0, "len: timeout: late", scores={"math": 0.0, "len": None}, failed=("len",), kind_reward=0.0)
CONFIG = TrainConfig(objective=ObjectiveConfig(advantage="group_mean"))


def test_advantages_come_from_the_sum_and_difficulty_from_accuracy() -> None:
    batch = assign_credit([group(GOOD, BAD, BAD, BAD)], CONFIG)
    assert batch.rewards == [3.0, 5.0, 5.0, 5.0] and batch.advantages == [-1.5, 0.5, 0.5, 0.5] and batch.accuracy == [0.25]
    mixed = group(GOOD, BAD, BAD, LOST)
    row = collected_metrics(Collected([mixed], [[mixed]], 0, 0), 1e-6)
    assert (row["reward/mean"], row["reward/accuracy"], row["reward/unsolved_frac"]) == (13 / 4, 0.25, 0.0)
    assert (row["reward/function/math"], row["reward/function/len"]) == (0.25, 4.0), "of those that gave something"
    assert (row["reward/failed/math"], row["reward/failed/len"]) == (0.0, 0.25)


@pytest.mark.parametrize("kind", ["group_std", "group_mean", "rloo"])
def test_masked_failures_count_nowhere(kind: str) -> None:
    """As if they had never been drawn; and groups of other sizes have the advantages that they have alone."""
    config = TrainConfig(objective=ObjectiveConfig(advantage=kind), reward=RewardConfig(on_failure="mask"))  # type: ignore[arg-type]
    groups = [group(LOST, GOOD, BAD, BAD), group(GOOD, BAD), group(LOST, LOST), group(LOST, GOOD)]
    batch = assign_credit(groups, config)
    three, two = (group_advantages(torch.tensor([rewards]), kind).tolist()[0] for rewards in ([3.0, 5.0, 5.0], [3.0, 5.0]))
    assert batch.advantages == [0.0, *three, *two, 0.0, 0.0, 0.0, 0.0]
    assert batch.trained == [False, True, True, True, True, True, False, False, False, True]
    assert batch.accuracy == pytest.approx([1 / 3, 0.5, 0.0, 1.0])
    zero = assign_credit(groups, replace(config, reward=RewardConfig()))
    assert all(zero.trained) and zero.accuracy == [0.25, 0.5, 0.0, 0.5] and zero.advantages[0] < 0


@pytest.mark.slow
def test_a_run_with_several_rewards(tmp_path: Path, model_folder: Path) -> None:
    """Columns of the file reach the functions and the server; metrics, samples, evaluation and report have what they gave."""
    rows = [{"id": str(i), "problem": f"{i}{i}=?", "answer": str(i), "level": i % 3} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda body: {"rewards": [float(level) for level in body["level"]]}) as server:
        out, name = tmp_path / "run", server.url.removeprefix("http://")
        arguments = [
            "--model.name", str(model_folder), "--data.train", str(tmp_path / "data.jsonl"), "--eval.data", str(tmp_path / "data.jsonl"),
            "--eval.samples", "2", "--reward.kind", f"{HERE}.digit_share", "--reward.functions", f"{HERE}.length", server.url,
            "--reward.weights", "1", "0.5", "0.1", "--optim.prompts-per-step", "4", "--rollout.group-size", "4",
            "--rollout.max-new-tokens", "4", "--run.steps", "2", "--run.threads", "1", "--run.out", str(out),
        ]  # fmt: skip
        assert main(["train", *arguments]) == 0
    for row in read_metrics(out):
        parts = [row[f"reward/function/{part}"] for part in ("digit_share", "length", name)]
        assert row["reward/mean"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.1 * parts[2]) and row["reward/accuracy"] == pytest.approx(
            parts[0]
        )
        assert row[f"reward/failed/{name}"] == 0.0
    sample = read_parquet(out / "samples" / "step_000001.parquet")[0]
    level = rows[int(sample["prompt_id"])]["level"]
    assert sample[f"reward/{name}"] == level and sample["reward"] == pytest.approx(
        sample["reward/digit_share"] + 0.5 * sample["reward/length"] + 0.1 * level
    )
    result = json.loads((out / "eval" / "step_000002.json").read_text())
    assert result["reward"] == f"{HERE}.digit_share + {HERE}.length + {server.url}"
    assert "reward function length" in (out / "report.html").read_text()


def test_a_run_is_refused_when_a_column_is_missing(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model.name", str(model_folder), "--reward.kind", "countdown", "--reward.functions", f"{HERE}.by_name"]
    assert main(["train", *arguments, "--run.out", str(tmp_path / "run")]) == 2
    assert "needs level (prompt" in capsys.readouterr().err and not (tmp_path / "run").exists()
