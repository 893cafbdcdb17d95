"""The report in headless Chromium: skipped where none is on the PATH (Debian's package chromium)."""

import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from paper_figures.report import render
from tests.paper_figures.page_parser import Page

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report" / "figure.rst"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DARK = "--blink-settings=preferredColorScheme=0"
QUIET = ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--disable-gpu")
WIDTHS = (1280, 480)
# Chromium's own windows have 500 pixels or more, a frame may have less
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><body>
<script>addEventListener("message", (event) => { document.body.dataset.told = event.data; });</script>
<iframe src="copy.html" width="WIDTH" height="900" style="border: 0"></iframe>"""
TELL = """
const wait = () => new Promise((resolve) => setTimeout(resolve, 50));
const told = {}, errors = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"]) {
  addEventListener(kind, (event) => errors.push(`${kind} ${event.blockedURI ?? event.message ?? event.reason}`));
}
const titled = (words) => [...document.querySelectorAll("main table")].find((table) => table.caption.textContent.includes(words));
const column = (table, name) => [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim().startsWith(name));
const shown = (table, place) => [...table.tBodies[0].rows].map((row) => row.cells[place]?.textContent);
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(demo, tmp_path_factory):
    """The page of the drawn demo, with a sheet for every run."""
    root = tmp_path_factory.mktemp("browser") / "demo"
    shutil.copytree(demo, root)
    for run in (root / "runs").iterdir():
        Image.fromarray(np.full((60, 90, 3), 128, np.uint8)).save(run / "contact_sheet.png")
    path = root / "report.html"
    path.write_text(render(root, None, CAPTIONS), encoding="utf-8")
    return path


def browse(path, profile, *flags, width=1280, height=900):
    """Load a file until its scripts are done; return what Chromium printed, and its log of the page's console."""
    words = [CHROMIUM, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    words += ["--virtual-time-budget=30000", "--enable-logging=stderr", *flags, path.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def ask(report, folder, script, *flags, width=1280):
    """Run a script in a copy of the page, in a frame of some width, after its own; return what it put into ``told``."""
    folder.mkdir(exist_ok=True)
    text = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", report.read_text(encoding="utf-8"))
    end = 'parent.postMessage(JSON.stringify(Object.assign(told, { errors })), "*");'
    asked = text.replace("await enliven();", f"await enliven();\n{script}\n{end}").replace(
        "<body>", f"<body><script>{TELL}</script>"
    )
    (folder / "copy.html").write_text(asked, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    dom, console = browse(folder / "frame.html", folder / "profile", "--dump-dom", *flags, width=width + 20)
    told = json.loads(Page(dom).all("body")[0][1]["data-told"])
    assert told["errors"] == [] and console == []
    return told


@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_comes_to_life_and_the_console_stays_empty(report, tmp_path, width):
    """The page itself, unchanged, under its own policy."""
    dom, console = browse(report, tmp_path, "--dump-dom", width=width)
    page, tables = Page(dom), report.read_text(encoding="utf-8").count("<table")
    assert page.all("html")[0][1]["data-ready"] == str(tables) and tables > 8
    assert sum("dataTable" in (attributes.get("class") or "") for _, attributes, _ in page.all("table")) == tables
    assert console == []


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("colours", [(), (DARK,)], ids=["light", "dark"])
def test_nothing_is_cut_off_and_everything_can_be_read(report, tmp_path, width, colours):
    script = """
      const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
      };
      const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
          const colour = getComputedStyle(at).backgroundColor;
          if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
        }
      };
      const contrast = (element) => {
        const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
      };
      const places = "h1, h2, h3, p, dt, dd, caption, thead th, tbody th, tbody td, nav a, figcaption, .dt-search label";
      const visible = (element) => element.offsetParent && element.textContent.trim();
      const found = [...document.querySelectorAll(places)].filter(visible);
      told.checked = found.length;
      told.faint = found.filter((element) => contrast(element) < 4.5).map((element) => element.outerHTML.slice(0, 80));
      told.ground = ground(document.body);
      told.wide = document.documentElement.scrollWidth;
      told.inner = innerWidth;
      const beyond = (element) => element.getBoundingClientRect().right > innerWidth + 1;
      told.beyond = [...document.querySelectorAll("h1, h2, h3, p, dl, caption span, button, input, main img")]
        .filter((element) => beyond(element) && !element.closest("thead, dialog"))
        .map((element) => element.outerHTML.slice(0, 80));
    """
    told = ask(report, tmp_path / "x", script, *colours, width=width)
    assert told["inner"] == width and told["wide"] <= width and told["beyond"] == []
    assert told["faint"] == [] and told["checked"] > 200
    assert told["ground"] == ("rgb(20, 24, 31)" if colours else "rgb(255, 255, 255)")


def test_a_click_on_a_header_sorts_by_numbers(report, tmp_path):
    script = """
      const table = titled("Runs."), place = column(table, "FID");
      for (const turn of ["up", "down"]) {
        table.tHead.rows[0].cells[place].querySelector(".dt-column-order").click();
        await wait();
        told[turn] = shown(table, place);
        told[turn + "_said"] = table.tHead.rows[0].cells[place].getAttribute("aria-sort");
      }
      const drawn = titled("Accuracy and FID of every method"), other = column(drawn, "trainable");
      drawn.tHead.rows[0].cells[other].querySelector(".dt-column-order").click();
      await wait();
      told.drawn = shown(drawn, other);
    """
    told = ask(report, tmp_path / "x", script)
    fid = pd.read_csv(report.parent / "tables" / "runs.csv").query("dataset == 'mnist5k'")["fid"]
    numbers = [float(text.replace(",", "")) for text in told["up"]]
    assert numbers == sorted(numbers) and len(set(numbers)) > 5 and len(numbers) == len(fid)
    assert numbers == pytest.approx(sorted(fid), abs=0.01)
    assert told["down"] == told["up"][::-1] and (told["up_said"], told["down_said"]) == ("ascending", "descending")
    sizes = [int(re.split("[–-]", text)[0].replace(",", "")) for text in told["drawn"] if text != "—"]
    assert sizes == sorted(sizes) and len({len(str(size)) for size in sizes}) > 1, "9 before 10: numbers, not text"


def test_a_table_can_be_searched_and_filtered(report, tmp_path):
    script = """
      const table = titled("Runs."), box = table.closest(".dt-container").querySelector("input[type=search]");
      told.all = table.tBodies[0].rows.length;
      box.value = "LoRA";
      box.dispatchEvent(new Event("input", { bubbles: true }));
      await wait();
      told.searched = shown(table, 0);
      box.value = "";
      box.dispatchEvent(new Event("input", { bubbles: true }));
      await wait();
      table.tHead.rows[0].cells[0].querySelector(".dtcc-button").click();
      await wait();
      const entry = [...document.querySelectorAll(".dtcc-list button")].find((one) => one.textContent.includes("DP-Finetune"));
      entry.click();
      await wait();
      told.filtered = shown(table, 0);
    """
    told = ask(report, tmp_path / "x", script)
    assert set(told["searched"]) == {"DP-LoRA"} and 0 < len(told["searched"]) < told["all"]
    assert set(told["filtered"]) == {"DP-Finetune (full UNet)"}


def test_a_click_enlarges_a_sheet_without_smoothing_and_escape_closes_it(report, tmp_path):
    script = """
      const button = document.querySelector(".sheets .enlarge"), dialog = document.getElementById("zoom");
      const image = document.getElementById("zoomed");
      told.before = dialog.open;
      button.focus();
      button.click();
      await image.decode();
      told.open = dialog.open;
      told.modal = dialog.matches(":modal");
      told.same = image.src === button.querySelector("img").src && image.alt === button.querySelector("img").alt;
      told.title = document.getElementById("zoom-title").textContent;
      dialog.querySelector("[data-zoom='4']").click();
      told.width = image.getBoundingClientRect().width;
      told.rendering = getComputedStyle(image).imageRendering;
      dialog.querySelector("form button:not([type])").click();
      await wait();
      told.after = dialog.open;
      told.back = document.activeElement === button;
    """
    told = ask(report, tmp_path / "x", script)
    assert (told["before"], told["open"], told["modal"], told["after"]) == (False, True, True, False)
    assert told["same"] and told["title"] and told["width"] == 360 and told["rendering"] == "pixelated"
    assert told["back"], "the keyboard goes on where it was"


def test_paper_gets_every_row(report, tmp_path):
    """A long table has pages on the screen; what is printed has none."""
    long = tmp_path / "long"
    shutil.copytree(report.parent / "tables", long / "tables")
    runs = pd.read_csv(long / "tables" / "runs.csv")
    ids = runs["run_id"].str.replace(r"seed\d+$", "seed", regex=True)
    many = pd.concat([runs.assign(run_id=ids + str(seed), seed=seed) for seed in range(4)])
    many.drop_duplicates("run_id").to_csv(long / "tables" / "runs.csv", index=False)
    (long / "report.html").write_text(render(long, None, CAPTIONS), encoding="utf-8")
    script = """
      const table = titled("What each run spent");
      told.screen = table.tBodies[0].rows.length;
      dispatchEvent(new Event("beforeprint"));
      told.paper = table.tBodies[0].rows.length;
      dispatchEvent(new Event("afterprint"));
      told.after = table.tBodies[0].rows.length;
    """
    told = ask(long / "report.html", tmp_path / "x", script)
    assert (told["screen"], told["paper"], told["after"]) == (25, many["run_id"].nunique(), 25)


def test_the_page_asks_no_server_for_anything(report, tmp_path):
    """What the page loads lies in it; its policy stops an image that was smuggled in, which is loaded without that policy."""
    script = 'told.loaded = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 5));'
    assert set(ask(report, tmp_path / "x", script)["loaded"]) <= {"data:", "blob:"}
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    image = f'<img src="http://127.0.0.1:{server.server_port}/smuggled" alt="">'
    text = report.read_text(encoding="utf-8").replace("<main id", f"{image}<main id")
    try:
        (tmp_path / "held.html").write_text(text, encoding="utf-8")
        _, console = browse(tmp_path / "held.html", tmp_path / "a", "--dump-dom")
        assert asked == [] and any("Content Security Policy" in line for line in console)
        (tmp_path / "free.html").write_text(re.sub(r'<meta http-equiv="Content-Security[^>]*>', "", text), encoding="utf-8")
        browse(tmp_path / "free.html", tmp_path / "b", "--dump-dom")
        assert asked == ["/smuggled"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_screenshot_is_neither_blank_nor_too_narrow(report, tmp_path, width):
    picture = tmp_path / "page.png"
    browse(report, tmp_path / "p", f"--screenshot={picture}", width=width, height=4000)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[:2] == (4000, width)
    assert len(np.unique(pixels @ [1, 256, 256**2])) > 200
    rows = (pixels != pixels[-1, -1]).any(axis=(1, 2))
    assert rows[:500].mean() > 0.3 and rows[2000:].mean() > 0.3, "text from the first screen to the last"
