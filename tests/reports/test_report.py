"""Reports: their parts, what they compare, what they escape, how large they get, and that none can fail a run."""

import base64
import csv
import io
import json
import math
import os
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from support import browser, reported

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError, Interrupted
from flowopd_cli.reports import changes, curves, pictures, report, run_page, series, table
from flowopd_cli.reports.entries import Entry, collect
from flowopd_cli.runs.evaluations import evaluation
from flowopd_cli.runs.manifest import Inputs
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>$\\frac{=cmd|`x`|'


class Tags(HTMLParser):
    """Every element of a page with its attributes, and all text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A teacher, a second one, their student, and evaluations of base, teacher and student, side by side."""
    root = tmp_path_factory.mktemp("reported")
    one, two = reported.teacher(root / "t-one"), reported.teacher(root / "t-two")
    report.of_run(one.path, None)
    student = reported.student(root / "student", one, two)
    reported.evaluation(root / "e-base")
    reported.evaluation(root / "e-one", one, {"geneval": 0.7, "ocr": 0.45})
    reported.evaluation(root / "e-student", student, {"geneval": 0.8, "ocr": 0.9})
    return root


def page_of(path, tmp_path):
    return Tags(report.of_run(path, tmp_path / "page.html").read_text(encoding="utf-8"))


# -- one run ----------------------------------------------------------------------------------------------------------


def test_a_teachers_report_has_its_parts(world, tmp_path):
    page = page_of(world / "t-one", tmp_path)
    text = " ".join(page.texts)
    assert "A teacher trained with GRPO on ocr." in text
    for title in ("Reward", "Loss", "Clip fraction", "Gradient norm", "Throughput", "Time"):
        assert title in page.texts
    for label in ("iteration", "pictures per second", "L2 norm before clipping", "share of rows"):
        assert label in page.texts
    assert "Band: one standard deviation of single pictures." in text
    drawn = [drawing["aria-label"] for drawing in page.all("div") if drawing.get("role") == "img"]
    assert drawn[0] == "Reward: reward from 0.51 to 0.8"
    assert {"iteration 15", "iteration 30", 'a sign that says "ABC"'} <= set(page.texts)
    alts = [image["alt"] for image in page.all("img")]
    assert (alts[0], len(alts)) == ('iteration 15: a sign that says "ABC"', 4)
    assert "22.5 s" in page.texts  # thirty iterations of three quarters of a second
    assert "30 of 30" in page.texts


def test_a_students_report_tells_teachers_and_steps_apart_and_links_to_its_parents(world, tmp_path):
    page = page_of(world / "student", tmp_path)
    assert {"teacher geneval", "teacher ocr", "anchor"} <= set(page.texts)
    assert {"KL by sampling step", "first fifth", "last fifth", "sampling step (0: pure noise)"} <= set(page.texts)
    links = {link["href"] for link in page.all("a")}
    assert links == {os.path.relpath(world / "t-one" / "report.html", tmp_path)}  # the other one has no report
    assert "t-two" in page.texts


def test_the_kl_by_step_is_that_of_the_first_and_the_last_iterations():
    rows = [{"iteration": i, "kl_step/0": 4.0 if i <= 2 else 1.0, "kl_step/1": 2.0} for i in range(1, 11)]
    chart = curves.kl_by_step(rows)
    assert chart is not None
    assert chart.alt == "KL by sampling step: step 0 from 4 to 1; step 1 from 2 to 2"
    assert curves.kl_by_step([{"kl_step/0": 1.0}]) is None


def test_there_are_no_ticks_between_iterations():
    chart = curves.line_chart(curves.Spec("t", "y"), [curves.Series("a", [1.0, 2.0], [5.0, 7.0])], "t")
    assert chart is not None

    texts = set(Tags(chart.drawing).texts)
    assert {"1", "2"} <= texts
    assert not {"1.25", "1.5", "1.50"} & texts


def test_an_evaluations_report_has_its_table_and_pictures(world, tmp_path):
    page = page_of(world / "e-one", tmp_path)
    assert {"0.700", "0.450", "± 0.010", "ocr ~", "a red circle"} <= set(page.texts)
    assert len(page.all("img")) == 3
    assert page.all("b") == []  # nothing is best of one


def test_a_run_without_iterations_says_what_it_has(tmp_path):
    run = reported.begun(tmp_path / "m", {"stage": "merge", "model": {"pretrained": "toy"}, "adapters": ["a", "b"]})
    run.finish("done", {"rank": 32, "retained_energy": 0.99991})
    page = page_of(run.path, tmp_path)
    assert {"energy kept", "0.99991", "Adapters merged into one."} <= set(page.texts)
    assert "Curves" not in page.texts


def test_warnings_and_the_way_on_stand_in_the_report(tmp_path):
    run = reported.student(tmp_path / "s", finish=False)
    run.log_event(3, "warning", "kl is 12 times what it was")
    run.finish("interrupted")
    page = page_of(run.path, tmp_path)
    text = " ".join(page.texts)
    assert f"go on with: flowopd distill --resume {run.path}" in text
    assert "iteration 3:" in page.texts
    assert "kl is 12 times what it was" in page.texts


def test_figures_that_are_no_numbers_leave_a_gap_and_no_error(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    for value in (0.5, None, "x", True, [1], 1e301, 0.25):
        run.log({"iteration": 1, "reward": value, "kl_step/0": value, "kl_step/x": 1})
    run.finish("done")
    assert "reward from 0.5 to 0.25" in report.of_run(run.path, tmp_path / "p.html").read_text()
    assert [series.number(v) for v in (1, 2.5)] == [1.0, 2.5]
    assert all(math.isnan(series.number(v)) for v in (None, "1", True, 1e301, math.inf))


def test_a_moving_mean_leaves_a_line_as_it_is_and_a_gap_a_gap():
    line = [float(i) for i in range(50)]
    assert series.window(10) == 1
    assert series.smooth(line, 5)[5:45] == line[5:45]
    assert math.isnan(series.smooth([1.0, math.nan, 3.0], 3)[1])
    assert series.smooth([1.0, math.nan, 3.0], 3)[0] == 1.0
    assert series.thinned(line, 10) == [2.0 + 5 * i for i in range(10)]


# -- what it may not do -----------------------------------------------------------------------------------------------


def hostile(root):
    run = reported.begun(root / "run<b>'", reported.TEACHER)
    for i in range(1, 4):
        run.log(reported.row(i, **{"reward": 0.1 * i, f"reward/{HOSTILE[:60]}": 1.0 * i, "reward/_b": 2.0 * i}))
    run.sample_prompts_file.parent.mkdir(exist_ok=True)
    run.sample_prompts_file.write_text(json.dumps([{"text": HOSTILE}, {"text": "{{ 7 * 7 }}\x1b[2J"}]))
    run.write_image("000003", reported.noise(2, 16, 0))
    run.declare(
        Inputs(
            parents=(
                reported.Parent(role=HOSTILE, ref="javascript:alert(1)"),
                reported.Parent(role="x", ref=HOSTILE),
            )
        )
    )
    run.log_event(1, "warning", HOSTILE)
    run.finish("done")
    return run


def check_harmless(page):
    tags = Tags(page)
    assert {tag for tag, _ in tags.found} <= {
        *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "div", "p"),
        *("h1", "h2", "h3", "dl", "dt", "dd", "ul", "ol", "li", "i", "b", "a", "span", "figure", "figcaption", "img"),
        *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "wbr"),
        *("svg", "g", "path", "use", "text", "defs", "clippath", "rect", "tspan"),
    }
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    policy = next(meta["content"] for meta in tags.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, attributes in tags.found:
        for name in ("src", "href"):
            target = attributes.get(name, "#")
            assert re.match(r"#|data:(image/(png|webp);base64|text/|application/|,)|[\w./%~-]+$", target), (tag, target)
    assert "url(http" not in page
    assert all(image["src"].startswith("data:image/") for image in tags.all("img"))
    return tags


def test_a_page_asks_for_nothing_and_lets_no_text_act(world, tmp_path):
    (tmp_path / "r").mkdir()
    run = hostile(tmp_path / "r")
    page = report.of_run(run.path, None).read_text(encoding="utf-8")
    tags = check_harmless(page)
    assert "{{ 7 * 7 }}\\x1b[2J" in "".join(tags.texts)
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 4
    target, _, _ = report.of_runs([run.path, world / "student"], tmp_path / "both")
    check_harmless(target.read_text(encoding="utf-8"))


def test_a_page_stays_small_whatever_the_pictures_are(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    for at in range(1, 13):
        run.write_image(f"{at:06d}", reported.noise(8, 256, at))
    run.finish("done")
    assert run.samples_dir.joinpath("000012.png").stat().st_size > 1_500_000
    found = report.of_run(run.path, None)
    assert 100_000 < found.stat().st_size < 5_000_000
    labels = [text for text in Tags(found.read_text()).texts if text.startswith("iteration ")]
    assert (labels[0], labels[-1], len(labels)) == ("iteration 1", "iteration 12", pictures.MAX_ROWS)


def test_a_picture_that_is_none_is_left_out(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    (run.samples_dir / "000001.png").parent.mkdir(exist_ok=True)
    (run.samples_dir / "000001.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    run.sample_prompts_file.write_text("[1, {]")
    run.finish("done")
    assert run_page.page(run, run.report_file).grids == ()


@pytest.mark.parametrize(("width", "height"), [(100, 20000), (20000, 1), (1, 20000)])
def test_a_picture_of_an_absurd_shape_is_made_small(tmp_path, width, height):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    run.write_image("000001", Image.new("RGB", (width, height)))
    run.finish("done")
    for image in page_of(run.path, tmp_path).all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as shown:
            assert (shown.width <= pictures.MAX_WIDTH, shown.height <= 4 * pictures.MAX_WIDTH) == (True, True)


@pytest.mark.skipif(sys.platform != "linux", reason="a name is any bytes on Linux alone")
def test_a_name_that_is_no_utf_8_is_written_out(flowopd, world, tmp_path):
    names = [os.fsdecode(name) for name in (b"bad\xff", b"bad\xfe\x1b[2J")]
    made = reported.teacher(tmp_path / "t")
    reported.evaluation(tmp_path / "e", made)
    runs = [
        (tmp_path / "t").rename(tmp_path / names[0]),
        reported.teacher(tmp_path / "u").path.rename(tmp_path / names[1]),
    ]
    (tmp_path / "e").rename(tmp_path / os.fsdecode(b"e\xff"))
    for argv in ([runs[0]], [runs[1]], [*runs, tmp_path / os.fsdecode(b"e\xff"), "--out", tmp_path / "c"]):
        code, out, err = flowopd("report", *argv)
        assert (code, err) == (0, "")
        assert out.encode().decode().endswith("report.html\n")
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "bad\\udcff" in page
    assert "bad\\udcfe\\x1b[2J" in page
    assert 'href="../bad%FF/report.html"' in page
    assert "\x1b" not in page + (tmp_path / names[1] / "report.html").read_text(encoding="utf-8")


# -- at the end of a run ----------------------------------------------------------------------------------------------


def stage(monkeypatch, work):
    monkeypatch.setenv("FLOWOPD_REPORT", "1")
    monkeypatch.setitem(sys.modules, "flowopd_cli.stages.teacher", SimpleNamespace(run=work))


def works(recipe, run, progress, **rest):
    run.log(reported.row(1, reward=0.5))
    run.log(reported.row(2, reward=0.75))
    return {"metrics": {"reward": 0.75}}


def stops(recipe, run, progress, **rest):
    works(recipe, run, progress)
    raise Interrupted("stopped after iteration 2 of 9")


def test_a_stage_leaves_a_report_of_its_end(monkeypatch, tmp_path):
    stage(monkeypatch, works)
    run = RunDir.create(tmp_path / "r", "teacher")
    run_stage(Plan.of(recipes.build(reported.TEACHER)), run, Silent())
    page = run.report_file.read_text()
    assert "<dt>status</dt><dd>done</dd>" in page
    assert "reward from 0.5 to 0.75" in page
    assert run.report_file.name not in [artifact.path for artifact in run.manifest().artifacts]  # it may be made anew


def test_a_stage_that_is_asked_to_stop_leaves_one_too(monkeypatch, tmp_path):
    stage(monkeypatch, stops)
    run = RunDir.create(tmp_path / "r", "teacher")
    with pytest.raises(Interrupted):
        run_stage(Plan.of(recipes.build(reported.TEACHER)), run, Silent())
    assert "<dt>status</dt><dd>interrupted</dd>" in run.report_file.read_text()


def test_no_report_can_fail_a_run(monkeypatch, tmp_path, capsys):
    stage(monkeypatch, works)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = RunDir.create(tmp_path / "r", "teacher")
    run_stage(Plan.of(recipes.build(reported.TEACHER)), run, Console())
    assert run.manifest().status == "done"
    assert not run.report_file.exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "no report was written" in line]
    assert len(said) == 1
    assert said[0].endswith(f"try again with: flowopd report {run.path}")


@pytest.mark.parametrize(
    ("work", "status", "raised"), [(works, "done", KeyboardInterrupt), (stops, "interrupted", Interrupted)]
)
def test_who_stops_a_report_stops_nothing_else(monkeypatch, tmp_path, work, status, raised):
    def impatient(*_):
        raise KeyboardInterrupt

    stage(monkeypatch, work)
    monkeypatch.setattr(run_page, "page", impatient)
    run = RunDir.create(tmp_path / "r", "teacher")
    with pytest.raises(raised):
        run_stage(Plan.of(recipes.build(reported.TEACHER)), run, Silent())
    assert run.manifest().status == status


@pytest.mark.parametrize("word", ["0", "off"])
def test_reports_can_be_switched_off(monkeypatch, tmp_path, word):
    stage(monkeypatch, works)
    monkeypatch.setenv("FLOWOPD_REPORT", word)
    run = RunDir.create(tmp_path / "r", "teacher")
    run_stage(Plan.of(recipes.build(reported.TEACHER)), run, Silent())
    assert not run.report_file.exists()


# -- several runs -----------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_the_evaluations_of_their_weights(world, tmp_path):
    found = collect([world / "t-one", world / "t-two", world / "student"])
    assert [(entry.name, bool(entry.evaluation)) for entry in found] == [
        *[("base", True), ("t-one", True), ("t-two", False), ("student", True)]
    ]
    same = collect([world / "e-student", world / "t-one", world / "e-student"])
    assert [(entry.name, entry.run.path.name if entry.run else None) for entry in same] == [
        *[("base", None), ("student", "student"), ("t-one", "t-one")]
    ]


def test_a_comparison_has_its_table_and_its_numbers_as_files(world, tmp_path):
    target, _, beside = report.of_runs([world / "t-one", world / "t-two", world / "student"], tmp_path / "c")
    text = target.read_text(encoding="utf-8")
    page = Tags(text)
    assert [path.name for path in beside] == list(table.NUMBERS)
    links = {link["download"]: link["href"] for link in page.all("a") if "download" in link}
    for path in beside:
        assert base64.b64decode(links[path.name].partition(",")[2]).decode() == path.read_text(encoding="utf-8")
    assert re.findall(r"<b>([\d.]+)</b>", text) == ["0.800", "0.900", "0.850"]
    assert (tmp_path / "c" / "table.md").read_text().splitlines() == [
        "| model | geneval | ocr | average |",
        "|---|---:|---:|---:|",
        "| base | 0.600 ± 0.010 | 0.500 ± 0.010 | 0.550 |",
        "| t-one | 0.700 ± 0.010 | 0.450 ± 0.010 | 0.575 |",
        "| t-two | — | — | — |",
        "| student | **0.800** ± 0.010 | **0.900** ± 0.010 | **0.850** |",
    ]
    tex = (tmp_path / "c" / "table.tex").read_text()
    assert "student & \\textbf{0.800} {\\scriptsize $\\pm$ 0.010} & \\textbf{0.900}" in tex
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c" / "numbers.csv").read_text())))
    assert [(row["model"], row["suite"], float(row["mean"])) for row in rows][2:4] == [
        *[("t-one", "geneval", 0.7), ("t-one", "ocr", 0.45)]
    ]
    assert len(json.loads((tmp_path / "c" / "numbers.json").read_text())) == len(rows) == 6
    assert "Not evaluated: t-two." in text


PAPER = {"average": 0.7, "deqa": 4.1, "geneval": 0.6, "ocr": 0.5, "pickscore": 22.0}


def test_the_average_of_the_paper_is_the_suites_own(tmp_path):
    made = reported.teacher(tmp_path / "t")
    reported.evaluation(tmp_path / "e-base", None, PAPER)
    scored = reported.evaluation(tmp_path / "e", made, PAPER | {"average": 0.8, "ocr": 0.9})
    target, entries, _ = report.of_runs([made.path], tmp_path / "c")
    shown = table.table(entries)
    assert shown is not None
    assert shown.columns == ("deqa", "geneval", "ocr", "pickscore", "average")
    assert [cells[-1] for _, cells in shown.rows] == [table.Cell(0.7, 0.01), table.Cell(0.8, 0.01, best=True)]
    assert (tmp_path / "c" / "table.md").read_text().splitlines()[0].count("average") == 1
    assert (tmp_path / "c" / "table.tex").read_text().count("average") == 1
    rows = [row for row in json.loads((tmp_path / "c" / "numbers.json").read_text()) if row["suite"] == "average"]
    assert [row["mean"] for row in rows] == [0.7, 0.8]
    for page in (target, report.of_run(scored.path, None)):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<th scope="col" class="n">(\w+)', text) == [*shown.columns]
        assert "average: as the suite of that name has it" in text


@pytest.mark.parametrize(
    ("means", "note"),
    [
        ({"geneval": 0.6, "mine": -0.2}, "No average: the suites are on different scales."),
        ({"geneval": 0.6, "deqa": 4.1}, "No average: the suites are on different scales."),
        ({"geneval": 0.6, "drawbench-imagereward": 0.87}, "No average: the suites are on different scales."),
        (
            {"t2i-compbench": 0.5, "t2i-compbench-color": 0.6, "t2i-compbench-shape": 0.4},
            "No average: t2i-compbench is one of other columns already.",
        ),
        ({"geneval": 0.6}, ""),
    ],
)
def test_there_is_no_average_that_means_nothing(tmp_path, means, note):
    run = reported.evaluation(tmp_path / "e", None, means)
    entry = Entry("base", None, evaluation(run))
    shown = table.table([entry])
    assert shown is not None
    assert (set(shown.columns), shown.note) == (set(means), note)
    assert note in " ".join(page_of(run.path, tmp_path).texts)


def test_the_change_against_the_base_has_a_sign_and_an_error(world, tmp_path):
    found = table.changes_against_base(collect([world / "t-one", world / "student"]))
    assert list(found) == ["t-one", "student"]
    change, error = found["t-one"]["ocr"]
    assert (change, error) == pytest.approx((-0.05, math.sqrt(2) * 0.01))
    assert found["student"]["ocr"][0] == pytest.approx(0.4)
    [chart] = changes.panels(found, [["geneval", "ocr"]])
    assert "t-one: geneval +0.100, ocr -0.050" in chart.alt
    assert [key.name for key in chart.legend] == ["geneval", "ocr"]
    assert changes.panels({}, [["ocr"]]) == []


MANY = {f"s{i:02d}": 0.3 + 0.02 * i for i in range(12)}


def many(root, means, name="t"):
    """A teacher, and evaluations of it and of the base on many suites."""
    made = reported.teacher(root / name)
    reported.evaluation(root / "e-base", None, means)
    reported.evaluation(root / "e", made, {suite: mean + 0.1 for suite, mean in means.items()})
    return made.path


def test_the_change_of_every_suite_stands_in_a_panel_of_its_scale(tmp_path):
    entries = collect([many(tmp_path, MANY | PAPER), tmp_path / "e"])
    charts = changes.panels(table.changes_against_base(entries), table.scales(entries))
    named = [[key.name for key in chart.legend] for chart in charts]
    assert named == [["geneval", "ocr", *list(MANY)[:5]], list(MANY)[5:], ["deqa"], ["pickscore"]]
    for chart, names in zip(charts, named, strict=True):
        assert chart.alt == "Change against the base: t: " + ", ".join(f"{name} +0.100" for name in names)
        assert len({key.mark for key in chart.legend}) == len(names)


def test_a_change_that_is_no_number_is_left_out():
    own = {"m": {"a": (0.1, None), "b": (math.nan, None)}, "n": {"b": (math.nan, 0.1)}}
    [chart] = changes.panels(own, [["a", "b"], ["c"]])
    assert chart.alt == "Change against the base: m: a +0.100"


def test_pictures_stand_side_by_side_only_at_equal_prompts_and_seeds(world, tmp_path):
    other = reported.evaluation(tmp_path / "e-other", seed=1)
    target, entries, _ = report.of_runs([world / "e-one", world / "e-student", other.path], tmp_path / "c")
    text = target.read_text(encoding="utf-8")
    assert text.count('<section class="pictures">') == 2
    assert [(entry.name, entry.comparable) for entry in entries] == [
        ("base", False),
        ("t-one", True),
        ("student", True),
    ]
    assert "† base was evaluated otherwise and does not compare" in text
    assert re.findall(r"<b>([\d.]+)</b>", text) == ["0.800", "0.900", "0.850"]


def test_figures_of_another_judge_are_marked_and_neither_bold_nor_compared(tmp_path):
    for name, engine in (("a", None), ("b", "one"), ("c", "two"), ("d", "one")):
        run = reported.evaluation(tmp_path / name, means={"ocr": 0.9 if engine == "two" else 0.5})
        told = json.loads(run.eval_file("ocr").read_text()) | ({"engine": engine} if engine else {})
        run.write_eval("ocr", json.dumps(told))
    target, entries, _ = report.of_runs([tmp_path / name for name in "abcd"], tmp_path / "x")
    assert [entry.comparable for entry in entries] == [True, True, False, True]
    text = target.read_text(encoding="utf-8")
    assert re.search(r"† base \(3\) was evaluated otherwise and does not compare: [^†]*; another judge of ocr\.", text)
    assert "0.900</b>" not in text


def test_texts_of_a_table_stay_in_their_cells():
    cell = table.Cell(0.5, None, best=True)
    shown = table.Table((HOSTILE,), ((HOSTILE, (cell,)), ("a & b_c", (None,))))
    assert len(table.as_markdown(shown).splitlines()) == 4
    assert "<" not in table.as_markdown(shown)
    tex = table.as_latex(shown).splitlines()
    assert tex[-3] == "a \\& b\\_c & -- \\\\"
    assert "\\frac" not in "".join(tex)
    assert "'=cmd" in table.as_csv([{"model": "=cmd()", "mean": -0.5}])
    assert ",-0.5" in table.as_csv([{"model": "=cmd()", "mean": -0.5}])


def test_runs_without_evaluations_are_compared_by_their_curves(tmp_path):
    paths = [reported.teacher(tmp_path / name).path for name in ("a", "b")]
    target, _, beside = report.of_runs(paths, tmp_path / "c")
    assert beside == []
    page = Tags(target.read_text())
    assert "Results" not in page.texts
    assert "Reward" in page.texts
    assert "None of these models has an evaluation: flowopd eval --adapter RUN makes one." in page.texts


def test_the_card_and_the_report_read_evaluations_alike(world):
    entry = collect([world / "student"])[1]
    assert entry.evaluation is not None
    assert evaluation(RunDir(world / "e-student")).suites == entry.results
    assert evaluation(RunDir(world / "student")) is None


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_where_it_says(flowopd, world, tmp_path):
    code, out, _ = flowopd("report", world / "t-one", "--out", tmp_path / "one.html")
    assert (code, out) == (0, f"{tmp_path}/one.html\n")
    code, out, _ = flowopd("report", world / "t-one", world / "student", "--out", tmp_path / "c", "--json")
    told = json.loads(out)
    assert (code, told["report"]) == (0, f"{tmp_path}/c/report.html")
    assert list(told["models"]) == ["base", "t-one", "student"]
    assert flowopd("report", world / "t-one", world / "student", "--out", tmp_path / "c")[0] == 0  # ours: again


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["{w}/t-one", "--out", "{t}/notes.txt"], "is a file; --out names a folder, or a file that ends in .html"),
        (["{w}/t-one", "--out", "{t}/mine.html"], "is no report of flowopd; give --out a fresh name"),
        (["{w}/t-one", "--out", "{t}"], "is not empty and has no report.html of ours in it"),
        (["{w}/t-one", "{w}/student", "--out", "{w}/student"], "give --out a"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written_over(flowopd, world, tmp_path, argv, said):
    for name in ("notes.txt", "mine.html"):
        (tmp_path / name).write_text("years of work")
    code, out, err = flowopd("report", *(word.format(w=world, t=tmp_path) for word in argv))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "mine.html").read_text() == "years of work"


def test_a_comparison_does_not_replace_the_report_of_a_run(world, tmp_path):
    run = reported.teacher(tmp_path / "t")
    report.of_run(run.path, None)
    with pytest.raises(ArtifactError, match="is a run; give --out a folder of its own"):
        report.of_runs([run.path, world / "student"], run.path)


def test_the_files_beside_a_comparison_replace_no_others(flowopd, world, tmp_path):
    runs, folder = [world / "t-one", world / "student"], tmp_path / "paper"
    folder.mkdir()
    for name in ("table.tex", "second.table.tex"):
        (folder / name).write_text("years of work")
    asked = ["report", *runs, "--out", folder / "first.html"]
    code, out, _ = flowopd(*asked, "--json")
    assert code == 0
    assert json.loads(out)["files"] == [str(folder / f"first.{name}") for name in table.NUMBERS]
    for named in (folder / "second.html", folder / "report.html"):
        code, out, err = flowopd("report", *runs, "--out", named)
        assert (code, out, named.exists()) == (2, "", False)
        assert "table.tex: is no file of an earlier report, or was changed; move it" in err
        assert len(err.splitlines()) == 1
    assert (folder / "table.tex").read_text() == (folder / "second.table.tex").read_text() == "years of work"
    other = ["report", runs[0], world / "t-two", "--out", folder / "first.html"]
    assert flowopd(*other)[0] == 0  # what the earlier page has is ours to replace
    assert "student" not in (folder / "first.table.md").read_text()
    (folder / "first.table.md").write_text("with a caption")
    assert flowopd(*asked)[0] == 2
    assert (folder / "first.table.md").read_text() == "with a caption"


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with browser.browser(program) as found:
        yield found


LONG = "a-student-with-a-rather-long-name-that-says-all-of-its-settings"


@pytest.fixture(scope="module")
def pages(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    wide = many(folder, PAPER | {f"t2i-compbench-{name}[grounding-dino]": 0.5 for name in "abcdefg"}, LONG)
    both = report.of_runs([world / "t-one", world / "student", world / "e-base"], folder / "c")[0]
    one = [report.of_run(world / name, folder / f"{name}.html") for name in ("student", "t-one", "e-one")]
    whole = report.of_runs([wide, folder / "e"], folder / "w")[0]
    return [both, *one, report.of_run(hostile(folder).path, folder / "h.html"), whole]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_every_page_without_overflow_or_error(chromium, pages, tmp_path, width, dark):
    papers = set()
    for page in pages:
        chromium.show(page, width, dark=dark)
        assert chromium.errors == []
        assert chromium.value("document.documentElement.scrollWidth") <= chromium.value("innerWidth") == width
        assert chromium.value("document.querySelectorAll('main section').length") >= 3
        assert chromium.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        drawn = chromium.value("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)")
        assert all(height > 60 for height in drawn)
        wide = "[...document.querySelectorAll('main table')].every(t => t.closest('.scroll'))"
        assert chromium.value(wide)
        papers.add(chromium.value("getComputedStyle(document.body).backgroundColor"))
        chromium.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
    assert papers == {"rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)"}


def test_a_phone_shows_figures_beside_the_names_of_models_and_a_desktop_most_suites(chromium, pages):
    edges = "[...document.querySelectorAll('#results thead th')].map(h => h.getBoundingClientRect().right)"
    for width, count in ((390, 2), (1440, 7)):
        chromium.show(pages[-1], width)
        assert sum(edge <= width - 16 for edge in chromium.value(edges)) >= count


def test_lines_take_the_colors_of_the_page_and_a_print_is_light(chromium, pages):
    stroke = "getComputedStyle(document.querySelector('.chart svg path[style*=\"--c0\"]')).stroke"
    colors = []
    for dark, media in ((False, "screen"), (True, "screen"), (True, "print")):
        chromium.show(pages[1], 1440, dark=dark, media=media)
        colors.append((chromium.value(stroke), chromium.value("getComputedStyle(document.body).backgroundColor")))
    light, night, printed = colors
    assert light[0] == "rgb(0, 114, 178)"
    assert night[0] == "rgb(74, 168, 232)"
    assert printed == ("rgb(0, 114, 178)", "rgb(255, 255, 255)")
    assert chromium.pdf().startswith(b"%PDF")
