"""What a method holds that does not try to: the entropy of other methods, judged by the targets of one.

A target that moves down as entropies do is held by many; how many says what a controller adds.
"""

from __future__ import annotations

from collections.abc import Sequence

from study.control import holds, phases, response_to
from study.records import Record, pair_of
from study.tables import by_method


def chance_table(records: Sequence[Record], ours: str) -> str:
    """In how many pairs of runs the entropy of each method would have held the target of `ours`, phase by phase."""
    targets = {pair_of(record): record for record in records if record["method"] == ours}
    names = list(dict.fromkeys(name for record in targets.values() for name in phases(record)))
    lines = [
        f"| entropy of, by the target of {ours} | pairs | {' | '.join(name or 'all steps' for name in names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for method, runs in by_method(records):
        pairs = [(run, targets[pair_of(run)]) for run in runs if pair_of(run) in targets]
        if pairs:
            cells = [str(sum(_held(*pair, name) for pair in pairs if name in phases(pair[1]))) for name in names]
            lines.append(f"| {method} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _held(record: Record, target: Record, phase: str) -> bool:
    """Whether a run's entropy held another's target, as the quantity that the other one's controller held."""
    curves = target["curves"]
    quantity = next(name for name in ("entropy", "per_response", "controlled") if curves[name] == curves["controlled"])
    return holds(response_to(record, target, quantity, phases(target)[phase]))
