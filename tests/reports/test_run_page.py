"""The report of one run: its parts, what it says of its pictures, and values that are no numbers."""

import os

from support import reported
from support.reported import page_of

from flowopd_cli.reports import report


def test_the_report_of_a_teacher_has_its_parts(world, tmp_path):
    page = page_of(world / "t-one", tmp_path)
    titles = {"Reward", "Loss", "Clip fraction", "Gradient norm", "Throughput", "Time"}
    labels = {"iteration", "pictures per second", "L2 norm before clipping", "share of rows"}
    pictures = {"iteration 15", "iteration 30", 'a sign that says "ABC"'}
    facts = {"22.5 s", "30 of 30", "A teacher trained with GRPO on ocr."}  # thirty iterations of 0.75 s
    assert titles | labels | pictures | facts <= set(page.texts)
    assert any(text.startswith("Band: one standard deviation of single pictures.") for text in page.texts)
    charts = [chart["aria-label"] for chart in page.all("div") if chart.get("role") == "img"]
    assert charts[0] == "Reward: reward from 0.51 to 0.8"
    alts = [image["alt"] for image in page.all("img")]
    assert (alts[0], len(alts)) == ('iteration 15: a sign that says "ABC"', 4)


def test_the_report_of_a_student_has_each_teacher_each_step_and_links_to_parents(world, tmp_path):
    page = page_of(world / "student", tmp_path)
    assert {"teacher geneval", "teacher ocr", "anchor", "t-two"} <= set(page.texts)
    assert {"KL by sampling step", "first fifth", "last fifth", "sampling step (0: pure noise)"} <= set(page.texts)
    links = {link["href"] for link in page.all("a")}
    assert links == {os.path.relpath(world / "t-one" / "report.html", tmp_path)}  # the other one has no report


def test_the_report_of_an_evaluation_has_its_table_and_pictures(world, tmp_path):
    page = page_of(world / "e-one", tmp_path)
    assert {"0.700", "0.450", "± 0.010", "ocr ~", "a red circle"} <= set(page.texts)
    assert len(page.all("img")) == 3
    assert page.all("b") == []  # there is no best of one


def test_the_report_of_a_merge_has_its_figures_and_no_curves(tmp_path):
    run = reported.begun(tmp_path / "m", {"stage": "merge", "model": {"pretrained": "toy"}, "adapters": ["a", "b"]})
    run.finish("done", {"rank": 32, "retained_energy": 0.99991})
    page = page_of(run.path, tmp_path)
    assert {"energy retained", "0.99991", "Adapters merged into one."} <= set(page.texts)
    assert "Curves" not in page.texts


def test_warnings_and_the_command_to_resume_are_in_the_report(tmp_path):
    run = reported.student(tmp_path / "s", finish=False)
    run.log_event(3, "warning", "kl is 12 times what it was")
    run.finish("interrupted")
    page = page_of(run.path, tmp_path)
    assert f"resume with: flowopd distill --resume {run.path}" in " ".join(page.texts)
    assert {"iteration 3:", "kl is 12 times what it was"} <= set(page.texts)


def test_metrics_that_are_no_numbers_leave_a_gap_and_no_error(tmp_path):
    run = reported.begun(tmp_path / "t", reported.TEACHER)
    for value in (0.5, None, "x", True, [1], 1e301, 0.25):
        run.log({"iteration": 1, "reward": value, "kl_step/0": value, "kl_step/x": 1})
    run.finish("done")
    assert "reward from 0.5 to 0.25" in report.of_run(run.path, tmp_path / "p.html").read_text()
