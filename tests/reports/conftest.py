"""Runs to report on, made once."""

import pytest
from support import browser, reported

from flowopd_cli.reports import report


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A teacher with a report, a second one, their student, and evaluations of base, teacher and student."""
    root = tmp_path_factory.mktemp("reported")
    one, two = reported.teacher(root / "t-one"), reported.teacher(root / "t-two")
    report.of_run(one.path, None)
    student = reported.student(root / "student", one, two)
    reported.evaluation(root / "e-base")
    reported.evaluation(root / "e-one", one, {"geneval": 0.7, "ocr": 0.45})
    reported.evaluation(root / "e-student", student, {"geneval": 0.8, "ocr": 0.9})
    return root


@pytest.fixture(scope="session")
def chromium():
    """A browser; the test is skipped where there is none."""
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with browser.browser(program) as found:
        yield found
