"""The report: what it says comes from the records, and nothing in it comes from elsewhere."""

import base64
import hashlib
import importlib.util
import json
import re
import sys

import pytest

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import RepoRConfig, SIRENConfig, StareConfig, method_class
from aer_train.cli import main
from aer_train.config.tree import RunConfig, TrainConfig
from aer_train.report import write_report
from aer_train.report.charts import POINTS, Run, charts
from aer_train.report.plots import chart_figure
from aer_train.run.folder import Recorder

plots = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the report extra is not installed")


def metrics(step, **more):
    times = {"time/rollout": 30.0, "time/verify_wait": 6.0, "time/train": 20.0, "time/eval": 4.0, "time/step": 60.0}
    entropy = {"entropy/mean": 1.0 / step, "entropy/target": 0.85, "entropy/coef": 0.1 * step, "entropy/saturated": int(step == 3)}
    tiers = {"reward/mean": 0.25, "reward/tier/easy": 0.5, "reward/tier/hard": 0.0, "entropy/tier/easy": 1.5, "entropy/tier/hard": 2.5}
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


def fill(run, kind="aer", samples=(), steps=4, quantity="token", held="all", **more):
    config = TrainConfig(method=EntropyControlConfig(kind=kind, quantity=quantity, held=held), run=RunConfig(out=str(run), steps=4))
    with Recorder(run, config) as recorder:
        recorder.write_eval(0, {"tiers": tiers(0.5, 0.0)})
        for step in range(1, steps + 1):
            recorder.log(metrics(step, **more))
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


def data(page):
    """What the page's script draws."""
    return json.loads(re.search(r"<script type=application/json id=data>(.*?)</script>", page, re.S)[1])


def panel(runs, title):
    found = {panel.title: panel for part in charts(runs).values() for chart in part.values() for panel in chart}
    return found[title]


def curves(panel, style):
    return {series.run: (list(series.x), list(series.y)) for series in panel.series if series.style == style}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report and 81 long samples."""
    rows = [sample(prompt=f"p{i}", response="x" * 10_000) for i in range(81)]
    run = fill(tmp_path_factory.mktemp("report") / "one", samples=rows)
    assert write_report([run]) == run / "report.html"
    return run


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes seconds, and these tests are about the page."""
    monkeypatch.setattr("aer_train.report.page._write_plots", lambda *_: None)


@pytest.mark.slow
@plots
def test_plots_of_one_run(run):
    names = {"reward", "accuracy", "pass_at_k", "entropy", "entropy_by_tier", "moved", "optimization", "length", "time", "speed"}
    assert {file.stem for file in (run / "plots").iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (run / "plots").iterdir())


def test_page_needs_nothing_else_and_runs_no_script_but_its_own(run):
    page = (run / "report.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", page)
    script = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(script) == 1 and page.count("<script") == 2  # the other holds data
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "What differs" not in page and "<h2>Hints</h2>" not in page


def test_numbers_of_the_tables(run):
    """Entropies 1, 1/2, 1/3, 1/4: the mean is 25/48 and so is the share kept; trailing means 1, 3/4, 11/18, 25/48 of which two are
    within 20 % of 0.85; 1 / 0.85 = 1.18; four minutes."""
    page = (run / "report.html").read_text()
    row = dict(zip(*cells(page, "Runs"), strict=True))
    assert row == {"run": "one", "steps": "4", "reward": "0.250", "entropy of step 1": "1.000", "entropy": "0.521", "kept": "52%", "target": "0.850",
                   "in band": "50%", "overshoot": "1.18", "coefficient": "0.250", "at bound": "25%", "tokens/s": "1,234", "minutes": "4.0"}  # fmt: skip
    time = cells(page, "Time")
    assert time[0] == ["run", "seconds a step", "rollout", "verify_wait", "train", "eval", "tokens/s sampled", "tokens/s trained"]
    assert time[1] == ["one", "60", "50%", "10%", "33%", "7%", "2,002", "-"], "2002.5 rounds to even; a run without a number shows none"
    rows = cells(page, "Evaluation")
    assert rows[1] == ["one", "easy", "8", "accuracy", "0.500 (0)", "0.500 (0)", "0.125 (4)"]
    assert rows[4] == ["one", "hard", "8", "pass@16", "0.000 (0)", "0.750 (2)", "0.625 (4)"]


def test_two_runs_show_what_differs(tmp_path, no_plots):
    runs = [fill(tmp_path / "grpo", "off"), fill(tmp_path / "aer")]
    path = write_report(runs, tmp_path / "both")
    page = path.read_text()
    assert path == tmp_path / "both" / "report.html" and "<h1>grpo / aer</h1>" in page
    assert cells(page, "What differs")[1:] == [["method.kind", "&quot;off&quot;", "&quot;aer&quot;"]]
    assert data(page)["runs"] == ["grpo", "aer"]


def test_hints_of_the_console_are_in_the_report(tmp_path, no_plots):
    run = fill(tmp_path / "one", steps=7, **{"tokens/truncated_frac": 0.75})
    page = write_report([run]).read_text()
    assert cells(page, "Hints")[1:] == [
        ["one", "4", "75% of the responses were cut before they ended: raise rollout.max_new_tokens (now 512)"]
    ]


def test_a_run_that_is_not_at_its_end_says_so(tmp_path, no_plots):
    page = write_report([fill(tmp_path / "one", steps=3)]).read_text()
    assert cells(page, "Runs")[1][1] == "3 of 4"


def test_runs_of_the_same_name_are_told_apart(tmp_path, no_plots):
    runs = [fill(tmp_path / name / "run") for name in ("a", "b")]
    page = write_report(runs, tmp_path / "both").read_text()
    assert [row[0] for row in cells(page, "Runs")[1:]] == ["a/run", "b/run"]


def test_responses_and_names_cannot_inject_html(tmp_path, no_plots):
    hostile = "<script>alert(1)</script></pre></table>&amp;\x00"
    run = fill(tmp_path / "<script>alert(2)<", samples=[sample(response=hostile, prompt="<img src=x onerror=alert(1)>")])
    page = write_report([run]).read_text()
    assert page.count("<script") == 2 and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt;&lt;/table&gt;&amp;amp;" in page
    assert data(page)["runs"] == ["<script>alert(2)<"]


def test_sample_table_is_bounded(run):
    page = (run / "report.html").read_text()
    shown = re.findall(r"<pre>(p\d+)</pre>", page)
    assert shown == [f"p{i}" for i in range(0, 81, 3)]
    assert "[... 6,000 characters left out ...]" in page and "x" * 2001 not in page


def test_missing_records_leave_their_charts_out(tmp_path):
    with Recorder(tmp_path / "one", TrainConfig()) as recorder:
        recorder.log({"step": 1, "reward/mean": 0.5, "entropy/target": None, "entropy/mean": None})
    assert {heading: list(part) for heading, part in charts([Run.read(tmp_path / "one")]).items()} == {"Learning": ["reward"]}
    page = write_report([tmp_path / "one"]).read_text()
    assert cells(page, "Runs")[1] == ["one", "1 of 100", "0.500", *["-"] * 9, "0.0"]
    assert "Evaluation" not in page and "Samples" not in page


def test_entropy_has_its_target_and_band_and_the_coefficient_its_bound(tmp_path):
    runs = [Run.read(fill(tmp_path / "one"))]
    target = panel(runs, "token entropy").series[0]
    assert (target.style, target.run) == ("target", 0) and list(target.y) == [0.85] * 4
    assert (*target.low, *target.high) == pytest.approx([0.68] * 4 + [1.02] * 4)
    assert curves(panel(runs, "entropy coefficient alpha"), "marks") == {0: ([3], [pytest.approx(0.3)])}


def test_whatever_a_method_moves_has_a_panel_with_its_bound(tmp_path):
    """A run whose method moves two numbers at once beside one that moves another; the regulator's own has the marks."""
    together = method_class("repo_r+fixed").Config(repo_r=RepoRConfig(target=0.5))
    runs = []
    for name, method, numbers in (
        ("a", StareConfig(), {"method/surprising_weight": 1.5}),
        ("b", together, {"method/rescaling": 0.05, "entropy/coef": 0.1}),
    ):
        with Recorder(tmp_path / name, TrainConfig(method=method)) as recorder:
            for step in (1, 2, 3):
                recorder.log({"step": step, "entropy/saturated": int(step > 1), "entropy/target": 0.5, "entropy/mean": 0.4, **numbers})
        runs.append(Run.read(tmp_path / name))
    assert curves(panel(runs, "surprising weight"), "line") == {0: ([1, 2, 3], [1.5] * 3)}
    assert curves(panel(runs, "surprising weight"), "marks") == {0: ([2, 3], [1.5] * 2)}
    assert curves(panel(runs, "rescaling"), "marks") == {1: ([2, 3], [0.05] * 2)}
    assert not curves(panel(runs, "entropy coefficient alpha"), "marks"), "not what the controller moves"
    assert list(curves(panel(runs, "token entropy"), "target")) == [None]


def test_peaks_have_their_anchor_in_a_panel_of_their_own(tmp_path):
    with Recorder(tmp_path / "a", TrainConfig(method=SIRENConfig())) as recorder:
        recorder.log({"step": 1, "entropy/mean": 0.4, "entropy/controlled": 1.4, "entropy/target": 1.5})
    runs = [Run.read(tmp_path / "a")]
    assert not curves(panel(runs, "token entropy"), "target")
    assert list(curves(panel(runs, "entropy that is held: of difficult prompts where method.held says so, of peaks"), "target")) == [0]


def test_entropy_is_drawn_as_the_controller_smoothed_it(tmp_path):
    drawn = panel([Run.read(fill(tmp_path / "one", **{"entropy/smoothed": 0.7}))], "token entropy")
    assert curves(drawn, "line") == {0: ([1, 2, 3, 4], [0.7] * 4)}
    assert curves(drawn, "faint") == {0: ([1, 2, 3, 4], [1.0, 1 / 2, 1 / 3, 1 / 4])}


def test_a_target_that_all_runs_share_is_drawn_once(tmp_path):
    runs = [Run.read(fill(tmp_path / name)) for name in "ab"]
    assert list(curves(panel(runs, "token entropy"), "target")) == [None]
    other = [*runs, Run.read(fill(tmp_path / "c", **{"entropy/target": 0.5}))]
    assert list(curves(panel(other, "token entropy"), "target")) == [0, 1, 2]


def test_a_target_is_drawn_where_its_quantity_is(tmp_path):
    """One run holds the entropy of a token, the other that of a response; neither line is replaced by the other's smoothing."""
    more = {"entropy/per_response": 5.0, "entropy/smoothed": 0.7}
    runs = [Run.read(fill(tmp_path / "a", **more)), Run.read(fill(tmp_path / "b", quantity="response", **more | {"entropy/target": 4.0}))]
    tokens, responses = panel(runs, "token entropy"), panel(runs, "entropy of a response")
    assert list(curves(tokens, "target")) == [0] and list(curves(responses, "target")) == [1]
    assert curves(responses, "line")[1] == ([1, 2, 3, 4], [5.0] * 4)
    assert curves(panel(runs[1:], "entropy of a response"), "line")[0] == ([1, 2, 3, 4], [0.7] * 4)


def test_the_target_of_difficult_prompts_has_a_panel_of_its_own(tmp_path):
    more = {"entropy/per_response": 5.0, "entropy/controlled": 6.0, "entropy/smoothed": 6.5}
    runs = [Run.read(fill(tmp_path / "a", **more)), Run.read(fill(tmp_path / "b", quantity="response", held="difficult", **more))]
    title = "entropy that is held: of difficult prompts where method.held says so, of peaks"
    assert list(curves(panel(runs, "token entropy"), "target")) == [0] and not curves(panel(runs, "entropy of a response"), "target")
    assert list(curves(panel(runs, title), "target")) == [1] and curves(panel(runs, title), "line")[1] == ([1, 2, 3, 4], [6.0] * 4)
    assert curves(panel(runs[1:], title), "line")[0] == ([1, 2, 3, 4], [6.5] * 4)
    with pytest.raises(KeyError):  # no run holds it
        panel(runs[:1], title)


def test_runs_without_a_metric_and_outcomes_that_did_not_occur(tmp_path):
    runs = [Run.read(fill(tmp_path / "a")), Run.read(fill(tmp_path / "b", **{"entropy/bonus_share": 0.5}))]
    assert list(curves(panel(runs, "entropy bonus in the gradient"), "line")) == [1]
    with Recorder(tmp_path / "c", TrainConfig()) as recorder:
        recorder.log({"step": 1, "outcome/correct": 1.0})
        recorder.log({"step": 2, "outcome/correct": 0.5, "outcome/timeout": 0.5})
    assert curves(panel([Run.read(tmp_path / "c")], "verifier: timeout"), "line") == {0: ([1, 2], [0.0, 0.5])}


def test_long_curves_keep_their_peaks(tmp_path):
    rows = [{"step": step, "optim/grad_norm": 1000.0 if step == 6789 else 1.0 + step % 2} for step in range(1, 10_001)]
    run = Run("one", {}, rows, {})
    steps, values = curves(panel([run], "gradient norm before clipping"), "faint")[0]
    assert len(steps) <= POINTS + 1 and steps == sorted(steps)
    assert (max(values), min(values)) == (1000.0, 1.0) and steps[values.index(1000.0)] == 6789


def test_many_runs_show_what_is_smoothed_only(tmp_path):
    runs = [Run.read(fill(tmp_path / f"{i}", steps=60, **{"entropy/target": 0.5 + 0.01 * i})) for i in range(4)]
    assert curves(panel(runs, "training reward"), "faint") == {} and len(curves(panel(runs, "training reward"), "line")) == 4
    assert len(curves(panel(runs[:3], "training reward"), "faint")) == 3


@plots
def test_many_runs_differ_in_colour_or_dashes_and_hide_no_curve_behind_bands(tmp_path):
    runs = [Run.read(fill(tmp_path / f"{i}", **{"entropy/target": 0.5 + 0.01 * i})) for i in range(20)]
    shown = chart_figure([panel(runs, "token entropy")], [run.label for run in runs])
    lines = shown.axes[0].get_lines()
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == len(lines) == 20
    assert len(shown.axes[0].collections) == 0


@plots
def test_legend_of_long_names_stays_inside(tmp_path):
    runs = [Run.read(fill(tmp_path / f"a_run_whose_name_says_a_lot_{name}")) for name in "abc"]
    shown = chart_figure([panel(runs, "token entropy")], [run.label for run in runs])
    shown.draw_without_rendering()
    box = shown.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= shown.bbox.width


def test_errors(tmp_path):
    run = fill(tmp_path / "one")
    with pytest.raises(ValueError, match=r"runs must be different run folders, at least one, got \[\]"):
        write_report([])
    with pytest.raises(ValueError, match="runs must be different run folders"):
        write_report([run, run])
    with pytest.raises(ValueError, match=r"run must be a run folder with a config\.json, got "):
        write_report([tmp_path / "none"])


def test_without_matplotlib_there_is_the_page_alone(tmp_path, monkeypatch, capsys):
    run, find = fill(tmp_path / "one"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more))
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'} (for PNG files of its charts: pip install 'aer-rl[report]')\n"
    assert (run / "report.html").is_file() and not (run / "plots").exists()
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'plots need: pip install "aer-rl\[report\]"'):
        chart_figure([panel([Run.read(run)], "token entropy")], ["one"])


def test_config_of_another_version_is_compared_by_all_its_keys(tmp_path, no_plots):
    runs = [fill(tmp_path / name) for name in ("a", "b")]
    config = json.loads((runs[1] / "config.json").read_text())
    config["run"]["new_option"] = 3
    (runs[1] / "config.json").write_text(json.dumps(config))
    assert ["run.new_option", "null", "3"] in cells(write_report(runs, tmp_path / "both").read_text(), "What differs")


def test_intervals_of_the_last_evaluation_are_shaded(tmp_path):
    numbers = {
        "accuracy": 0.5,
        "accuracy_interval": [0.4, 0.6],
        "pass@k": {"1": 0.5, "2": 0.6, "3": 0.7},
        "pass@k_interval": {"1": [0.4, 0.6], "2": [0.5, 0.7], "3": [0.6, 0.8]},
    }
    run = Run("one", {}, [{"step": 4}], {step: {"tiers": {"all": numbers}} for step in (0, 4)})
    curves = {series.style: series for series in panel([run], "held-out pass@k, all").series}
    assert (list(curves["points"].low), list(curves["points"].high)) == ([0.4, 0.5, 0.6], [0.6, 0.7, 0.8])
    assert not curves["start"].low and list(panel([run], "held-out pass@k, all").ticks) == [1, 2, 3]
    assert list(panel([run], "held-out accuracy, all").series[0].high) == [0.6, 0.6]
