"""Records survive their file, whatever a run left in them."""

import json
import math
import random

import pytest

from study.digits import rank, ranked, rounded
from study.records import CURVES, read_records, write_records
from tests.study.samples import record

RANDOM = random.Random(0)


def drawn(steps, missing=0.0):
    """A curve of noise over many decades, of both signs."""
    values = [rounded(RANDOM.choice((-1, 1)) * 10 ** RANDOM.uniform(-12, 2)) for _ in range(steps)]
    return [None if RANDOM.random() < missing else value for value in values]


def full(method, steps=20, **changes):
    """A record as `summarize` leaves it, with curves that follow from others but for rounding."""
    curves = {name: drawn(steps) for name in CURVES}
    curves["per_response"] = [rounded(e * length) for e, length in zip(curves["entropy"], curves["length"], strict=True)]
    curves["controlled"] = list(curves["per_response"])
    return record(method, 0, [0, 4], [3, 200]) | {"steps": steps, "curves": curves, "seconds": 12.3} | changes


KINDS = {
    "plain": lambda: full("aer"),
    "one that holds the entropy of a token": lambda: (r := full("aer")) | {"curves": r["curves"] | {"controlled": r["curves"]["entropy"]}},
    "one that holds neither": lambda: (r := full("aer")) | {"curves": r["curves"] | {"controlled": drawn(20)}},
    "without a target": lambda: (r := full("grpo")) | {"curves": r["curves"] | {"target": [None] * 20}},
    "curves with gaps": lambda: full("aer") | {"curves": {name: drawn(20, missing=0.3) for name in CURVES}},
    "few curves": lambda: full("aer") | {"curves": {name: drawn(20) for name in ("per_response", "target", "coef")}},
    "no step": lambda: full("aer", steps=0),
    "not evaluated": lambda: full("aer", right={}),
    "one split": lambda: full("aer", right={"test": {"easy": [1, 0], "hard": [0]}}),
    "diverged": lambda: full("fixed", right={}, diverged="loss must be finite", curves=full("fixed")["curves"] | {"coef": [1e30] * 20}),
    "with what a bonus reached": lambda: full("aer", reach={"10": {"easy": {"easy": 0.123456, "hard": -1.0}, "hard": {"easy": 0.0, "hard": 2.0}}}),
    "with the time of its training": lambda: full("aer", training_cpu=20.1),
    "without its time": lambda: {key: value for key, value in full("aer").items() if key != "seconds"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_survives_alone_and_among_others(tmp_path, kind):
    """Every value, its type and every key; of each kind, also where the records beside it have other keys, whichever comes first."""
    one, others = KINDS[kind](), [made() for made in KINDS.values()]
    for records in ([one], [one, *others], [*others, one]):
        write_records(records, tmp_path / "raw" / "study.parquet")
        found = read_records(tmp_path / "raw" / "study.parquet")
        assert found == records and [as_text(r) for r in found] == [as_text(r) for r in records]


def as_text(found):
    """JSON tells 1 from 1.0."""
    return json.dumps(found, sort_keys=True)


def test_what_a_file_cannot_keep_is_refused(tmp_path):
    many_digits = full("aer") | {"curves": {"entropy": [0.12345]}}
    another_key = full("aer") | {"reach": {"10": {"easy": {"easy": 1.0}}}}
    for records in ([many_digits], [another_key, full("aer", reach={"20": {"easy": {"easy": 1.0}}})]):
        with pytest.raises(ValueError, match=r"records must be read from .*study\.parquet as they are, got some"):
            write_records(records, tmp_path / "study.parquet")
        assert not (tmp_path / "study.parquet").exists()


def test_a_missing_file_says_so(tmp_path):
    for missing in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(ValueError, match=f"must hold at least one finished run, got {missing}$"):
            read_records(missing)


def test_numbers_of_four_digits_are_ranked():
    """No number has another's rank, none is left out, and neighbours are neighbours."""
    line = [-1.001, -1.0, -0.9999, -5e-324, 0.0, 5e-324, 0.09999, 0.1, 0.1001, 9.999, 10.0, 1.797e308]
    assert [rank(value) for value in line] == sorted({rank(value) for value in line}) and [ranked(rank(value)) for value in line] == line
    assert (rank(0.1) - rank(0.09999), rank(10.0) - rank(9.999), rank(-1.0) - rank(-1.001)) == (1, 1, 1)
    for value in (RANDOM.choice((-1, 1)) * 10 ** RANDOM.uniform(-300, 300) for _ in range(2000)):
        assert ranked(rank(value)) == rounded(value) and math.isclose(rounded(value), value, rel_tol=5.001e-4)
