"""The report in a real browser, from a plain file: curves are drawn where their values are, nothing is said on the console."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from aer_train.report import write_report
from tests.train.test_report import fill

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000"]  # fmt: skip
WIDTH, HEIGHT = 1300, 220

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


class Drawn(HTMLParser):
    """The elements of each figure: (tag, attributes), and its texts."""

    def __init__(self, dom):
        super().__init__()
        self.figures, self.buttons, self._open = {}, [], None
        self.feed(dom)

    def handle_starttag(self, tag, attrs):
        if tag == "figure":
            self._open = ([], [])
        elif tag == "button":
            self.buttons.append(dict(attrs))
        elif self._open:
            self._open[0].append((tag, dict(attrs)))

    def handle_data(self, data):
        if self._open:
            self._open[1].append(data.strip())

    def handle_endtag(self, tag):
        if tag == "figure":
            self.figures[self._open[1][0]], self._open = self._open, None

    def paths(self, title, style):
        """Coordinates of every path of a style, by run."""
        found = [
            attrs for tag, attrs in self.figures[title][0] if tag == "path" and style in attrs["class"].split() and "data-run" in attrs
        ]
        return {
            attrs["data-run"]: [tuple(map(float, pair.split())) for pair in re.findall(r"[-\d.]+ [-\d.]+", attrs["d"])] for attrs in found
        }


def browse(page, *flags):
    """(DOM after all scripts, lines of the console)."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", f"--window-size={WIDTH},900", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def act(page, script):
    """The same page with a script of the test, which the page's own policy would not let run."""
    text = re.sub(r"<meta http-equiv=Content-Security-Policy[^>]*>", "", page.read_text())
    changed = page.with_name("act.html")
    changed.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom, console = browse(changed, "--dump-dom")
    assert console == []
    return Drawn(dom)


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aer_train.report.page._write_plots", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of one run and of three, overlaid."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [
        fill(folder / name, kind, **{"entropy/target": 0.85 - 0.1 * i})
        for i, (name, kind) in enumerate({"aer": "aer", "grpo": "off", "x<y": "fixed"}.items())
    ]
    return {count: write_report(runs[:count], folder / f"report{count}") for count in (1, 3)}


@pytest.mark.parametrize("count", [1, 3])
def test_every_chart_is_drawn_and_the_console_stays_silent(pages, count):
    dom, console = browse(pages[count], "--dump-dom")
    assert console == []
    drawn, runs = Drawn(dom), [str(run) for run in range(count)]
    data = json.loads(re.search(r"id=data>(.*?)</script>", pages[count].read_text(), re.S)[1])
    titles = [panel["title"] for section in data["sections"] for panel in section["panels"]]
    assert len(titles) == len(set(titles)) == len(drawn.figures) >= 15 and len(drawn.buttons) == count
    for section in data["sections"]:
        for panel in section["panels"]:
            if "parts" in panel:
                bars = [attrs for tag, attrs in drawn.figures[panel["title"]][0] if tag == "rect"]
                assert len(bars) == count * len(panel["parts"]) and all(float(bar["width"]) > 10 for bar in bars)
                continue
            paths = {style: drawn.paths(panel["title"], style) for style in ("line", "points")}
            assert [run for found in paths.values() for run in found] == runs, panel["title"]
            for points in (points for found in paths.values() for points in found.values()):
                assert len(points) >= 2 and len({x for x, _ in points}) == len(points), panel["title"]
                assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points), panel["title"]


def test_curves_are_where_their_values_are(pages):
    """Entropies 1, 1/2, 1/3, 1/4 under a target of 0.85 with its band from 0.68 to 1.02."""
    dom, _ = browse(pages[1], "--dump-dom")
    drawn = Drawn(dom)
    (x1, top), (x2, middle), _, (x4, bottom) = drawn.paths("token entropy", "line")["0"]
    scale = (middle - top) / 0.5  # pixels a nat
    assert scale > 20 and x4 - x1 == pytest.approx(3 * (x2 - x1), abs=0.3) and bottom - top == pytest.approx(0.75 * scale, abs=0.3)
    assert [y for _, y in drawn.paths("token entropy", "target")["0"]] == [pytest.approx(top + 0.15 * scale, abs=0.3)] * 4
    band = [y for _, y in drawn.paths("token entropy", "band")["0"]]
    assert (min(band), max(band)) == pytest.approx((top - 0.02 * scale, top + 0.32 * scale), abs=0.3)
    (left, above), third = (
        drawn.paths("entropy coefficient alpha", "marks")["0"][0],
        drawn.paths("entropy coefficient alpha", "line")["0"][2],
    )
    assert (left + 3, above + 3) == pytest.approx(third, abs=0.1)


def test_the_pointer_shows_values_and_the_legend_hides_runs(pages):
    drawn = act(
        pages[3],
        """document.querySelectorAll("#legend button")[1].click();
        const figure = [...document.querySelectorAll("figure")].find((figure) => figure.textContent.startsWith("token entropy"));
        const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 5, clientY: box.top + 50 }));""",
    )
    assert [button["aria-pressed"] for button in drawn.buttons] == ["true", "false", "true"]
    assert list(drawn.paths("token entropy", "line")) == ["0", "2"]
    said = " ".join(drawn.figures["token entropy"][1])
    assert "step 4" in said and "0.25 aer" in said and "0.25 x<y" in said and "grpo" not in said


def test_hiding_every_run_and_showing_one_again(pages):
    drawn = act(pages[3], 'for (const button of document.querySelectorAll("#legend button")) button.click();')
    assert drawn.paths("token entropy", "line") == {}
    drawn = act(pages[3], 'document.querySelectorAll("#legend button")[2].dispatchEvent(new MouseEvent("dblclick"));')
    assert list(drawn.paths("token entropy", "line")) == ["2"]


def test_a_narrow_page_has_nothing_beyond_its_edge(pages):
    drawn = act(
        pages[3],
        """document.documentElement.style.width = "400px";
        dispatchEvent(new Event("resize"));
        const beyond = (element) => !element.closest(".scroll, details") && element.getBoundingClientRect().right > 400;
        document.querySelector("#legend button").title = [...document.querySelectorAll("body *")].filter(beyond).map((element) => element.outerHTML).join();""",
    )
    assert drawn.buttons[0]["title"] == ""
    assert 300 < max(x for x, _ in drawn.paths("token entropy", "line")["0"]) < 400


@pytest.mark.parametrize("scheme, background", [(1, (255, 255, 255)), (0, (22, 24, 27))], ids=["light", "dark"])
def test_pixels_of_every_run_in_light_and_dark(pages, tmp_path, scheme, background):
    image = pytest.importorskip("PIL.Image", reason="reads the screenshot")
    colors = {1: [(0, 114, 178), (213, 94, 0), (0, 158, 115)], 0: [(75, 163, 227), (255, 138, 61), (45, 201, 156)]}[scheme]
    browse(pages[3], f"--screenshot={tmp_path / 'page.png'}", f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1300,4000")
    pixels = image.open(tmp_path / "page.png").convert("RGB")
    counts = {color: count for count, color in pixels.getcolors(1 << 24)}
    assert pixels.getpixel((0, 0)) == background
    assert all(counts.get(color, 0) > 500 for color in colors)


def test_a_script_in_the_records_does_not_run_and_an_error_would_be_seen(pages):
    changed = pages[1].with_name("hostile.html")
    changed.write_text(pages[1].read_text().replace("</body>", "<script>document.querySelector('#legend').remove()</script></body>"))
    dom, console = browse(changed, "--dump-dom")
    assert len(console) == 1 and "Content Security Policy" in console[0] and 'id="legend"' in dom
