"""The differences that the page shows: which runs, which two methods, and how often each of them failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.failures import REFERENCE, failures, found
from study.measures import SHOWN
from study.places import TUNED, tuned
from study.records import Record, by_place, pair_of, place_of
from study.tables import difference_cells

Runs = Mapping[str, Sequence[Record]]
"""The records of each matrix."""


@dataclass(frozen=True)
class Where:
    """Some places of some matrices."""

    label: str
    matrices: str
    """As in `compare+robust`."""
    settings: tuple[str, ...] = ("",)
    """How the names of the settings begin."""
    places: tuple[str, ...] | None = None
    """Names of places; None is all."""

    def records(self, runs: Runs) -> list[Record]:
        """Return the records of these places."""
        found = [r for matrix in self.matrices.split("+") for r in runs[matrix] if r["setting"].startswith(self.settings)]
        return found if self.places is None else [record for name in self.places for record in by_place(found)[name]]


TWELVE = Where("all twelve", "allocation+robust_again+advantage_again")
AGAIN = Where("all twelve, other seeds", "temperature+temperature_robust+temperature_advantage")
UNDECIDED = Where("the six in which its form was not decided", "robust_again+advantage_again")
UNNAMED = Where(
    "the four that no step of its history names",
    "robust_again+advantage_again",
    places=("countdown-base, lr x 0.5", "countdown4-small, lr x 2", "countdown-drgrpo", "countdown4-drgrpo"),
)
LEADING = ("countdown4-small, lr x 0.5", "countdown4-drgrpo")
"""Where no fixed coefficient does well, which carries most of the lead over them."""

TEN = Where(
    "without Countdown-4 at half the learning rate and with undivided advantages",
    TWELVE.matrices,
    places=(
        *("countdown-small", "countdown4-small", "worked-small", "mixed-small", "mixed-fresh", "mixed-drgrpo"),
        *("countdown-base, lr x 0.5", "countdown-base, lr x 2", "countdown4-small, lr x 2", "countdown-drgrpo"),
    ),
)
ONE_KIND = Where("the nine with prompts of one kind", TWELVE.matrices, ("countdown", "worked"))
KINDS = Where("the three with prompts of different kinds", "allocation", ("mixed",))
MIXES = Where("not among the twelve: other mixes, 20 and 60 % hard prompts", "mixes_again")
LONG = Where("Mixed from the other warm-up, 480 steps for both", "kinds_long", ("mixed-fresh",))
LONG_WAITING = Where("Mixed, 480 steps for both", "kinds_long", ("mixed-small",))
SIX = Where("the six in which its form was decided", "allocation+presets")
SCALES = Where("Countdown-4, half the learning rate; undivided advantages", "scales+robust_again+advantage_again", places=LEADING)

TASKS = Where("the three tasks", "compare")
NINE = Where("nine with prompts of one kind", "compare+robust+advantage")
SEVEN = Where(
    "without Countdown-4 at half the learning rate and with undivided advantages",
    NINE.matrices,
    places=(
        *("countdown-small", "countdown4-small", "worked-small", "countdown-base, lr x 0.5", "countdown-base, lr x 2"),
        *("countdown4-small, lr x 2", "countdown-drgrpo"),
    ),
)
OTHER_MIXES = Where("other mixes, on which nothing was chosen", "mixes")
FRESH = Where("other warm-ups and seeds, on which nothing was chosen", "fresh")
LARGE = Where("22M parameters, on a GPU", "large")
UNSEEN = Where("other mixes, other warm-ups and 22M parameters together", "mixes+fresh+large")
TWENTY = Where("all twenty", "compare+robust+advantage+mixes+fresh+large")
EIGHTEEN = Where("the eighteen small ones of the twenty", "compare+robust+advantage+mixes+fresh")
ELSEWHERE = Where("not among the twenty: another processor, its own warm-ups, new seeds", "allocation", ("countdown", "worked"))
ALL_KINDS = Where("Mixed, all three sets of runs", "kinds+allocation+kinds_again", ("mixed",))
UNSOLVED = Where(SIX.label, "allocation")
THIRD_SET = Where("Mixed, the third set of runs", "kinds_again")
LATER_SETS = Where("Mixed, the second and third set of runs", "allocation+kinds_again", ("mixed",))
FIRST_SET = Where("Mixed, the first set of runs", "kinds", ("mixed",))
LONGER = Where("the three tasks, 480 steps for both", "collapse")

Claim = tuple[str, str, str, Where]
"""A difference in words, the two methods, and where."""

CLOCK = "aer_uniform_clock"
"""AER on the page: EXPLORE_THEN_SETTLE of the library, and the preset `countdown` of the trainer. AER-full there is `aer`."""

TOKENS = "token_targets_lower"
"""AER with a target of its own for each token."""

HEATS = {"hot115": "sampling at 1.15", "hot130": "sampling at 1.3", "hot150": "sampling at 1.5"}
"""Plain GRPO whose rollouts are hotter, in words."""

CLAIMS: dict[str, list[Claim]] = {
    "main": [
        ("AER - plain GRPO", CLOCK, "grpo", TWELVE),
        ("AER - a fixed 0.03, the best single coefficient", CLOCK, "fixed03", TWELVE),
        ("AER - a fixed 0.1", CLOCK, "fixed10", TWELVE),
        ("AER - a fixed 0.3", CLOCK, "fixed30", TWELVE),
        ("AER - the best of these three at each setting, by validation", CLOCK, TUNED, TWELVE),
    ],
    "again": [
        ("AER - plain GRPO", CLOCK, "grpo", AGAIN),
        *((f"AER - {words}", CLOCK, method, AGAIN) for method, words in HEATS.items()),
        ("targets for each token - plain GRPO", TOKENS, "grpo", AGAIN),
        ("targets for each token - AER", TOKENS, CLOCK, AGAIN),
    ],
    "aer": [
        *(("AER - plain GRPO", CLOCK, "grpo", where) for where in (UNDECIDED, UNNAMED, ONE_KIND, KINDS, MIXES, LONG)),
        *(("AER - a fixed 0.03", CLOCK, "fixed03", where) for where in (UNNAMED, ONE_KIND, KINDS)),
        *(("AER - a fixed 0.1", CLOCK, "fixed10", where) for where in (UNNAMED, ONE_KIND, KINDS, MIXES)),
        *(("AER - the tuned coefficient", CLOCK, TUNED, where) for where in (UNNAMED, TEN)),
    ],
    "full": [
        *(("AER-full - plain GRPO", "aer", "grpo", where) for where in (NINE, OTHER_MIXES, FRESH, LARGE, UNSEEN, TWENTY)),
        *(("AER-full - plain GRPO", "aer", "grpo", where) for where in (ELSEWHERE, ALL_KINDS, LONGER)),
        *(("AER-full - a fixed 0.1", "aer", "fixed10", where) for where in (NINE, SEVEN, UNSEEN, TWENTY)),
        ("AER-full - a fixed 0.03", "aer", "fixed03", NINE),
        ("AER-full - a fixed 0.3", "aer", "fixed30", NINE),
        ("AER-full - clip-higher", "aer", "clip_higher", TASKS),
    ],
    "rules": [
        ("the default - bang-bang, the same target", "aer_default", "bang_bang", TASKS),
        ("the default - the proportional rule, the same target", "aer_default", "proportional", TASKS),
        ("the default - plain GRPO", "aer_default", "grpo", NINE),
        ("the default - a fixed 0.1", "aer_default", "fixed10", NINE),
        ("the default - AER-full", "aer_default", "aer", NINE),
    ],
    "parts": [
        ("AER: the target stays at 1.2", f"{CLOCK}_constant", CLOCK, SIX),
        ("AER-full: the same", "aer_constant_target", "aer", NINE),
        ("AER: 2.4 nats for all tasks, in place of a share of the start", f"{CLOCK}_absolute", CLOCK, SIX),
        ("AER-full: the same", "aer_absolute_target", "aer", NINE),
        ("AER: a fixed 0.1 in place of the controller", f"{CLOCK}_fixed", CLOCK, SIX),
        ("AER: the same", f"{CLOCK}_fixed", CLOCK, SCALES),
        ("AER-full: the same", "aer_fixed_alpha", "aer", NINE),
        ("AER-full: no bonus for prompts that nobody solved", "aer_solved", "aer", UNSOLVED),
        ("AER-full: no limit on single prompts", "aer_any_surplus", "aer", NINE),
        ("AER-full: the same", "aer_any_surplus", "aer", FIRST_SET),
        ("AER-full: no weights by accuracy", "aer_uniform_weights", "aer", EIGHTEEN),
        ("AER-full: the same", "aer_uniform_weights", "aer", LATER_SETS),
        ("AER-full: settles by the clock", "aer_clock", "aer", EIGHTEEN),
    ],
    "prompts": [
        ("AER-full: neither limit nor weights", "aer_no_weights", "aer", EIGHTEEN),
        ("AER-full without weights: no limit either", "aer_no_weights", "aer_uniform_weights", EIGHTEEN),
        ("the same", "aer_no_weights", "aer_uniform_weights", THIRD_SET),
        ("AER-full: bonus and target for unsolved prompts alone", "aer_difficult", "aer", TASKS),
        ("the same", "aer_difficult", "aer", FRESH),
    ],
    "kinds": [
        ("AER - plain GRPO", CLOCK, "grpo", KINDS),
        ("AER-full - plain GRPO", "aer", "grpo", ALL_KINDS),
        ("AER-full without weights - plain GRPO", "aer_uniform_weights", "grpo", ALL_KINDS),
        ("AER-full for unsolved prompts alone - plain GRPO", "aer_difficult", "grpo", ALL_KINDS),
        ("AER-full without a limit - plain GRPO", "aer_any_surplus", "grpo", FIRST_SET),
        ("AER-full without limit and weights - plain GRPO", "aer_no_weights", "grpo", THIRD_SET),
        ("AER with a fixed 0.1 - plain GRPO", f"{CLOCK}_fixed", "grpo", Where(KINDS.label, SIX.matrices, ("mixed",))),
        ("AER-full without weights - plain GRPO", "aer_uniform_weights", "grpo", LONG_WAITING),
        ("AER - plain GRPO", CLOCK, "grpo", LONG),
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
        records += tuned(records) if theirs == TUNED else []
        cells = f"{difference_cells(records, split, SHOWN, ours, theirs)} {_count_cells(records, split, ours, theirs)} |"
        lines.append(f"| {contrast if contrast != before else ''} | {where.label} {cells}")
        before = contrast
    return "\n".join(lines) + "\n"


def _count_cells(records: Sequence[Record], split: str, ours: str, theirs: str) -> str:
    """Return the cells of how many runs of the pairs found the strategy, and at how many of their settings each method failed."""
    runs = [{pair_of(record): record for record in records if record["method"] == method} for method in (ours, theirs)]
    pairs = runs[0].keys() & runs[1].keys()
    paired = [[members[pair] for pair in pairs] for members in runs]
    places = {place for place, _ in pairs}
    others = [record for record in records if record["method"] == REFERENCE and place_of(record) in places]
    counted = [sum(found(run, split) for run in members) for members in paired]
    failed = [
        sum(failures([*members, *([] if method == REFERENCE else others)], method, split).values())
        for method, members in zip((ours, theirs), paired, strict=True)
    ]
    return f"{counted[0]}, {counted[1]} of {len(pairs)} | {failed[0]}, {failed[1]} of {len(places)}"
