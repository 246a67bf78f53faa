"""From records to statistics, tables and the page."""

import math
import re

import pytest

from aer_train.monitor.band import SPAN, step_response, trailing_mean
from study import claims, forest
from study.chance import chance_table
from study.claims import claims_table
from study.control import holds, phases, response_of
from study.evaluate import pass_at
from study.figures import write_figures
from study.grid import HEADS, grid_table
from study.intervals import counts, difference, difference_of_runs, mean
from study.measures import measured
from study.page import read_results, written
from study.places import TUNED, TUNED_APART, TUNED_FINELY, places_table, tuned
from study.reach import reach_table
from study.records import by_place, read_records, write_records
from study.statistics import estimate, t_cdf, t_quantile
from study.tables import best_method, control_table, difference_cell, generalization_table, outcome_table, paired_table
from study.temperatures import temperature_table
from study.tiers import tier_table
from study.where import Where
from tests.study.samples import record

HARD = measured("test", "hard pass@1")
HEADS_OF_TABLE = ["setting", *HEADS]


def test_temperature_table():
    """At .7 AER solves all of a hard prompt's samples, at 1 half of them; one greedy response has no pass@16, and validation no column."""
    hard = {"aer": {"test": [2, 2], "test at 0.7": [4, 4], "test at 0": [4, 0]}}
    hard["grpo"] = {split: [0, 0] for split in hard["aer"]}
    runs = []
    for method in ("grpo", "aer"):
        splits = {split: {"hard": right, "easy": [4, 0]} for split, right in hard[method].items()}
        made = [record(method, seed, hard=(0, 0), easy=(4, 0)) for seed in (0, 1)]
        runs += [run | {"right": {"validation": run["right"]["validation"]} | splits} for run in made]
    head, _, *rows = temperature_table(runs, "test").splitlines()
    assert head == "| method | measure | at 0 | at 0.7 | at 1 |"
    assert rows[3] == "| aer | hard pass@1 | 0.500 | 1.000 | 0.500 |"
    assert rows[4] == "|  | hard pass@16 |  | 1.000 | 1.000 |"
    assert rows[5] == "|  | easy pass@1 | 0.500 | 0.500 | 0.500 |"
    head, _, *rows = temperature_table(runs, "test", "grpo").splitlines()
    assert head.startswith("| method - grpo |") and len(rows) == 3
    assert rows[0].replace("**", "") == "| aer | hard pass@1 | +0.500 ± 0.000 | +1.000 ± 0.000 | +0.500 ± 0.000 |"


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
    assert estimate([0.3, 0.3]).half_width == 0.0 and math.isnan(estimate([0.3]).half_width)


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
    found = difference(records, HARD, "aer", "grpo")
    assert (found.mean, found.half_width, found.count) == (pytest.approx(0.625), pytest.approx(12.7062 * 0.125, rel=1e-4), 2)
    assert best_method(records, "fixed") == "fixed03", "a run that diverged solves nothing"
    alone = record("fixed30", 0, [4, 4], [4, 4], setting="where only it was run")
    assert best_method([*records, alone], "fixed") == "fixed03", "the places of both count"
    with pytest.raises(ValueError, match=r"runs of methods 'fixed'\.\.\. at the same places, got fixed03, fixed30"):
        best_method([records[4], alone], "fixed")
    assert "| aer | 2 | 1, runs as units | 0.750 ± 3.177 |" in outcome_table(records, "test")
    assert "| aer | 2 | 1, runs as units | +0.625 ± 1.588 |" in paired_table(records, "test", "grpo")
    held = control_table([record("aer", s, [0, 0], [0, 0], entropy=[2.0] + [1.0] * 30) for s in range(3)])
    assert "| aer | all | 3 of 3 | 1.00, 1.00 |" in held
    assert pass_at([1, 0], samples=4, k=2) == pytest.approx(0.25)
    assert "| aer | 2 | 1, runs as units | 0.500 ± 0.000 | 1.000 ± 0.000 | 0.250 ± 0.000 | 0.750 ± 3.177 |" in generalization_table(
        records, "test"
    )


def test_what_moves_no_coefficient_has_none_in_the_table():
    """As STARE and MAI's clip, which hold a target by other means; beside AER with a coefficient of .1."""
    ours, other = (record(method, 0, [0, 0], [0, 0], entropy=[1.0] * 30) for method in ("aer", "stare"))
    other["curves"] |= {"coef": [None] * 30}
    rows = control_table([ours, other]).splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["0.1 |", "0.1 |", "- |", "- |"]


def test_a_matrix_of_which_every_run_failed_has_a_table_without_rows_and_no_figure(tmp_path):
    write_figures([], tmp_path, "quick")
    assert not list(tmp_path.iterdir())
    assert [len(table.splitlines()) for table in (outcome_table([], "test"), paired_table([], "test", "grpo"), control_table([]))] == [
        2
    ] * 3


@pytest.mark.parametrize(("samples", "names"), [(4, [1]), (16, [1, 16]), (64, [1, 16, 64])])
def test_a_table_names_no_more_samples_than_there_were(samples, names):
    records = [record(method, 0, [2, 2], [1, 3]) | {"samples": samples} for method in ("grpo", "aer")]
    for table in (outcome_table(records, "test"), paired_table(records, "test", "grpo")):
        assert [int(k) for k in re.findall(r"hard pass@(\d+)", table.splitlines()[0])] == names


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
    assert control_table([moving], places=False).splitlines() == [line for n, line in enumerate(held.splitlines()) if n in (0, 1, 2, 4)]


def test_the_page_is_made_of_the_records(tmp_path):
    """Tables are replaced between their marks, of all runs or of the settings that begin so; prose stays."""
    records = [record(method, seed, [seed, 2], [4, 4], setting=setting)
               for method in ("grpo", "aer", "fixed03") for seed in (0, 1) for setting in ("tiny-a", "tiny-b", "other")]  # fmt: skip
    write_records(records, tmp_path / "raw.parquet")
    (tmp_path / "raw.json").write_text('{"environment": {}, "policies": {"tiny-a": {"easy accuracy": 0.75}}}')
    page = "prose\n" + "".join(f"<!-- table: raw {kind} -->\nold\n<!-- end -->\n" for kind in (
        "start", "outcomes", "outcomes tiny", "places_aer", "places_fixed03", "tuned_aer", "chance_aer", "against_grpo", "against_aer", "against_fixed", "generalization", "control", "held"))  # fmt: skip
    runs = read_results(tmp_path)
    made = written(page, runs, tmp_path)
    assert made.startswith("prose\n<!-- table: raw start -->\n| policy at the start | easy accuracy |") and "old" not in made
    assert (
        "| aer | 6 | 3 |" in made
        and "| aer | 4 | 2, runs as units |" in made
        and "| method - aer | pairs |" in made
        and "| method - fixed03 | pairs |" in made
    )
    assert "| aer, setting | pairs |" in made and "| fixed03, setting | pairs |" in made
    assert "| entropy of, by the target of aer | pairs | all steps |\n|---|---|---|\n| grpo | 6 | 0 |" in made
    assert written(made, runs, tmp_path) == made


def runs_at(setting, ahead, seeds):
    """Pairs of runs at a place; AER is ahead by as many right samples of the 4 of each hard prompt, GRPO gets 1."""
    return [record(method, seed, [1 + more, 1 + more], [4, 4], setting=setting) for method, more in (("grpo", 0), ("aer", ahead)) for seed in range(seeds)]  # fmt: skip


def test_the_units_of_an_interval_are_places():
    """AER is .25 ahead in five runs of one place, 0 in one run of another and .5 in one of a third: of these places the mean is .25."""
    records = [*runs_at("many", 1, seeds=5), *runs_at("none", 0, seeds=1), *runs_at("half", 2, seeds=1)]
    found = difference(records, HARD, "aer", "grpo")
    assert (found.mean, found.half_width, found.count) == (pytest.approx(0.25), pytest.approx(4.302653 * 0.25 / math.sqrt(3), rel=1e-5), 3)
    assert difference_of_runs(records, HARD, "aer", "grpo").mean == pytest.approx((5 * 0.25 + 0.5) / 7)
    assert mean([r for r in records if r["method"] == "aer"], HARD).mean == pytest.approx(0.5) and counts(records, "aer", "grpo") == (7, 3)
    few = [*runs_at("many", 1, seeds=5), *runs_at("half", 2, seeds=1)]
    assert difference(few, HARD, "aer", "grpo") == difference_of_runs(few, HARD, "aer", "grpo"), "two places say nothing about a third"
    lonely = [r for r in records if (r["method"], r["seed"]) not in (("grpo", 0), ("aer", 1))]
    assert counts(lonely, "aer", "grpo") == (3, 1), "a run without a partner, and a place without a pair, do not count"
    with pytest.raises(ValueError, match="aer and grpo must have runs at the same places with the same seeds to be compared, got none"):
        difference(lonely[-2:], HARD, "aer", "grpo")


def test_a_difference_is_bold_if_places_and_runs_show_it():
    """AER is .25 ahead in every run of three places; in one run of four of each, so that places agree by chance; far ahead at two of three."""
    agree = [r for name in "abc" for r in runs_at(name, 1, seeds=4)]
    assert difference_cell(agree, HARD, "aer", "grpo") == "**+0.250 ± 0.000**"
    right = {(method, seed): 4 * (method == "aer" and seed == 3) for method in ("aer", "grpo") for seed in range(4)}
    chance = [r | {"right": {"test": {"hard": [right[r["method"], r["seed"]]] * 2}}} for r in agree]
    assert difference(chance, HARD, "aer", "grpo").excludes_zero and difference_cell(chance, HARD, "aer", "grpo") == "+0.250 ± 0.000"
    one_behind = [*runs_at("a", 2, seeds=9), *runs_at("b", 2, seeds=9), *runs_at("c", -1, seeds=9)]
    assert difference_of_runs(one_behind, HARD, "aer", "grpo").excludes_zero
    assert difference_cell(one_behind, HARD, "aer", "grpo") == "+0.250 ± 1.076"


def test_places_one_by_one(tmp_path):
    """AER is 0.25 ahead in the four runs of one place and 0.75 behind in the one of the other."""
    records = [*runs_at("many", 1, seeds=4), *runs_at("one", -1, seeds=1)]
    assert list(by_place(records)) == ["many", "one"] and set(by_place([records[0], records[8] | {"hard_share": 0.2}])) == {
        "many, 50 % hard",
        "one, 20 % hard",
    }
    assert by_place([records[0] | {"lr_scale": 0.5}]).keys() == {"many, lr x 0.5"}
    rows = places_table(records, "test", "aer", ["grpo"]).splitlines()
    assert rows[2].startswith("| many | 4 | **+0.250 ± 0.000** |") and rows[3].startswith("| one | 1 | -0.250 |")
    assert rows[4].startswith("| runs as units | 5 | +0.150 ± 0.278 |") and len(rows) == 5
    rows = places_table([*records, *runs_at("last", 3, seeds=1)], "test", "aer", ["grpo"]).splitlines()
    assert rows[6].startswith("| 3 settings as units | 6 | +0.250 ± 1.242 |")
    better = {"many": "fixed10", "one": "fixed30"}
    fixed = [r | {"method": method, "right": {"validation": {"hard": [2 * (better[r["setting"]] == method)] * 2, "easy": [0, 0]}, "test": r["right"]["test"]}}
             for r in records if r["method"] == "grpo" for method in ("fixed10", "fixed30")]  # fmt: skip
    assert [(r["setting"], r["method"]) for r in tuned(fixed)] == [("many", TUNED)] * 4 + [("one", TUNED)]
    assert all(r["right"]["validation"]["hard"] == [2, 2] for r in tuned(fixed)), "the one that is best at its place"
    contrasts = forest.by_places(records, "aer", ["grpo"]) + forest.by_methods(records, "aer")
    assert [(c.row, c.series) for c in contrasts] == [
        *((row, "aer - grpo") for row in ("many", "one", "all 2 settings")),
        ("grpo", "aer - what the row names"),
    ]
    forest.save_forest(contrasts, "test", tmp_path / "deep" / "forest.png")
    assert (tmp_path / "deep" / "forest.png").stat().st_size > 10_000


def test_the_fine_search_takes_the_best_mean_of_both_tiers_on_validation():
    """Of 4 samples .05 solves 2 of hard and 3 of easy prompts on validation; .2 solves more hard ones, and fewer of both together. A fixed
    .1 that is best but lacks a seed of the others counts at the seeds that all have. On test prompts, which are not asked, all differ."""
    records = []
    for method in HEADS:
        hard, easy = {"fixed05": (2, 3), "fixed20": (3, 1)}.get(method, (1, 2))
        for seed in (0, 1):
            made = record(method, seed, [0, 0], [4, 4]) | {"setting": "countdown-small"}
            made["right"] = {"validation": {"hard": [hard] * 2, "easy": [easy] * 2}, "test": {"hard": [seed, hard], "easy": [easy] * 2}}
            records.append(made)
    late = [record(method, 9, [4, 4], [4, 4], setting="countdown-small") for method in (*HEADS, "aer")][1:]
    rows = {line.split(" | ")[0].strip("| "): line for line in grid_table([*records, *late]).splitlines()}
    assert rows["countdown-small"].count("**") == 2 and "| **.312 / .750** |" in rows["countdown-small"]
    assert rows["countdown-small"].endswith("| .312 / .750 | .312 / .750 |")
    assert rows["runs that found"].endswith("| 2 of 2 | 2 of 2 |") and rows["score on validation"].endswith("| 0.625 | 0.625 |")
    assert rows["settings failed"].split(" | ")[HEADS_OF_TABLE.index("fixed20")] == "1 of 1", "it loses a quarter of the easy prompts"
    assert [r["method"] for r in tuned(records, TUNED_FINELY)] == [TUNED_FINELY] * 2


def test_a_search_by_the_other_seeds_does_not_take_a_run_for_its_luck():
    """Each of two coefficients has luck with one seed, and .1 a little more of it: the search takes .1 for both seeds. By the other seed it
    takes for each seed the one that has luck with the other one."""
    records = []
    for method, lucky, amount in (("fixed03", 0, 2), ("fixed10", 1, 3)):
        records += [record(method, seed, [amount * (seed == lucky)] * 2, [4, 4]) for seed in (0, 1)]
    for method in HEADS:
        if method not in ("fixed03", "fixed10"):
            records += [record(method, seed, [0, 0], [4, 4]) for seed in (0, 1)]
    assert [r["right"]["test"]["hard"][0] for r in tuned(records, TUNED_FINELY)] == [0, 3]
    assert [(r["seed"], r["right"]["test"]["hard"][0]) for r in tuned(records, TUNED_APART)] == [(1, 0), (0, 0)]
    assert {r["method"] for r in tuned(records, TUNED_APART)} == {TUNED_APART}
    alone = [*records, record("grpo", 9, [4, 4], [4, 4])]
    assert {r["seed"] for search in (TUNED_FINELY, TUNED_APART) for r in tuned(alone, search)} == {0, 1}, "what all of them have"


def test_claims_name_their_runs(monkeypatch):
    """A row has the pairs of its matrices, settings and places alone; a contrast is named once. Of 4 samples AER solves 2, 3, 4 or 1 and GRPO
    1, which is more than .05, so that all find it; where easy prompts are lost a method fails."""
    runs = {
        "first": [*runs_at("tiny-a", 1, seeds=2), *runs_at("tiny-b", 2, seeds=1), *runs_at("other", 3, seeds=1)],
        "second": runs_at("tiny-c", 0, seeds=3),
    }
    where = [Where("all", "first+second"), Where("tiny", "first", ("tiny",)), Where("one", "first+second", places=("tiny-c", "other"))]
    monkeypatch.setitem(claims.CLAIMS, "raw", [("plain GRPO", "aer", "grpo", place) for place in where])
    rows = claims_table(runs, "raw", "test").splitlines()[2:]
    assert [row.split("|")[1:5] for row in rows] == [[" plain GRPO ", " all ", " 7 ", " 4 "], ["  ", " tiny ", " 3 ", " 2, runs as units "],
                                                     ["  ", " one ", " 4 ", " 2, runs as units "]]  # fmt: skip
    assert "| +0.375 ± 0.514 |" in rows[0] and "| +0.333 ± 0.359 |" in rows[1]
    assert [row.split("|")[-3:-1] for row in rows] == [
        [" 7, 7 of 7 ", " 0, 0 of 4 "],
        [" 3, 3 of 3 ", " 0, 0 of 2 "],
        [" 4, 4 of 4 ", " 0, 0 of 2 "],
    ]
    runs["first"][-1]["right"]["test"] = {"hard": [0, 0], "easy": [3, 3]}
    runs["second"].append(record("aer", 9, [0, 0], [0, 0], setting="tiny-c"))
    counted = [row.split("|")[-3:-1] for row in claims_table(runs, "raw", "test").splitlines()[2:]]
    assert counted[0] == [" 6, 7 of 7 ", " 1, 0 of 4 "] and counted[2] == [" 3, 4 of 4 ", " 1, 0 of 2 "], (
        "a run without a partner does not count"
    )
    assert "| plain GRPO | all | 7 | 4 |" in written("<!-- table: claims raw -->\n<!-- end -->\n", runs)
    with pytest.raises(KeyError, match="tiny-d"):
        Where("none", "first", places=("tiny-d",)).records(runs)


def test_what_is_held_by_chance():
    """AER's target is 1.0 for 10 steps and then .5: a run that stays at 1 holds the first phase, one at .5 the second; a token's entropy does not
    count where that of a response is held; a run without a partner does not count."""

    def at(method, seed, entropy, token=9.0):
        made = record(method, seed, [0, 0], [0, 0], entropy=entropy)
        made["curves"] |= {"per_response": list(entropy), "entropy": [token] * len(entropy), "target": [1.0] * 10 + [0.5] * 10}
        return made

    ours = [at("aer", seed, [1.0] * 10 + [0.5] * 10) for seed in (0, 1)]
    others = [
        at("grpo", 0, [1.0] * 20),
        at("grpo", 1, [0.5] * 20),
        at("grpo", 2, [1.0] * 20),
        at("grpo", 1, [0.5] * 20) | {"method": "nan", "diverged": "x"},
    ]
    rows = chance_table([*ours, *others, at("fixed", 7, [1.0] * 20)], "aer").splitlines()
    assert rows[0] == "| entropy of, by the target of aer | pairs | constant target | moving target |"
    assert rows[2:] == ["| aer | 2 | 2 | 2 |", "| grpo | 2 | 1 | 1 |", "| nan | 1 | 0 | 0 |"]


def test_a_table_of_several_matrices_and_of_one_learning_rate(tmp_path):
    for name, scale, setting in (("raw", 1.0, "tiny"), ("other", 0.5, "tiny"), ("other", 2.0, "lrge")):
        records = read_records(tmp_path / f"{name}.parquet") if (tmp_path / f"{name}.parquet").exists() else []
        records += [record(method, 0, [1, 2], [4, 4], setting=setting) | {"lr_scale": scale} for method in ("grpo", "aer")]
        write_records(records, tmp_path / f"{name}.parquet")

    def runs(what):
        return written(f"<!-- table: {what} -->\n<!-- end -->\n", read_results(tmp_path)).splitlines()[-2].split("|")[2].strip()

    assert [runs(what) for what in ("raw+other against_grpo", "other against_grpo", "other against_grpo lr0.5")] == ["3", "2", "1"]
    assert [runs(what) for what in ("raw+other outcomes tiny", "raw+other outcomes tiny lr0.5", "other outcomes lrge")] == ["2", "1", "1"]
    assert [runs(what) for what in ("raw+other outcomes tiny+lrge", "raw+other outcomes lrge+none")] == ["3", "1"]
