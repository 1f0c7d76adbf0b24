"""The report's curves."""

from types import SimpleNamespace

from flowopd_cli import report


def logged(*rows):
    return SimpleNamespace(path=SimpleNamespace(name="run"), rows=lambda: list(rows))


def test_figures_that_were_not_finite_leave_a_gap_and_no_error():
    drawn = report.charts([logged({"reward": 0.5}, {"reward": None, "kl": None}, {"reward": 0.25, "kl": 1.0})])
    assert [chart["title"] for chart in drawn] == ["run: reward"]
    assert (drawn[0]["low"], drawn[0]["high"], drawn[0]["last"]) == ("0.25", "0.5", 2)
