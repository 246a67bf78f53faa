"""From records to statistics, tables and the page."""

import math

import pytest

from aer_train.band import SPAN, step_response, trailing_mean
from study import forest
from study.control import holds, phases, response_of
from study.held_out import pass_at
from study.page import written
from study.places import TUNED, across_places, places_table, tuned
from study.reach import reach_table
from study.records import by_place, read_records, write_records
from study.statistics import estimate, paired, t_cdf, t_quantile
from study.tables import best_method, control_table, difference, generalization_table, outcome_table, paired_table
from study.tiers import tier_table
from tests.study.samples import record


def test_tier_table():
    """Hard prompts at 3 nats of 2 at the start with weights, at 2.8 without; what lies outside the steps of the search does not count."""
    record = {"setting": "a", "hard_share": 0.5, "lr_scale": 1.0, "curves": {"per_response": [2.0] * 80}}

    def run(method, seed, hard):
        tiers = {"easy_entropy": [9.0] * 10 + [2.0] * 50 + [9.0] * 20, "hard_entropy": [9.0] * 10 + [hard] * 49 + [None] + [9.0] * 20}
        return record | {"method": method, "seed": seed, "curves": record["curves"] | tiers}

    text = tier_table([run("aer", 0, 3.0), run("aer", 1, 3.2), run("aer_uniform_weights", 0, 2.8), run("aer_uniform_weights", 1, 3.0)])
    assert "| aer, a | 2 | 1.000 ± 0.000 | 1.550 ± 0.635 |" in text
    assert text.endswith("| aer - aer_uniform_weights | 2 | +0.000 ± 0.000 | **+0.100 ± 0.000** |\n")


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
