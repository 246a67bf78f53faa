"""From records to figures: what is drawn is what was recorded."""

import numpy as np
import pytest

from study import forest, plots, verdicts
from tests.study.samples import record


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
    forest.save_forest(forest.by_places(records, "aer", ["grpo", "fixed10"]), "test", tmp_path / "forest.png")
    (hard, *_) = drawn[0].axes
    assert hard.get_title() == "hard pass@1, difference" and [tick.get_text() for tick in hard.get_yticklabels()] == [
        "tiny",
        "all 1 settings",
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


def test_figures_of_more_methods_than_styles_some_without_a_coefficient(drawn, tmp_path):
    """As in the matrix of every method: 25 lines, of which every second one moves no coefficient; some steps of the others have none."""
    records = [record(f"method{i}", 0, [1, 1], [4, 4]) for i in range(25)]
    for each in records[::2]:
        each["curves"] |= {"coef": [None] * 3}
    records[1]["curves"] |= {"coef": [None, 0.2, 0.3]}
    plots.outcomes(records, "test", tmp_path / "outcomes.png")
    plots.step_responses(records, tmp_path / "control.png")
    coefficients = drawn[0].axes[3].lines
    assert [bool(np.isnan(line.get_ydata()).all()) for line in coefficients] == [i % 2 == 0 for i in range(25)]
    assert list(coefficients[1].get_ydata()[1:]) == [0.2, 0.3] and len(drawn[1].axes) == 50


def test_what_each_run_found_is_drawn(drawn, tmp_path):
    """Plain GRPO solves all easy prompts and finds nothing; AER finds the strategy in two runs of three; 0.3 leaves a quarter of the easy prompts
    in one run, and half of them in the other, which is not yet broken."""
    solved = {"grpo": [(0, 4), (0, 4)], "aer": [(2, 4), (1, 4), (0, 4)], "fixed30": [(2, 1), (2, 2)]}
    records = [
        record(method, seed, [hard, hard], [easy, easy], setting="countdown-base") | {"lr_scale": 2.0}
        for method, runs in solved.items()
        for seed, (hard, easy) in enumerate(runs)
    ]
    verdicts.save_verdicts(records, {"grpo": "plain", "aer": "AER", "fixed30": "much"}, tmp_path / "verdicts.png")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["plain\nfails in 1 of 1", "AER\nfails in 0 of 1", "much\nfails in 1 of 1"]
    assert [len(axes.patches) for axes in panels] == [1, 0, 1], "a setting where the method fails is shaded"
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["Countdown-3, larger policy, lr x 2"]
    assert [line.get_xdata()[0] for line in panels[1].lines[:3]] == [0.5, 0.25, 0.0]
    found = [verdicts.verdict(run, records[:2]) for run in records]
    assert found == ["not found", "not found", "found", "found", "not found", "broke", "found"]
