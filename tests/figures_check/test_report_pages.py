"""What a report looks like in a real browser. Needs Chromium: ``make check-figures`` runs it."""

import html
import json
import shutil
import subprocess

import pytest
from PIL import Image

from analysis.figures import THEMES
from analysis.report.__main__ import main
from tests.analysis.report_runs import METHODS, write_run, write_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCHEMES = {"dark": 0, "light": 1}
"""A reader's choice -> what Chromium calls it."""

LONG = "a/folder/of/which/the/name/goes/on" * 8

MEASURE = """<script>
document.querySelectorAll("details").forEach(one => one.open = true);
const wide = [...document.querySelectorAll("*")].filter(one =>
  one.scrollWidth > one.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(one).overflowX));
const named = id => document.getElementById(id)?.textContent;
const said = one => one.getAttribute("aria-label") || named(one.getAttribute("aria-labelledby"));
parent.postMessage(JSON.stringify({
  page: document.documentElement.scrollWidth,
  window: innerWidth,
  wide: wide.length,
  reachable: wide.filter(one => one.tabIndex === 0 && said(one)).length,
  smallest: Math.min(...[...document.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height)),
}), "*");
</script>"""

FRAME = """<pre id="found"></pre>
<script>addEventListener("message", told => { document.getElementById("found").textContent = told.data })</script>
<iframe src="measured.html" style="border: 0; width: WIDTHpx; height: 2000px"></iframe>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a sweep of all methods with a failed run, long names and commands."""
    folder = tmp_path_factory.mktemp("report")
    write_sweep(folder / "outputs" / "sweep", METHODS, (0.1, 0.2), (0, 1), epochs=5, layers=6)
    texts = {"name": LONG, "command": f"python run.py output.root={LONG}", "device": LONG, "cwd": f"/{LONG}"}
    write_run(
        folder / "outputs" / "sweep" / "long", state="failed", status={"error": LONG}, identity={"seed": 7}, **texts
    )
    assert main([str(folder / "outputs"), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


def browser(*options):
    assert CHROMIUM, "this check needs Chromium: install it, or leave out make check-figures"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measured(page, width):
    """Return what a script finds in the page at this width. The page itself forbids scripts, so this is a copy."""
    text, frame = page.read_text(), page.with_name("frame.html")
    policy = '<meta http-equiv="Content-Security-Policy"'
    assert policy in text
    copy = text.replace(policy, "<meta name='was'").replace("</body>", f"{MEASURE}</body>")
    page.with_name("measured.html").write_text(copy)
    frame.write_text(FRAME.replace("WIDTH", str(width)))  # a window of its own would not be as narrow
    shown = browser("--window-size=1400,2100", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri())
    return json.loads(html.unescape(shown.partition('<pre id="found">')[2].partition("</pre>")[0]))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways_and_what_does_is_reached_by_keyboard(page, width):
    found = measured(page, width)
    assert found["window"] == width
    assert found["page"] <= width
    assert found["wide"] == found["reachable"]
    if width == 360:
        assert found["wide"] > 3


def test_the_text_of_figures_can_be_read_on_a_small_screen(page):
    assert measured(page, 360)["smallest"] >= 9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_paper_is_light_or_dark_as_the_reader_wishes(page, scheme, tmp_path):
    shot = tmp_path / "shot.png"
    settings = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    browser(settings, "--window-size=1000,6000", f"--screenshot={shot}", page.as_uri())
    image = Image.open(shot).convert("RGB")
    theme = THEMES[scheme]
    counts = {colour: count for count, colour in image.getcolors(maxcolors=2**24)}
    paper, ink = (tuple(bytes.fromhex(colour[1:])) for colour in (theme.background, theme.ink))
    assert max(counts, key=counts.get) == paper
    assert counts[paper] > 0.8 * image.width * image.height
    assert counts[ink] > 1000
    other = THEMES["dark" if scheme == "light" else "light"].background
    assert counts.get(tuple(bytes.fromhex(other[1:])), 0) < 1000
