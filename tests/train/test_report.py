"""The report: what it says comes from the records, and nothing in it comes from elsewhere."""

import json
import re
import sys

import pytest

from aer_kernels import EntropyControlConfig
from aer_train.config import RunConfig, TrainConfig
from aer_train.plots import Run, charts, smooth
from aer_train.record import Recorder
from aer_train.report import write_report

pytest.importorskip("matplotlib", reason="the report extra is not installed")


def metrics(step, **more):
    times = {"time/rollout": 30.0, "time/verify_wait": 6.0, "time/train": 20.0, "time/eval": 4.0, "time/step": 60.0}
    entropy = {"entropy/mean": 1.0 / step, "entropy/target": 0.85, "entropy/coef": 0.1 * step, "entropy/saturated": int(step == 3)}
    tiers = {"reward/mean": 0.25, "reward/tier/easy": 0.5, "reward/tier/hard": 0.0}
    rest = {"optim/grad_norm": 0.0, "policy/clip_frac": 0.01, "tokens/response_mean": 6.0, "tokens/truncated_frac": 0.0}
    return {
        "step": step,
        **tiers,
        **entropy,
        **rest,
        **times,
        "perf/tokens_per_second": 1234.0,
        "perf/rollout_tokens_per_second": 2000.0 + step,
        **more,
    }


def tiers(easy, hard):
    return {
        name: {"problems": 8, "accuracy": value, "truncated_frac": 0.0, "pass@k": {"1": value, "16": min(1.0, 2 * value)}}
        for name, value in {"easy": easy, "hard": hard, "all": (easy + hard) / 2}.items()
    }


def fill(run, kind="aer", samples=(), steps=4):
    config = TrainConfig(entropy=EntropyControlConfig(kind=kind), run=RunConfig(out=str(run)))
    with Recorder(run, config) as recorder:
        recorder.write_eval(0, {"tiers": tiers(0.5, 0.0)})
        for step in range(1, steps + 1):
            recorder.log(metrics(step))
        recorder.write_eval(2, {"tiers": tiers(0.25, 0.375)})
        recorder.write_eval(4, {"tiers": tiers(0.125, 0.3125)})
        if samples:
            recorder.write_samples(steps, list(samples))
    return run


def sample(**change):
    row = {"step": 4, "prompt_id": "1", "tier": "easy", "prompt": "1+1=?", "response": "2", "answer": "2", "outcome": "correct",
           "reward": 1.0, "advantage": 0.5, "num_tokens": 2, "finished": True, "entropy_coef": 0.1}  # fmt: skip
    return row | change


def cells(page, heading):
    """The rows of the table below a heading, as lists of texts."""
    table = page.split(f"<h2>{heading}</h2>")[1].split("</table>")[0]
    return [re.findall(r"<t[hd]>(?:<pre>)?(.*?)(?:</pre>)?</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report and 81 long samples."""
    rows = [sample(prompt=f"p{i}", response="x" * 10_000) for i in range(81)]
    run = fill(tmp_path_factory.mktemp("report") / "one", samples=rows)
    assert write_report([run]) == run / "report.html"
    return run


@pytest.fixture
def no_charts(monkeypatch):
    """Drawing takes a second, and these tests are about the rest of the page."""
    monkeypatch.setattr("aer_train.report.charts", lambda runs: {})


def test_one_run(run):
    page = (run / "report.html").read_text()
    names = {"reward", "accuracy", "pass_at_k", "entropy", "coefficient", "grad_norm", "clipping", "length", "time"}
    assert {file.stem for file in (run / "plots").iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (run / "plots").iterdir())
    assert page.count("data:image/png;base64,") == len(names)
    assert "<script" not in page and not re.search(r"(src|href)=.?https?:", page)
    assert "What differs" not in page


def test_numbers_of_the_tables(run):
    """Entropies 1, 1/2, 1/3, 1/4: the mean is 25/48 and so is the share kept; four minutes."""
    page = (run / "report.html").read_text()
    assert cells(page, "Runs")[1] == ["one", "4", "0.250", "1.000", "0.521", "52%", "0.250", "1,234", "4.0"]
    time = cells(page, "Time")
    assert time[0] == ["run", "seconds a step", "rollout", "verify_wait", "train", "eval", "tokens/s sampled", "tokens/s trained"]
    assert time[1] == ["one", "60", "50%", "10%", "33%", "7%", "2,002", "-"], "2002.5 rounds to even; a run without a number shows none"
    rows = cells(page, "Evaluation")
    assert rows[1] == ["one", "easy", "8", "accuracy", "0.500 (0)", "0.500 (0)", "0.125 (4)"]
    assert rows[4] == ["one", "hard", "8", "pass@16", "0.000 (0)", "0.750 (2)", "0.625 (4)"]


def test_two_runs_show_what_differs(tmp_path):
    runs = [fill(tmp_path / "grpo", "off"), fill(tmp_path / "aer")]
    path = write_report(runs, tmp_path / "both")
    page = path.read_text()
    assert path == tmp_path / "both" / "report.html" and "<h1>grpo / aer</h1>" in page
    assert cells(page, "What differs")[1:] == [["entropy.kind", "&quot;off&quot;", "&quot;aer&quot;"]]


def test_runs_of_the_same_name_are_told_apart(tmp_path, no_charts):
    runs = [fill(tmp_path / name / "run") for name in ("a", "b")]
    page = write_report(runs, tmp_path / "both").read_text()
    assert [row[0] for row in cells(page, "Runs")[1:]] == [str(run) for run in runs]


def test_responses_cannot_inject_html(tmp_path, no_charts):
    hostile = "<script>alert(1)</script></pre></table>&amp;\x00"
    run = fill(tmp_path / "one", samples=[sample(response=hostile, prompt="<img src=x onerror=alert(1)>")])
    page = write_report([run]).read_text()
    assert "<script>" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt;&lt;/table&gt;&amp;amp;" in page


def test_sample_table_is_bounded(run):
    page = (run / "report.html").read_text()
    shown = re.findall(r"<pre>(p\d+)</pre>", page)
    assert shown == [f"p{i}" for i in range(0, 81, 3)]
    assert "[... 6,000 characters left out ...]" in page and "x" * 2001 not in page


def test_missing_records_leave_their_charts_out(tmp_path):
    with Recorder(tmp_path / "one", TrainConfig()) as recorder:
        recorder.log({"step": 1, "reward/mean": 0.5, "entropy/target": None, "entropy/mean": None})
    assert list(charts([Run.read(tmp_path / "one")])) == ["reward"]
    page = write_report([tmp_path / "one"]).read_text()
    assert cells(page, "Runs")[1] == ["one", "1", "0.500", "-", "-", "-", "-", "-", "0.0"]
    assert "Evaluation" not in page and "Samples" not in page


def test_entropy_chart_has_target_band_and_marks(tmp_path):
    drawn = charts([Run.read(fill(tmp_path / "one"))])
    lines = {line.get_label(): line for line in drawn["entropy"].axes[0].get_lines()}
    assert list(lines["one: target, band ±20%"].get_ydata()) == [0.85] * 4
    band = drawn["entropy"].axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.68, 1.02))
    marks = {line.get_label(): line for line in drawn["coefficient"].axes[0].get_lines()}["one: at its upper bound (1 steps)"]
    assert list(marks.get_xdata()) == [3] and list(marks.get_ydata()) == pytest.approx([0.3])


def test_smooth_is_a_trailing_mean():
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, 3.0], 1) == [1.0, 3.0] and smooth([], 3) == []


def test_errors(tmp_path, monkeypatch):
    run = fill(tmp_path / "one")
    with pytest.raises(ValueError, match=r"runs must be different run folders, at least one, got \[\]"):
        write_report([])
    with pytest.raises(ValueError, match="runs must be different run folders"):
        write_report([run, run])
    with pytest.raises(ValueError, match=r"run must be a run folder with a config\.json, got "):
        write_report([tmp_path / "none"])
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'a report needs: pip install "aer-rl\[report\]"'):
        write_report([run])
    assert not (run / "report.html").exists() and not (run / "plots").exists()


def test_config_of_another_version_is_compared_by_all_its_keys(tmp_path, no_charts):
    runs = [fill(tmp_path / name) for name in ("a", "b")]
    config = json.loads((runs[1] / "config.json").read_text())
    config["run"]["new_option"] = 3
    (runs[1] / "config.json").write_text(json.dumps(config))
    assert ["run.new_option", "null", "3"] in cells(write_report(runs, tmp_path / "both").read_text(), "What differs")


def test_legend_of_long_names_stays_inside(tmp_path):
    runs = [Run.read(fill(tmp_path / f"a_run_whose_name_says_a_lot_{name}")) for name in "abc"]
    figure = charts(runs)["entropy"]
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
