"""The differences that the page shows: which runs, which two methods, and how often each of them failed."""

from __future__ import annotations

from collections.abc import Sequence

from study import where as at
from study.failures import failed, found
from study.measures import SHOWN
from study.names import AER, ANNEALED, FIXED, HEATS, TOKENS, WAITS
from study.places import TUNED, TUNED_APART, TUNED_FINELY, TUNINGS, tuned
from study.records import Record, pair_of
from study.tables import difference_cells
from study.where import Runs, Where

Claim = tuple[str, str, str, Where]
"""A difference in words, the two methods, and where."""

CLAIMS: dict[str, list[Claim]] = {
    "page": [
        ("AER - plain GRPO", AER, "grpo", at.TWELVE),
        ("AER - plain GRPO", AER, "grpo", at.AGAIN),
        ("AER - a fixed .03, the best single coefficient", AER, "fixed03", at.TWELVE),
        ("AER - a fixed .1", AER, "fixed10", at.TWELVE),
        ("AER - a fixed .1", AER, "fixed10", at.VOCABULARY),
        ("AER - bang-bang in its recipe", AER, "bang_bang_1", at.VOCABULARY),
        ("AER - sampling at 1.5, without a bonus", AER, "hot150", at.AGAIN),
        ("AER - the best of three coefficients at each setting, by validation", AER, TUNED, at.TWELVE),
        ("AER - the best of nine, by validation", AER, TUNED_FINELY, at.GRID),
        ("AER - the same, but each run chosen by the runs of the other seeds", AER, TUNED_APART, at.GRID),
    ],
    "main": [
        ("AER - plain GRPO", AER, "grpo", at.TWELVE),
        ("AER - a fixed 0.03, the best single coefficient", AER, "fixed03", at.TWELVE),
        ("AER - a fixed 0.1", AER, "fixed10", at.TWELVE),
        ("AER - a fixed 0.3", AER, "fixed30", at.TWELVE),
        ("AER - the best of these three at each setting, by validation", AER, TUNED, at.TWELVE),
    ],
    "again": [
        ("AER - plain GRPO", AER, "grpo", at.AGAIN),
        *((f"AER - {words}", AER, method, at.AGAIN) for method, words in HEATS.items()),
        ("targets for each token - plain GRPO", TOKENS, "grpo", at.AGAIN),
        ("targets for each token - AER", TOKENS, AER, at.AGAIN),
    ],
    "waits": [
        ("AER that waits - plain GRPO", WAITS, "grpo", at.WAITING),
        ("AER that waits - AER", WAITS, AER, at.WAITING),
    ],
    "grid": [
        *((f"AER - a {words}", AER, method, at.GRID) for method, words in FIXED.items()),
        *((f"AER - {words}", AER, method, at.GRID) for method, words in ANNEALED.items()),
        ("AER - the best of these at each setting, by validation", AER, TUNED_FINELY, at.GRID),
        ("AER - the same, but each run chosen by the runs of the other seeds", AER, TUNED_APART, at.GRID),
        ("targets for each token - the same", TOKENS, TUNED_APART, at.GRID),
    ],
    "policies": [
        (f"AER - {words}", AER, method, where)
        for method, words in {"grpo": "plain GRPO", "fixed03": "a fixed .03", "fixed10": "a fixed .1", "hot130": HEATS["hot130"]}.items()
        for where in at.POLICIES
    ],
    "aer": [
        *(("AER - plain GRPO", AER, "grpo", where) for where in (at.UNDECIDED, at.UNNAMED, at.ONE_KIND, at.KINDS, at.MIXES, at.LONG)),
        *(("AER - a fixed 0.03", AER, "fixed03", where) for where in (at.UNNAMED, at.ONE_KIND, at.KINDS)),
        *(("AER - a fixed 0.1", AER, "fixed10", where) for where in (at.UNNAMED, at.ONE_KIND, at.KINDS, at.MIXES)),
        *(("AER - the tuned coefficient", AER, TUNED, where) for where in (at.UNNAMED, at.TEN)),
    ],
    "full": [
        *(("AER-full - plain GRPO", "aer", "grpo", where) for where in (at.NINE, at.OTHER_MIXES, at.FRESH, at.LARGE, at.UNSEEN, at.TWENTY)),
        *(("AER-full - plain GRPO", "aer", "grpo", where) for where in (at.ELSEWHERE, at.ALL_KINDS, at.LONGER)),
        *(("AER-full - a fixed 0.1", "aer", "fixed10", where) for where in (at.NINE, at.SEVEN, at.UNSEEN, at.TWENTY)),
        ("AER-full - a fixed 0.03", "aer", "fixed03", at.NINE),
        ("AER-full - a fixed 0.3", "aer", "fixed30", at.NINE),
        ("AER-full - clip-higher", "aer", "clip_higher", at.TASKS),
    ],
    "rules": [
        ("the default - bang-bang, the same target", "aer_default", "bang_bang", at.TASKS),
        ("the default - the proportional rule, the same target", "aer_default", "proportional", at.TASKS),
        ("the default - plain GRPO", "aer_default", "grpo", at.NINE),
        ("the default - a fixed 0.1", "aer_default", "fixed10", at.NINE),
        ("the default - AER-full", "aer_default", "aer", at.NINE),
    ],
    "parts": [
        ("AER: the target stays at 1.2", f"{AER}_constant", AER, at.SIX),
        ("AER-full: the same", "aer_constant_target", "aer", at.NINE),
        ("AER: 2.4 nats for all tasks, in place of a share of the start", f"{AER}_absolute", AER, at.SIX),
        ("AER-full: the same", "aer_absolute_target", "aer", at.NINE),
        ("AER: a fixed 0.1 in place of the controller", f"{AER}_fixed", AER, at.SIX),
        ("AER: the same", f"{AER}_fixed", AER, at.SCALES),
        ("AER-full: the same", "aer_fixed_alpha", "aer", at.NINE),
        ("AER-full: no bonus for prompts that nobody solved", "aer_solved", "aer", at.UNSOLVED),
        ("AER-full: no limit on single prompts", "aer_any_surplus", "aer", at.NINE),
        ("AER-full: the same", "aer_any_surplus", "aer", at.FIRST_SET),
        ("AER-full: no weights by accuracy", "aer_uniform_weights", "aer", at.EIGHTEEN),
        ("AER-full: the same", "aer_uniform_weights", "aer", at.LATER_SETS),
        ("AER-full: settles by the clock", "aer_clock", "aer", at.EIGHTEEN),
    ],
    "prompts": [
        ("AER-full: neither limit nor weights", "aer_no_weights", "aer", at.EIGHTEEN),
        ("AER-full without weights: no limit either", "aer_no_weights", "aer_uniform_weights", at.EIGHTEEN),
        ("the same", "aer_no_weights", "aer_uniform_weights", at.THIRD_SET),
        ("AER-full: bonus and target for unsolved prompts alone", "aer_difficult", "aer", at.TASKS),
        ("the same", "aer_difficult", "aer", at.FRESH),
    ],
    "kinds": [
        ("AER - plain GRPO", AER, "grpo", at.KINDS),
        ("AER-full - plain GRPO", "aer", "grpo", at.ALL_KINDS),
        ("AER-full without weights - plain GRPO", "aer_uniform_weights", "grpo", at.ALL_KINDS),
        ("AER-full for unsolved prompts alone - plain GRPO", "aer_difficult", "grpo", at.ALL_KINDS),
        ("AER-full without a limit - plain GRPO", "aer_any_surplus", "grpo", at.FIRST_SET),
        ("AER-full without limit and weights - plain GRPO", "aer_no_weights", "grpo", at.THIRD_SET),
        ("AER with a fixed 0.1 - plain GRPO", f"{AER}_fixed", "grpo", Where(at.KINDS.label, at.SIX.matrices, ("mixed",))),
        ("AER-full without weights - plain GRPO", "aer_uniform_weights", "grpo", at.LONG_WAITING),
        ("AER - plain GRPO", AER, "grpo", at.LONG),
    ],
}  # fmt: skip


def claims_table(runs: Runs, name: str, split: str) -> str:
    """Return the differences of a list of CLAIMS, and how often each of the two found the strategy and failed; a contrast is named where it
    changes."""
    heads = ["contrast", "where", "pairs", "settings", *SHOWN, "runs that found", "settings failed"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    before = ""
    for contrast, ours, theirs, where in CLAIMS[name]:
        records = where.records(runs)
        records += tuned(records, theirs) if theirs in TUNINGS else []
        cells = f"{difference_cells(records, split, SHOWN, ours, theirs)} {_count_cells(records, split, ours, theirs)} |"
        lines.append(f"| {contrast if contrast != before else ''} | {where.label} {cells}")
        before = contrast
    return "\n".join(lines) + "\n"


def _count_cells(records: Sequence[Record], split: str, ours: str, theirs: str) -> str:
    """Return the cells of how many runs of the pairs found the strategy, and at how many of their settings each method failed."""
    runs = [{pair_of(record): record for record in records if record["method"] == method} for method in (ours, theirs)]
    pairs = runs[0].keys() & runs[1].keys()
    paired = [[members[pair] for pair in pairs] for members in runs]
    counted = [sum(found(run, split) for run in members) for members in paired]
    lost = [failed(members, records, split) for members in paired]
    return f"{counted[0]}, {counted[1]} of {len(pairs)} | {lost[0]}, {lost[1]} of {len({place for place, _ in pairs})}"
