"""The study: from one file to runs, from runs to records, from records to tables and figures."""

import json
import math
import re
import tomllib
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from aer_kernels import EntropyControlConfig
from aer_train.band import SPAN, step_response, trailing_mean
from aer_train.presets import EXPLORE_THEN_SETTLE
from aer_train.tasks.prompts import TIERS
from study import __main__ as command
from study import forest, plots
from study.conditions import CONDITIONS, start_table, write_conditions
from study.config import Job, Study, merge
from study.control import holds, phases, response_of
from study.held_out import pass_at
from study.jobs import run_job, run_matrix
from study.lock import locked
from study.page import PRESETS_FORM, written
from study.places import TUNED, across_places, places_table, tuned
from study.policies import REPORT, policy_folder, prepare
from study.reach import reach_table
from study.records import DONE, by_place, read_records, write_records
from study.settings import settings_of, settings_path
from study.statistics import estimate, paired, t_cdf, t_quantile
from study.tables import best_method, control_table, difference, generalization_table, outcome_table, paired_table
from study.tiers import tier_table

QUICK = """
[tasks.tiny]
task = "countdown"
size = "small"
lr = 1e-3
warmup_steps = [2, 1]
[tasks.tiny.settings]
rollout = {group_size = 2, max_new_tokens = 6}
optim = {prompts_per_step = 4, warmup_steps = 0}
run = {device = "auto"}

[methods.grpo]
entropy = {kind = "off"}
[methods.aer]
entropy = {kind = "aer", tau = 0.7}
[methods.broken]
optim = {grad_clip = 1e30, betas = [0.0, 0.0]}
entropy = {kind = "fixed", coef = 1e30}

[matrices.quick]
tasks = ["tiny"]
methods = ["grpo", "aer"]
hard_shares = [0.5]
lr_scales = [2.0]
seeds = [0]
steps = 3
samples = 2
eval_limit = 4
splits = ["validation", "test"]
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(QUICK)
    return Study.read(tmp_path / "study.toml")


def record(method, seed, hard, easy, target=1.0, entropy=(2.0, 1.0, 1.0), diverged=None, setting="tiny"):
    """A record whose runs had 4 samples of 2 prompts of each tier; `hard` and `easy` are right samples."""
    right = {"hard": list(hard), "easy": list(easy)}
    return {
        "setting": setting, "method": method, "hard_share": 0.5, "lr_scale": 1.0, "seed": seed, "steps": len(entropy), "diverged": diverged,
        "samples": 4, "right": {"validation": right, "test": right},
        "curves": {"entropy": list(entropy), "controlled": list(entropy), "target": [target] * len(entropy), "coef": [0.1] * len(entropy),
                   "bonus_share": [0.2] * len(entropy), "easy": [0.5] * len(entropy), "hard": [None] * (len(entropy) - 1) + [0.25]},
    }  # fmt: skip


def test_a_job_becomes_a_configuration(study, tmp_path):
    matrix = study.matrix("quick", seeds=[3, 5])
    assert [(job.method, job.seed) for job in matrix.jobs] == [("grpo", 3), ("aer", 3), ("grpo", 5), ("aer", 5)]
    other = study.matrix("quick", methods=["aer"], hard_shares=[0.2, 0.8], seeds=None).jobs
    assert [(job.method, job.hard_share, job.seed) for job in other] == [("aer", 0.2, 0), ("aer", 0.8, 0)]
    config = study.train_config(matrix, matrix.jobs[1], tmp_path / "run", tmp_path / "policy")
    assert (config.entropy.kind, config.entropy.tau, config.optim.lr, config.optim.prompts_per_step) == ("aer", 0.7, 2e-3, 4)
    assert (config.data.train, config.reward.kind, config.run.seed, config.run.steps) == ("builtin:countdown:0.5", "countdown", 3, 3)
    assert str(matrix.jobs[1].folder) == "tiny-hard0.5-lr2/aer/seed3"
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_table_is_like_an_earlier_one(study, tmp_path):
    """What it does not set is the other's, at every depth; the other stays as it is; there must be one."""
    (tmp_path / "study.toml").write_text(
        f'[methods.first]\nentropy = {{tau = 0.5, rho = 0.2}}\n[methods.second]\nlike = "first"\nentropy = {{tau = 0.6}}\n{QUICK}'
    )
    methods = Study.read(tmp_path / "study.toml").methods
    assert (methods["first"], methods["second"]) == ({"entropy": {"tau": 0.5, "rho": 0.2}}, {"entropy": {"tau": 0.6, "rho": 0.2}})
    (tmp_path / "study.toml").write_text(f'[methods.second]\nlike = "third"\n{QUICK}')
    with pytest.raises(ValueError, match=r"like must name one of .*, got 'third'"):
        Study.read(tmp_path / "study.toml")


def test_a_matrix_runs_once_and_goes_on(study, tmp_path, capsys):
    """Two runs in a process of their own; what has a record is not run again; a lost record is made again with the same numbers."""
    matrix, out, cache = study.matrix("quick"), tmp_path / "out", tmp_path / "policies"
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    records = read_records(out)
    assert [r["method"] for r in records] == ["aer", "grpo"]
    assert json.loads((out / CONDITIONS).read_text())["policies"]["tiny"].keys() >= {"easy accuracy", "hard accuracy"}
    aer, grpo = records
    assert len(aer["curves"]["entropy"]) == 3 and aer["curves"]["entropy"][0] == grpo["curves"]["entropy"][0]
    assert (
        aer["curves"]["target"] == pytest.approx([0.7 * aer["curves"]["entropy"][0]] * 3, rel=1e-3)
        and grpo["curves"]["target"] == [None] * 3
    )
    assert {split: {tier: len(counts) for tier, counts in tiers.items()} for split, tiers in aer["right"].items()} == {
        "validation": {"easy": 2, "hard": 2},
        "test": {"easy": 2, "hard": 2},
    }
    (lost,) = [path for path in out.rglob(DONE) if path.parts[-3] == "aer"]
    lost.unlink()
    assert run_matrix(study, replace(matrix, jobs=matrix.jobs[:1]), out, cache, workers=1) == [] and not lost.exists(), "nothing to do"
    job = matrix.jobs[1]
    run_job(job, study.train_config(matrix, job, out / job.folder, policy_folder(cache, study.tasks["tiny"])), matrix)
    again = json.loads(lost.read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in aer.items() if k != "seconds"}


def test_settings_that_share_a_policy_make_it_once(tmp_path, monkeypatch):
    """Two that were made side by side would end in the same folder."""
    (tmp_path / "study.toml").write_text(QUICK.replace("[methods.grpo]", '[tasks.same]\nlike = "tiny"\n\n[methods.grpo]'))
    study, made = Study.read(tmp_path / "study.toml"), []
    matrix = study.matrix("quick", tasks=["tiny", "same"])

    def submit(_, function, cache, setting):
        made.append(setting)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.jobs.ProcessPoolExecutor.submit", submit)
    monkeypatch.setattr("study.jobs.write_conditions", stop)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(study, matrix, tmp_path / "out", tmp_path / "policies", workers=2)
    assert made == [study.tasks["same"]]


def test_runs_that_were_made_with_other_settings_are_refused(study, tmp_path):
    """A finished or begun run is not taken for that of a method that has been changed since; another place of the policies is no change."""
    matrix, out, cache = study.matrix("quick", methods=["aer"]), tmp_path / "out", tmp_path / "policies"
    run = out / matrix.jobs[0].folder
    settings = settings_of(study.train_config(matrix, matrix.jobs[0], run, tmp_path / "elsewhere"), matrix)
    assert settings["entropy.tau"] == 0.7 and settings["study.samples"] == 2
    run.parent.mkdir(parents=True)
    settings_path(run).write_text(json.dumps(settings))
    (run / DONE).parent.mkdir()
    (run / DONE).write_text("{}")
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    study.methods["aer"]["entropy"]["tau"] = 0.8
    with pytest.raises(ValueError, match=r"--out must hold runs with entropy\.tau 0\.8, as the matrix says now, got 0\.7 in .*seed0"):
        run_matrix(study, matrix, out, cache, workers=1)


def test_two_commands_do_not_share_a_folder(study, tmp_path, capsys):
    """The second is refused while the first is at work, and served afterwards."""
    with locked(tmp_path / "out"):
        assert command.main(["quick", "--config", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "error: --out must not be in use by another command, got" in capsys.readouterr().err and not list((tmp_path / "out").rglob(DONE))
    with locked(tmp_path / "out"):
        pass


def test_an_interrupted_matrix_does_not_run_to_its_end(study, tmp_path, monkeypatch):
    def interrupt(progress, bar):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.jobs.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(study, study.matrix("quick", seeds=[0, 1, 2, 3]), tmp_path / "out", tmp_path / "policies", workers=1)
    assert 1 <= len(read_records(tmp_path / "out")) < 8


def test_the_presets_and_the_readme_have_the_recipe_that_was_measured(tmp_path):
    study = Study.read()
    matrix = study.matrix("compare", methods=[PRESETS_FORM])
    measured = study.train_config(matrix, matrix.jobs[0], tmp_path, tmp_path).entropy
    assert replace(measured, rho=1.0, least_weight=0.0) == EXPLORE_THEN_SETTLE, "what uniform weights do not read may differ"
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = tomllib.loads(re.search(r"```toml\n(# run.toml.*?)```", readme, re.DOTALL)[1])
    assert EntropyControlConfig(**example["entropy"]) == EXPLORE_THEN_SETTLE


def test_tier_table():
    """Hard prompts at 3 nats of 2 at the start with weights, at 2.8 without; what lies outside the steps of the search does not count."""
    record = {"setting": "a", "hard_share": 0.5, "lr_scale": 1.0, "curves": {"per_response": [2.0] * 80}}

    def run(method, seed, hard):
        tiers = {"easy_entropy": [9.0] * 10 + [2.0] * 50 + [9.0] * 20, "hard_entropy": [9.0] * 10 + [hard] * 49 + [None] + [9.0] * 20}
        return record | {"method": method, "seed": seed, "curves": record["curves"] | tiers}

    text = tier_table([run("aer", 0, 3.0), run("aer", 1, 3.2), run("aer_uniform_weights", 0, 2.8), run("aer_uniform_weights", 1, 3.0)])
    assert "| aer, a | 2 | 1.000 ± 0.000 | 1.550 ± 0.635 |" in text
    assert text.endswith("| aer - aer_uniform_weights | 2 | +0.000 ± 0.000 | **+0.100 ± 0.000** |\n")


def test_how_far_a_bonus_reaches(study, tmp_path, monkeypatch):
    """It is the bonus that moves the entropy, and nothing else; the checkpoints that are needed are there, and are gone afterwards."""
    matrix = replace(study.matrix("quick", methods=["aer"], hard_shares=[0.5]), steps=4, splits=(), probes=(2, 4))
    policy, job = prepare(tmp_path / "policies", study.tasks["tiny"]), matrix.jobs[0]

    def found(run):
        run_job(job, study.train_config(matrix, job, run, policy), matrix)
        assert not (run / "checkpoints").exists()
        return json.loads((run / DONE).read_text())

    rises = found(tmp_path / "run")
    assert rises["reach"].keys() == {"2", "4"} and all(rises["reach"][step][on][of] for step in ("2", "4") for on in TIERS for of in TIERS)
    assert "| tiny, lr x 2 | 1 | " in reach_table([rises])
    monkeypatch.setattr("study.reach.COEF", 0.0)
    nothing = {tier: dict.fromkeys(TIERS, 0.0) for tier in TIERS}
    assert found(tmp_path / "without")["reach"] == {"2": nothing, "4": nothing}


def test_reach_table():
    """On easy prompts .4 and .2 of it for hard ones, in the mean of two checkpoints; on hard prompts .5 and .4."""
    one = {"setting": "a", "hard_share": 0.5, "lr_scale": 1.0, "reach": {
        "10": {"easy": {"easy": 0.3, "hard": 0.1}, "hard": {"easy": 0.4, "hard": 0.5}},
        "20": {"easy": {"easy": 0.5, "hard": 0.3}, "hard": {"easy": 0.4, "hard": 0.5}},
    }}  # fmt: skip
    diverged = {"setting": "a", "hard_share": 0.5, "lr_scale": 1.0, "diverged": "loss"}
    row = reach_table([one, diverged, one]).splitlines()[2]
    assert row.replace(" ± 0.000", "") == "| a | 2 | 0.400 | 0.200 | 0.400 | 0.500 | 0.500 | 0.800 |"
    assert len(reach_table([diverged]).splitlines()) == 2, "the head alone"


def test_statistics():
    """Quantiles of Student's t from printed tables; a mean by hand: 1, 2, 3 have deviation 1."""
    assert [t_quantile(0.975, f) for f in (1, 4, 30)] == pytest.approx([12.706, 2.776, 2.042], abs=5e-4)
    assert t_cdf(2.776445, 4) == pytest.approx(0.975, abs=1e-6)
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.half_width) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5) and not found.excludes_zero
    assert found.p_value == pytest.approx(2 * (1 - t_cdf(2 * math.sqrt(3), 2)))
    assert paired({"a": 1.0, "b": 2.1, "c": 9.0}, {"a": 0.0, "b": 1.0}).mean == pytest.approx(1.05)
    assert estimate([0.3, 0.3]).half_width == 0.0 and math.isnan(estimate([0.3]).half_width)
    with pytest.raises(ValueError, match="must have runs at the same places"):
        paired({"a": 1.0}, {"b": 1.0})


def test_step_response():
    """Target 1: the trailing mean of 5 is 2.0, 1.5, 1.2 (in), 1.1, 1.04, 0.9, then 0.74, 0.66: 4 of 6 steps in the band."""
    curve = [2.0, 1.0, 0.6, 0.8, 0.8, 1.3, 0.2, 0.2]
    assert trailing_mean(curve, SPAN) == pytest.approx([2.0, 1.5, 1.2, 1.1, 1.04, 0.9, 0.74, 0.66])
    found = step_response(curve, [1.0] * 8)
    assert (found.reached, found.in_band) == (3, pytest.approx(4 / 6))
    assert (found.largest, found.smallest) == pytest.approx((1.2, 0.66)) and not holds(found)
    assert holds(step_response([1.0] * 10, [1.0] * 10)) and step_response([3.0] * 10, [1.0] * 10).reached is None
    assert not holds(step_response([1.0] * 20 + [3.0] * 4, [1.0] * 24)), "in the band for long enough, but it overshoots"
    assert not holds(response_of(record("aer", 0, [0, 0], [4, 4], diverged="loss must be finite, got nan at step 3")))


def test_tables_from_records():
    """Hard pass@1: GRPO 0, 0.25 and AER 0.5, 1.0, so that the paired difference is 0.625 +- 12.706 * 0.125."""
    records = [
        record("grpo", 0, [0, 0], [4, 4]), record("grpo", 1, [1, 1], [4, 4]),
        record("aer", 0, [2, 2], [4, 4]), record("aer", 1, [4, 4], [4, 4]),
        record("fixed03", 0, [1, 1], [4, 4]), record("fixed03", 1, [2, 2], [4, 4]),
        record("fixed30", 0, [2, 2], [4, 4]), record("fixed30", 1, [0, 0], [4, 4], diverged="nan"),
    ]  # fmt: skip
    found = difference(records, "test", "hard pass@1", "aer", "grpo")
    assert (found.mean, found.half_width, found.count) == (pytest.approx(0.625), pytest.approx(12.7062 * 0.125, rel=1e-4), 2)
    assert best_method(records, "fixed") == "fixed03", "a run that diverged solves nothing"
    alone = record("fixed30", 0, [4, 4], [4, 4], setting="where only it was run")
    assert best_method([*records, alone], "fixed") == "fixed03", "the places of both count"
    with pytest.raises(ValueError, match=r"runs of methods 'fixed'\.\.\. at the same places, got fixed03, fixed30"):
        best_method([records[4], alone], "fixed")
    assert "| aer | 2 | 0.750 ± 3.177 |" in outcome_table(records, "test")
    assert "| aer | 2 | +0.625 ± 1.588 |" in paired_table(records, "test", "grpo")
    held = control_table([record("aer", s, [0, 0], [0, 0], entropy=[2.0] + [1.0] * 30) for s in range(3)])
    assert "| aer | all | 3 of 3 | 1.00, 1.00 |" in held
    assert pass_at([1, 0], samples=4, k=2) == pytest.approx(0.25)
    assert "| aer | 2 | 0.500 ± 0.000 | 1.000 ± 0.000 | 0.250 ± 0.000 | 0.750 ± 3.177 |" in generalization_table(records, "test")


def test_a_moving_target_is_judged_in_both_phases():
    """Entropy stays at 1; the target does so for 6 steps and is then 0.5: held before, far above it afterwards."""
    moving = record("aer", 0, [0, 0], [0, 0], entropy=[1.0] * 12)
    moving["curves"]["target"] = [1.0] * 6 + [0.5] * 6
    assert phases(moving) == {"constant target": slice(0, 6), "moving target": slice(6, None)}
    assert phases(record("aer", 0, [0, 0], [0, 0])) == {"": slice(None)}
    held = control_table([moving])
    assert (
        "| aer, constant target | all | 1 of 1 | 1.00, 1.00 |" in held
        and "| aer, moving target | all | 0 of 1 | 0.00, 0.00 | 2.00 |" in held
    )
    assert control_table([moving], by_setting=False).splitlines() == [line for n, line in enumerate(held.splitlines()) if n in (0, 1, 2, 4)]


def test_the_page_is_made_of_the_records(tmp_path):
    """Tables are replaced between their marks, of all runs or of the settings that begin so; prose stays."""
    records = [record(method, seed, [seed, 2], [4, 4], setting=setting)
               for method in ("grpo", "aer", "fixed03") for seed in (0, 1) for setting in ("tiny-a", "tiny-b", "other")]  # fmt: skip
    write_records(records, tmp_path / "raw.jsonl")
    (tmp_path / "raw.json").write_text('{"environment": {}, "policies": {"tiny-a": {"easy accuracy": 0.75}}}')
    page = "prose\n" + "".join(f"<!-- table: raw {kind} -->\nold\n<!-- end -->\n" for kind in (
        "start", "outcomes", "outcomes tiny", "places_aer", "places_fixed03", "tuned_aer", "against_grpo", "against_aer", "against_fixed", "generalization", "control", "held"))  # fmt: skip
    made = written(page, tmp_path)
    assert made.startswith("prose\n<!-- table: raw start -->\n| policy at the start | easy accuracy |") and "old" not in made
    assert "| aer | 6 |" in made and "| aer | 4 |" in made and "| method - aer | pairs |" in made and "| method - fixed03 | pairs |" in made
    assert "| aer, place | pairs |" in made and "| fixed03, place | pairs |" in made
    assert written(made, tmp_path) == made


def test_places_are_units_of_their_own(tmp_path):
    """AER is 0.25 ahead in the four runs of one place and 0.75 behind in the one of the other: 0.05 by runs, -0.25 by places."""
    records = [
        record(method, seed, [1, 1] if method == "aer" else [0, 0], [4, 4], setting="many")
        for method in ("grpo", "aer")
        for seed in range(4)
    ]
    records += [record("grpo", 0, [3, 3], [4, 4], setting="one"), record("aer", 0, [0, 0], [4, 4], setting="one")]
    assert list(by_place(records)) == ["many", "one"] and set(by_place([records[0], records[8] | {"hard_share": 0.2}])) == {
        "many, 50 % hard",
        "one, 20 % hard",
    }
    assert by_place([records[0] | {"lr_scale": 0.5}]).keys() == {"many, lr x 0.5"}
    assert across_places(records, "test", "hard pass@1", "aer", "grpo").mean == pytest.approx(-0.25)
    rows = places_table(records, "test", "aer", ["grpo"]).splitlines()
    assert rows[2].startswith("| many | 4 | **+0.250 ± 0.000** |") and rows[3].startswith("| one | 1 | -0.750 |")
    assert rows[4].startswith("| all runs | 5 | +0.050 ± 0.555 |") and rows[5].startswith("| places as units | 2 | -0.250 ± 6.353 |")
    better = {"many": "fixed10", "one": "fixed30"}
    fixed = [r | {"method": method, "right": {"validation": {"hard": [2 * (better[r["setting"]] == method)] * 2, "easy": [0, 0]}, "test": r["right"]["test"]}}
             for r in records if r["method"] == "grpo" for method in ("fixed10", "fixed30")]  # fmt: skip
    assert [(r["setting"], r["method"]) for r in tuned(fixed)] == [("many", TUNED)] * 4 + [("one", TUNED)]
    assert all(r["right"]["validation"]["hard"] == [2, 2] for r in tuned(fixed)), "the one that is best at its place"
    contrasts = forest.by_places(records, "aer", ["grpo"]) + forest.by_methods(records, "aer")
    assert [(c.row, c.series) for c in contrasts] == [
        *((row, "aer - grpo") for row in ("many", "one", "all 2 places")),
        ("grpo", "aer - what the row names"),
    ]
    forest.draw(contrasts, "test", tmp_path / "deep" / "forest.png")
    assert (tmp_path / "deep" / "forest.png").stat().st_size > 10_000


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, as they are drawn."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_intervals_are_drawn_where_they_lie(drawn, tmp_path):
    """Two runs, .125 and .375 ahead; a series a colour, one below the other in the row of its place."""
    records = [record(method, seed, [right, right], [4, 4]) for method, rights in (("grpo", (0, 0)), ("fixed10", (2, 2)), ("aer", (1, 2)))
               for seed, right in enumerate(rights)]  # fmt: skip
    forest.draw(forest.by_places(records, "aer", ["grpo", "fixed10"]), "test", tmp_path / "forest.png")
    (hard, *_) = drawn[0].axes
    assert hard.get_title() == "hard pass@1, difference" and [tick.get_text() for tick in hard.get_yticklabels()] == [
        "tiny",
        "all 1 places",
    ]
    for bars, mean, height in zip(hard.containers, (0.375, -0.125), (-0.15, 0.15), strict=True):
        line, _, (ends,) = bars.lines
        assert line.get_xdata() == pytest.approx([mean] * 2) and line.get_ydata() == pytest.approx([height, 1 + height])
        assert ends.get_segments()[0][:, 0] == pytest.approx([mean - 12.7062 * 0.125, mean + 12.7062 * 0.125], rel=1e-4)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["aer - grpo", "aer - fixed10"]


def test_curves_are_drawn_as_they_were_recorded(drawn, tmp_path):
    """A line a method: means over the runs that did not diverge; a line a run: smoothed entropy over its target, and the band."""
    records = [record("aer", 0, [1, 1], [4, 4]), record("aer", 1, [2, 2], [4, 4]), record("aer", 2, [4, 4], [4, 4], diverged="nan"),
               record("grpo", 0, [0, 0], [3, 3], target=None)]  # fmt: skip
    plots.outcomes(records, "test", tmp_path / "outcomes.png")
    hard, easy, entropy, coefficient = drawn[0].axes
    assert [line.get_label() for line in hard.lines] == ["aer", "grpo"]
    assert hard.lines[0].get_xdata()[0] == 1 and hard.lines[0].get_ydata()[0] == pytest.approx(0.375)
    assert easy.lines[1].get_ydata()[0] == 0.75 and list(coefficient.lines[0].get_ydata()) == [0.1] * 3
    assert list(entropy.lines[0].get_ydata()) == pytest.approx([2.0, 1.5, 4 / 3]) and entropy.get_ylim() == (0, 4)
    plots.step_responses(records[:2], tmp_path / "control.png")
    over_target, coefficients = drawn[1].axes
    assert [list(line.get_ydata()) for line in over_target.lines] == [pytest.approx([2.0, 1.5, 4 / 3])] * 2 and len(coefficients.lines) == 2
    assert over_target.patches[0].get_extents().transformed(over_target.transData.inverted()).intervaly == pytest.approx([0.8, 1.2])


def test_a_table_of_several_matrices_and_of_one_learning_rate(tmp_path):
    for name, scale, setting in (("raw", 1.0, "tiny"), ("other", 0.5, "tiny"), ("other", 2.0, "lrge")):
        records = read_records(tmp_path / f"{name}.jsonl") if (tmp_path / f"{name}.jsonl").exists() else []
        records += [record(method, 0, [1, 2], [4, 4], setting=setting) | {"lr_scale": scale} for method in ("grpo", "aer")]
        write_records(records, tmp_path / f"{name}.jsonl")

    def runs(what):
        return written(f"<!-- table: {what} -->\n<!-- end -->\n", tmp_path).splitlines()[-2].split("|")[2].strip()

    assert [runs(what) for what in ("raw+other against_grpo", "other against_grpo", "other against_grpo lr0.5")] == ["3", "2", "1"]
    assert [runs(what) for what in ("raw+other outcomes tiny", "raw+other outcomes tiny lr0.5", "other outcomes lrge")] == ["2", "1", "1"]
    assert [runs(what) for what in ("raw+other outcomes tiny+lrge", "raw+other outcomes lrge+none")] == ["3", "1"]


def test_conditions_are_written_once(study, tmp_path):
    matrix, cache = study.matrix("quick"), tmp_path / "policies"
    policy_folder(cache, study.tasks["tiny"]).mkdir(parents=True)
    (policy_folder(cache, study.tasks["tiny"]) / REPORT).write_text('{"easy accuracy": 0.75}')
    write_conditions(study, matrix, cache, tmp_path)
    written = (tmp_path / CONDITIONS).read_text()
    assert {"hardware", "torch", "commit", "date"} <= set(json.loads(written)["environment"])
    assert start_table(json.loads(written)).splitlines()[-1] == "| tiny | 0.7500 |"
    write_conditions(study, replace(matrix, jobs=[]), cache, tmp_path)
    assert (tmp_path / CONDITIONS).read_text() == written
    (policy_folder(cache, study.tasks["tiny"]) / REPORT).write_text('{"easy accuracy": 0.5}')
    with pytest.raises(ValueError, match="--cache must hold the policy of tiny that the runs"):
        write_conditions(study, matrix, cache, tmp_path)


def test_records_survive_a_file(tmp_path):
    records = [record("grpo", 0, [0, 0], [4, 4])]
    write_records(records, tmp_path / "raw" / "study.jsonl")
    assert read_records(tmp_path / "raw" / "study.jsonl") == json.loads(json.dumps(records))
    with pytest.raises(ValueError, match="must hold at least one finished run"):
        read_records(tmp_path / "raw")


@pytest.mark.parametrize(
    "change, message",
    [
        (("[matrices.quick]", "[matrices.other]"), "matrix must name one of other, got 'quick'"),
        (('methods = ["grpo", "aer"]', 'methods = ["ppo"]'), "methods must name one of grpo, aer, broken, got 'ppo'"),
        (("[methods.grpo]", "[methods.grpo"), "must hold the tables tasks, methods and matrices, got"),
    ],
)
def test_bad_files(tmp_path, capsys, change, message):
    (tmp_path / "bad.toml").write_text(QUICK.replace(*change))
    assert command.main(["quick", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "bad.toml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_a_result(study, tmp_path):
    job = Job("tiny", "broken", 0.5, 1.0, 0)
    policy = prepare(tmp_path / "policies", study.tasks["tiny"])
    assert "hard pass@64" in json.loads((policy / REPORT).read_text()), "with as many samples as the last policies"
    run_job(job, study.train_config(study.matrix("quick"), job, tmp_path / "run", policy), study.matrix("quick"))
    found = json.loads((tmp_path / "run" / DONE).read_text())
    assert "must be finite" in found["diverged"] and found["right"] == {}
