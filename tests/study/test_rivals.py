"""Where a method fails, the tuned value of each, and the table and figure of all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aer_kernels.methods.seam import Measured, TokenBatch
from study import rivals
from study.annealed import Annealed, AnnealedConfig
from study.config import Study
from study.dots import save_dots
from study.failures import fails, failures, found
from study.flat_targets import FlatTargets, FlatTargetsConfig
from tests.study.samples import record


def run(method, hard, easy, seed=0, setting="tiny"):
    """4 samples of 100 prompts: `hard` and `easy` of 100 are solved always."""
    right = [[4] * count + [0] * (100 - count) for count in (hard, easy)]
    return record(method, seed, *right, setting=setting)


@pytest.mark.parametrize(
    "runs, failed",
    [
        ([(6, 80), (6, 80)], False),
        ([(5, 80), (6, 80)], False),
        ([(5, 80), (5, 80), (6, 80)], True),
        ([(5, 80), (6, 80), (6, 80)], False),
        ([(90, 76), (90, 75)], False),
        ([(90, 75), (90, 74)], True),
    ],
    ids=["both find it", "half do", "a third does", "two thirds do", "not quite five of a hundred easy ones lost", "more than that"],
)
def test_a_method_fails(runs, failed):
    """Found is more than .05, in at least half of the runs; a loss is more than .05 below plain GRPO's mean."""
    reference = [run("grpo", 0, 70), run("grpo", 0, 90, seed=1)]
    assert fails([run("aer", *values, seed=seed) for seed, values in enumerate(runs)], reference) is failed


def test_failures_by_place():
    records = [run("grpo", 0, 80), run("grpo", 50, 80, setting="other"), run("aer", 50, 80), run("late", 50, 10, setting="other")]
    assert failures(records, "aer") == {"tiny": False} and failures(records, "late") == {"other": True}
    assert failures(records, "grpo") == {"tiny": True, "other": False}
    assert not found(record("aer", 0, [4, 4], [4, 4], diverged="loss"))
    with pytest.raises(ValueError, match="records must have runs of grpo at tiny, got none"):
        failures(records[2:], "aer")


def tuning(method, hard, easy, setting="tiny"):
    found = run(method, hard, easy, setting=setting)
    return found | {"right": {"validation": found["right"]["test"]}}


def test_the_tuned_value_is_the_better_candidate():
    """Over all settings, by the mean of both tiers; the first of equals; test prompts are never read."""
    records = [
        tuning("stare_1", 40, 80), tuning("stare_1", 0, 80, "other"), tuning("stare_2", 0, 82), tuning("stare_2", 44, 80, "other"),
        tuning("steer_1", 10, 60), tuning("steer_2", 0, 70), tuning("mai_clip_2", 0, 0),
    ]  # fmt: skip
    assert rivals.chosen(records) == {"stare": "stare_2", "steer": "steer_1", "mai_clip": "mai_clip_2"}
    table = rivals.tuning_table(records).splitlines()
    assert table[2:4] == ["| stare_1 | 2 | 0.500 | 0.200 | 0.800 |  |", "| stare_2 | 2 | 0.515 | 0.220 | 0.810 | yes |"]


def test_table_and_figure(tmp_path, monkeypatch):
    """The methods that fail least first, then those that solve most; differences to AER over settings and over pairs."""
    records = [
        one
        for setting in "abc"
        for one in (
            run("grpo", 0, 80, setting=setting),
            run("aer_uniform_clock", 30, 80, setting=setting),
            run("stare", 40 if setting == "a" else 0, 80, setting=setting),
            run("stare_1", 33, 80, setting=setting),
        )
    ]
    assert rivals.order(records) == ["stare_1", "aer_uniform_clock", "stare", "grpo"]
    rows = rivals.rivals_table(records).splitlines()
    assert rows[2] == "| stare, tuned (stare_1) | 0 of 3 | 3 of 3 | 0.330 | 0.330 | 0.800 | 0.67 | **+0.030 ± 0.000** | +0.030 ± 0.000 |"
    assert rows[3].startswith("| AER | 0 of 3 | 3 of 3 | 0.300 |") and rows[3].endswith("| 0.67 |  |  |")
    assert rows[4].endswith("| -0.167 ± 0.574 | -0.167 ± 0.574 |"), "a run a setting: the same units"
    assert rows[4].startswith("| stare | 2 of 3 | 1 of 3 | 0.133 |") and rows[5].startswith("| GRPO | 3 of 3 | 0 of 3 |")
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    save_dots(records, ["stare_1", "stare"], ["first", "second"], tmp_path / "dots.png")
    hard, *_, kept = figures[0].axes
    assert [text.get_text() for text in hard.get_yticklabels()] == ["first", "second"] and kept.get_xscale() == "log"
    dots = {line.get_label(): line.get_xydata().tolist() for line in hard.lines[:3]}
    assert dots.keys() == {"a", "b", "c"} and dots["a"] == [pytest.approx([0.4, 0.8]), pytest.approx([0.33, -0.2])]


def test_every_method_has_a_row_and_at_most_two_candidates():
    """Tuning is on validation prompts with a seed that is not reported."""
    study = Study.read()
    reported, tuned = study.matrix("methods"), study.matrix("methods_tuning")
    methods = {job.method for job in reported.jobs}
    assert {rivals.family(job.method) for job in tuned.jobs} <= methods
    assert not {job.seed for job in reported.jobs} & {job.seed for job in tuned.jobs}
    assert (tuned.splits, reported.splits) == (("validation",), ("test",))
    page = (Path(__file__).parents[2] / "docs" / "study_methods.md").read_text()
    assert all(f"`{job.setting}`" in page for job in reported.jobs)


def test_an_annealed_coefficient():
    """.2 up to update 2 of 5, then in a straight line to 0; another start goes on from its state."""
    method = Annealed(replace(AnnealedConfig(), coef=0.2, updates=5))
    count = torch.zeros(1, dtype=torch.int64)
    tokens = TokenBatch(torch.zeros(1), torch.zeros(1), count, count, count, torch.zeros(1))
    values = []
    for _ in range(6):
        terms = method.terms(tokens)
        values.append(terms.entropy_scale * float(terms.entropy_coef))
        method.update(Measured(entropy=1.0, tokens=1.0, responses=1.0))
    assert values == pytest.approx([0.2, 0.2, 0.2, 0.4 / 3, 0.2 / 3, 0.0])
    again = Annealed(method.config)
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert again.status() == method.status()
    with pytest.raises(ValueError, match="updates must be given for an annealed coefficient, got None"):
        Annealed(AnnealedConfig())


def test_targets_without_the_pass_of_the_initial_policy():
    """The mean over tokens of prompts that are not solved, .4 nats, stands for every place, also once the policy has changed; and in a run
    that goes on. Where every prompt is solved it is the mean of all."""

    def batch(entropy, accuracy):
        place = torch.tensor([0, 1, 2])
        return TokenBatch(torch.zeros(3), torch.zeros(3), place, 0 * place, place, torch.tensor(accuracy), entropy=torch.tensor(entropy))

    def made():
        return FlatTargets(FlatTargetsConfig(tau=1.0, forward=0.0, rho=0.5, floor=0.01))

    method = made()
    held = method.terms(batch([0.2, 0.6, 9.0], [0.0, 0.0, 1.0])).held
    assert held.tolist() == pytest.approx([1.25, 1.25, 0.0]) and "reference_entropy" not in method.also_needs
    again = made()
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    for one in (method, again):
        assert one.terms(batch([2.0, 2.0, 2.0], [0.0, 0.0, 1.0])).held.tolist() == pytest.approx([1.25, 1.25, 0.0])
    method = made()
    method.terms(batch([0.2, 0.6, 1.0], [1.0, 1.0, 1.0]))
    assert method.state_dict()["start"] == pytest.approx(0.6)
