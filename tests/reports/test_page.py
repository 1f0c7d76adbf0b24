"""Pages are harmless whatever their texts are, and a browser shows them without errors and overflow."""

import json
import os
import re
import sys

import pytest
from support import reported
from support.reported import HOSTILE, PAPER, Tags

from flowopd_cli.reports import report
from flowopd_cli.runs.manifest import Inputs, Parent

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "div", "p"),
    *("h1", "h2", "h3", "dl", "dt", "dd", "ul", "ol", "li", "i", "b", "a", "span", "figure", "figcaption", "img"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "wbr"),
    *("svg", "g", "path", "use", "text", "defs", "clippath", "rect", "tspan"),
}
HARMLESS = re.compile(r"#|data:(image/(png|webp);base64|text/|application/|,)|[\w./%~-]+$")


def hostile(root):
    """A run whose every text is markup."""
    run = reported.begun(root / "run<b>'", reported.TEACHER)
    for i in range(1, 4):
        run.log(reported.row(i, **{"reward": 0.1 * i, f"reward/{HOSTILE[:60]}": 1.0 * i, "reward/_b": 2.0 * i}))
    run.sample_prompts_file.parent.mkdir(exist_ok=True)
    run.sample_prompts_file.write_text(json.dumps([{"text": HOSTILE}, {"text": "{{ 7 * 7 }}\x1b[2J"}]))
    run.write_image("000003", reported.noise(2, 16, 0))
    parents = Parent(role=HOSTILE, ref="javascript:alert(1)"), Parent(role="x", ref=HOSTILE)
    run.declare(Inputs(parents=parents))
    run.log_event(1, "warning", HOSTILE)
    run.finish("done")
    return run


def check_harmless(page):
    tags = Tags(page)
    assert {tag for tag, _ in tags.elements} <= TAGS
    assert not [name for _, attributes in tags.elements for name in attributes if name.startswith("on")]
    policy = next(meta["content"] for meta in tags.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    targets = [attributes.get(name, "#") for _, attributes in tags.elements for name in ("src", "href")]
    assert [target for target in targets if not HARMLESS.match(target)] == []
    assert "url(http" not in page
    assert all(image["src"].startswith("data:image/") for image in tags.all("img"))
    return tags


def test_a_page_requests_nothing_and_escapes_every_text(world, tmp_path):
    run = hostile(tmp_path)
    page = report.of_run(run.path, None).read_text(encoding="utf-8")
    assert "{{ 7 * 7 }}\\x1b[2J" in "".join(check_harmless(page).texts)
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 4
    target, _, _ = report.of_runs([run.path, world / "student"], tmp_path / "both")
    check_harmless(target.read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux alone")
def test_a_name_that_is_not_utf_8_is_escaped(flowopd, tmp_path):
    names = [tmp_path / os.fsdecode(name) for name in (b"bad\xff", b"bad\xfe\x1b[2J", b"e\xff")]
    reported.evaluation(tmp_path / "e", reported.teacher(tmp_path / "t"))
    reported.teacher(tmp_path / "u")
    for name, path in zip("tue", names, strict=True):
        (tmp_path / name).rename(path)
    for argv in ([names[0]], [names[1]], [*names, "--out", tmp_path / "c"]):
        code, out, err = flowopd("report", *argv)
        assert (code, err) == (0, "")
        assert out.encode().decode().endswith("report.html\n")
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "bad\\udcff" in page
    assert "bad\\udcfe\\x1b[2J" in page
    assert 'href="../bad%FF/report.html"' in page
    assert "\x1b" not in page + (names[1] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    means = PAPER | {f"t2i-compbench-{name}[grounding-dino]": 0.5 for name in "abcdefg"}
    wide = reported.evaluated(folder, means, "a-student-with-a-rather-long-name-that-says-all-of-its-settings")
    both = report.of_runs([world / "t-one", world / "student", world / "e-base"], folder / "c")[0]
    one = [report.of_run(world / name, folder / f"{name}.html") for name in ("student", "t-one", "e-one")]
    worst = report.of_run(hostile(folder).path, None), report.of_runs([wide, folder / "e"], folder / "w")[0]
    return [both, *one, *worst]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_every_page_without_overflow_or_error(chromium, pages, width, dark):
    for page in pages:
        chromium.show(page, width, dark=dark)
        assert chromium.errors == []
        assert chromium.value("document.documentElement.scrollWidth") <= chromium.value("innerWidth") == width
        assert chromium.value("document.querySelectorAll('main section').length") >= 3
        assert chromium.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        heights = chromium.value("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)")
        assert all(height > 60 for height in heights)
        assert chromium.value("[...document.querySelectorAll('main table')].every(t => t.closest('.scroll'))")
        paper = chromium.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")
    edges = "[...document.querySelectorAll('#results thead th')].map(h => h.getBoundingClientRect().right)"
    columns = sum(edge <= width - 16 for edge in chromium.value(edges))
    assert columns >= (2 if width == 390 else 7)  # of the widest table, without scrolling


@pytest.mark.parametrize(
    ("dark", "media", "color"),
    [(False, "screen", "rgb(0, 114, 178)"), (True, "screen", "rgb(74, 168, 232)"), (True, "print", "rgb(0, 114, 178)")],
)
def test_lines_take_the_colors_of_the_page_and_a_print_is_light(chromium, pages, dark, media, color):
    chromium.show(pages[1], 1440, dark=dark, media=media)
    line = "document.querySelector('.chart svg path[style*=\"--c0\"]')"
    assert chromium.value(f"getComputedStyle({line}).stroke") == color
