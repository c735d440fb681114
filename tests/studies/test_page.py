"""The command from studies.curves import level_of
from studies.results import read_records
from studies.scores import Scores
from results to its files, and the page in a browser."""

import csv
import http.server
import json
import re
import subprocess
import sys
import threading

import pytest

from console.errors import InputError
from evaluation.items import groups_of
from studies.curves import level_of
from studies.results import read_records
from studies.scores import Scores
from tests.browser import Browser, find_chromium
from tests.conftest import REPOSITORY
from tests.inspection.test_pages import Balance
from tests.studies.made import demo, put, read, report
from tests.studies.test_markup import check_latex

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of the made-up grid, with published numbers."""
    folder = tmp_path_factory.mktemp("report")
    demo(folder / "results" / "made", (63.0, 90.0))
    published = folder / "paper.csv"
    published.write_text("model,task,metric,pruner,sparsity,value\nxvlm-mini,vqa,overall,omp,63,66.6\n")
    report(folder / "results" / "made", "--output", str(folder / "out"), "--published", str(published))
    return folder / "out"


def test_every_part_is_there(made):
    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    kinds = (
        "scores",
        "share_of_dense",
        "cost",
        "modalities",
        "published",
        "zero_shot",
        "retrieval",
        "captioning",
        "vqa",
    )
    expected = {f"tables/xvlm-mini_{kind}.{ending}" for kind in kinds for ending in ("md", "tex", "csv")}
    expected |= {f"tables/{name}.csv" for name in ("scores", "runs", "layers", "published")}
    pictures = ("curves", "pareto", "layers_63", "layers_90")
    expected |= {f"pictures/xvlm-mini_{name}.{ending}" for name in pictures for ending in ("png", "svg")}
    assert names == expected | {"index.html", "parts.json"}
    assert set(json.loads((made / "parts.json").read_text())) == expected


def test_earlier_parts_go_and_other_files_stay(tmp_path):
    put(tmp_path / "grid", {"overall": 50.0})
    put(tmp_path / "grid", {"CIDEr": 60.0}, task="captioning")
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "tables" / "mine.md").write_text("mine")
    report(tmp_path / "grid", "--output", str(tmp_path / "out"))
    table = tmp_path / "out" / "tables" / "xvlm-mini_captioning.md"
    assert table.is_file()
    outside = tmp_path / "outside.md"
    outside.write_text("another's")
    listed = json.loads((tmp_path / "out" / "parts.json").read_text())
    strange = ["../outside.md", str(outside), "index.html", "tables/../../outside.md", "tables/..", 7]
    (tmp_path / "out" / "parts.json").write_text(json.dumps(listed + strange))
    report(tmp_path / "grid", "--output", str(tmp_path / "out"), "--only", "task=vqa")
    assert outside.is_file()
    assert (tmp_path / "out" / "index.html").is_file()
    assert not table.exists()
    assert (tmp_path / "out" / "tables" / "xvlm-mini_vqa.md").is_file()
    assert (tmp_path / "out" / "tables" / "mine.md").read_text() == "mine"


def test_latex_of_all_tables(made):
    for path in (made / "tables").glob("*.tex"):
        check_latex(path.read_text())


def test_the_numbers_are_those_of_the_results(made):
    """Means of scores.csv, from the result files by a plain loop."""
    values, found = {}, 0
    for path in (made.parent / "results/work/results/made").glob("*.jsonl"):
        result = json.loads(path.read_text().splitlines()[0])
        axes = result["axes"]
        if axes["task"] == "vqa":
            values.setdefault((axes["pruner"], float(axes["sparsity"])), []).append(result["metrics"]["overall"])
    with (made / "tables" / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["task"], row["metric"]) == ("vqa", "overall"):
                own = values[row["pruner"], float(row["sparsity"])]
                assert float(row["mean"]) == pytest.approx(sum(own) / len(own))
                assert int(row["seeds"]) == len(own)
                found += 1
    assert found == len(values) == 9
    text = (made / "index.html").read_text()
    best = max((sum(own) / len(own), name) for name, own in values.items() if name[1] == 63)
    assert f"<b>{best[0]:.1f}</b>" in text


def test_the_page_is_well_formed_and_stands_alone(made):
    text = (made / "index.html").read_text()
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not re.search(r"https?:|//|@import|url\(|\bon\w+=|src=", text)
    for variable in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert len(re.findall(rf"{variable}:", text)) == 2, f"{variable} needs a light and a dark value"
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names)), "an id is there twice"
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(names)


def test_names_are_no_markup(tmp_path):
    put(tmp_path / "made", {"overall": 1.0, "<i>": 2.0}, "<b>&x_%", model="<m>/x")
    report(tmp_path / "made")
    text = (tmp_path / "made" / "report" / "index.html").read_text()
    assert "&lt;b&gt;&amp;x_%" in text
    assert "<b>&" not in text
    check_latex((tmp_path / "made" / "report" / "tables" / "<m>--x_scores.tex").read_text())


def test_one_result_is_enough(tmp_path):
    put(tmp_path / "made", {"overall": 1.0})
    report(tmp_path / "made")
    put(tmp_path / "made", {"top1": 1.0}, "dense", 0, "image_classification", model="dino-mini")
    report(tmp_path / "made")
    text = (tmp_path / "made" / "report" / "index.html").read_text()
    assert '<h2 id="dino-mini">' in text
    assert '<h2 id="xvlm-mini">' in text


def test_several_models_in_one_table(made, tmp_path):
    assert "All models" not in (made / "index.html").read_text()
    for model in ("xvlm-mini", "blip-mini"):
        for pruner, value in (("dense", 80.0), ("omp", 60.0), ("snip", 40.0), ("lamp", 60.01)):
            put(tmp_path / "made", {"overall": value}, pruner, 75 * (pruner != "dense"), model=model, id=model + pruner)
    report(tmp_path / "made")
    text = (tmp_path / "made" / "report" / "index.html").read_text()
    assert "All models: percent of the dense model kept" in text
    assert text.count("of dense kept at 75 %, by omp and lamp") == 2, "what looks equal shares the lead"
    tables = tmp_path / "made" / "report" / "tables"
    assert "| omp | **75.0** | **75.0** |" in (tables / "overview.md").read_text()
    check_latex((tables / "overview.tex").read_text())


def test_of_many_pruners_differences_are_shown_beside(tmp_path):
    """Six of them at 10, 20, ... 60 points: 35 on the mean, so that the best is drawn at +25."""
    for number, pruner in enumerate(("omp", "lamp", "l2", "snip", "rand", "tamt"), start=1):
        for sparsity in (50, 75):
            put(tmp_path / "made", {"overall": 10.0 * number}, pruner, sparsity)
    scores = Scores(read(tmp_path / "made"))
    assert level_of(scores, "xvlm-mini", "vqa", "overall", 75) == 35
    report(tmp_path / "made")
    text = (tmp_path / "made" / "report" / "index.html").read_text()
    assert text.count("less the pruners' mean") == 1
    report(tmp_path / "made", "--only", "pruner=omp,lamp,l2,snip,rand")
    assert "less the pruners" not in (tmp_path / "made" / "report-only" / "index.html").read_text()
    assert (tmp_path / "made" / "report" / "index.html").read_text() == text, "a part does not take the whole's place"


def test_a_report_made_again_is_the_same(tmp_path):
    put(tmp_path / "made", {"overall": 1.0})
    put(tmp_path / "made", {"overall": 2.0}, "snip")
    report(tmp_path / "made")
    folder = tmp_path / "made" / "report"
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    report(tmp_path / "made")
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "vqa/overal"], r"unknown metric 'overal' \(did you mean 'overall'\?\)"),
        (["--metrics", "vqq/overall"], r"unknown task 'vqq' \(did you mean 'vqa'\?\)"),
        (["--metrics", "overall"], "takes TASK/METRIC, for example vqa/overall, not 'overall'"),
        (["--cost", "money"], "unknown axis 'money'"),
        (["--only", "colour=red"], "the axes are model, pruner"),
        (["--published", "none.csv"], "cannot read none.csv: no such file"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, arguments, message):
    put(tmp_path / "made", {"overall": 1.0})
    with pytest.raises(InputError, match=message):
        report(tmp_path / "made", *arguments)
    assert not (tmp_path / "made").exists()


def test_the_command_ends_with_one_sentence(tmp_path):
    """As a user calls it: half a result, exit code 2, no traceback."""
    put(tmp_path / "made", {"overall": 1.0}).write_text('{"format": 1')
    command = [sys.executable, "experiments.py", "report", str(tmp_path / "made"), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*is damaged or holds no results: remove it, and .* makes it again\n", done.stderr)


def test_made_up_items_are_of_the_format(made):
    path = next((made.parent / "results/work/results/made").glob("vqa*.jsonl"))
    (record,) = read_records(path)
    assert len(groups_of(json.loads(record.items), "")["items"].scores["overall"]) == 500


# -- in a browser ---------------------------------------------------------------------------------------


@needs_chromium
def test_the_page_in_a_browser(made):
    """No error, no request, nothing wider than the window, on a desk and on a phone, light and dark."""
    page = made / "index.html"
    backgrounds = set()
    with Browser(find_chromium()) as browser:
        for width in (1280, 390):
            for dark in (False, True):
                found = browser.look(page, width, 800, dark)
                assert (found.errors, found.requests, found.overflow) == ([], [], 0)
                backgrounds.add(browser.ask("getComputedStyle(document.body).backgroundColor"))
        assert backgrounds == {"rgb(250, 250, 248)", "rgb(20, 23, 26)"}
        assert browser.ask("document.querySelectorAll('.panels svg').length") == 6
        drawn = "[...document.querySelectorAll('.panels svg text')].every(t => t.getBoundingClientRect().width > 0)"
        assert browser.ask(drawn) is True
        inside = """[...document.querySelectorAll('.panels svg, .map svg')].every(s => {
            const box = s.getBoundingClientRect();
            return [...s.querySelectorAll('text')].every(t => {
                const own = t.getBoundingClientRect();
                return own.left >= box.left - 1 && own.right <= box.right + 1 && own.top >= box.top - 1;
            });
        })"""
        assert browser.ask(inside) is True, "no name is cut off"


@needs_chromium
def test_this_test_sees_errors_and_requests(tmp_path):
    """A page that logs an error, one that throws one, and pages that ask for a picture, a style, a script, data."""
    with Browser(find_chromium()) as browser, served() as address:
        (tmp_path / "good.html").write_text("<p>good</p>")
        for name, body, errors, requests in (
            ("logs", "<script>console.error('oh')</script>", True, False),
            ("throws", "<script>nothing.there()</script>", True, False),
            ("picture", f"<img src='{address}/there.png'>", False, True),
            ("missing", f"<img src='{address}/missing'>", True, True),
            ("style", f"<style>@import url('{address}/there.css')</style>", False, True),
            ("script", f"<script src='{address}/there.js'></script>", False, True),
            ("beside", "<img src='beside.png'>", True, True),
        ):
            page = tmp_path / f"{name}.html"
            page.write_text(f"<!DOCTYPE html><title>{name}</title>{body}")
            found = browser.look(page)
            assert bool(found.errors) == errors, (name, found)
            assert bool(found.requests) == requests, (name, found)
        (tmp_path / "wide.html").write_text("<!DOCTYPE html><div style='width:3000px'>wide</div>")
        assert browser.look(tmp_path / "wide.html").overflow > 1000
        found = browser.look(tmp_path / "good.html")
        assert (found.errors, found.requests, found.overflow) == ([], [], 0)


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        there = "there" in self.path
        self.send_response(200 if there else 404)
        kinds = {"css": "text/css", "js": "text/javascript", "png": "image/gif"}
        self.send_header("Content-Type", kinds.get(self.path.rpartition(".")[2], "text/plain"))
        self.end_headers()
        if self.path.endswith("png"):
            self.wfile.write(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")

    def log_message(self, *arguments):
        pass


class served:
    """A server on this machine alone; a context manager that gives its address."""

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
