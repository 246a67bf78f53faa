"""AER's parts in every combination: which method has which, and what a part does in the mean over the others."""

import pytest

from study.config import Study
from study.factorial import ALONE, PARTS, combinations, contrasts, effect, factorial_table, method_with
from study.names import AER
from tests.study.samples import record


def test_the_matrix_has_every_combination():
    """Beside plain GRPO, by which failing is judged; a fixed coefficient without a limit is one method, whatever the target."""
    assert {method_with(parts) for parts in combinations()} | {"grpo"} == {job.method for job in Study.read().matrix("factorial").jobs}
    assert method_with(frozenset(PARTS)) == AER and method_with(frozenset({"settles"})) == method_with(frozenset()) == ALONE


def test_contrasts_differ_in_one_part():
    assert {part: len(list(contrasts(part))) for part in PARTS} == {"adapts": 8, "settles": 6, "anchored": 6, "limited": 8}
    assert (AER, f"{AER}_fixed") in contrasts("adapts") and (f"{AER}_unlimited", ALONE) in contrasts("adapts")
    assert (f"{AER}_fixed_constant", ALONE) in contrasts("limited")


def test_what_a_part_does():
    """With a rule a run solves half of the hard prompts, without one a quarter; of easy prompts all, but none where the target stays."""
    records = [
        record(method, seed, [2 if "adapts" in parts else 1] * 2, [4 * ("settles" in parts)] * 2, setting=setting)
        for parts in combinations()
        if (method := method_with(parts)) != ALONE
        for setting in "abc"
        for seed in (0, 1)
    ]
    records += [record(method, seed, [1, 1], [4, 4], setting=setting) for method in (ALONE, "grpo") for setting in "abc" for seed in (0, 1)]
    adapts = effect(records, list(contrasts("adapts")), "hard pass@1")
    assert (adapts.mean, adapts.count) == (pytest.approx(0.25), 3) and adapts.excludes_zero
    assert effect(records, list(contrasts("settles")), "easy pass@1").mean == pytest.approx(1.0)
    assert effect(records, list(contrasts("settles")), "hard pass@1").mean == 0
    rows = factorial_table(records).splitlines()[2:]
    assert rows[0] == "| adapts, settles, anchored, limited | 0.500 | 1.000 | 1.000 |  |  | 6 of 6 | 0 of 3 |"
    assert rows[-6].startswith("| none: a fixed .1 | 0.250 |") and rows[-5].startswith("| plain GRPO |")
    assert rows[-4].startswith("| *adapts: with - without, 8 pairs of rows* | **+0.250 ± 0.000** |")
    constant = next(row for row in rows if row.startswith("| adapts, anchored, limited |"))
    assert constant.endswith("| +0.000 ± 0.000 | **-1.000 ± 0.000** | 6 of 6 | 3 of 3 |")
