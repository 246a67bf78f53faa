"""Places of matrices by name: where the differences of the pages are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.records import Record, by_place

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
WAITING = Where(AGAIN.label, f"{AGAIN.matrices}+waiting+waiting_robust+waiting_advantage")
GRID = Where("all twelve, seeds 63 to 65", f"{AGAIN.matrices}+grid+grid_robust+grid_advantage")
VOCABULARY = Where("17 to 16,017 symbols", "vocabulary")

POLICIES = (
    *(Where(name, "policies", (f"{setting}-policies",)) for setting, name in (("countdown", "Countdown-3"), ("countdown4", "Countdown-4"))),
    *(Where("Mixed", "policies", ("mixed-policies",)), Where("all three", "policies")),
)

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
