"""Progress on stderr, results on stdout."""

import sys

from flowopd_cli.cli.console import Console


def test_plain_progress_shows_rate_reward_loss_and_eta(capsys):
    console = Console()
    console.start(4, "teacher ocr", 1)
    for loss in (0.5, 0.25, 0.125):
        console.step({"reward": 0.75, "loss": loss})
    console.done()
    console.table("Results", ("model", "ocr"), [("base", 0.5)])
    captured = capsys.readouterr()
    first, last, *table = captured.err.splitlines()
    assert captured.out == ""
    assert first.startswith("teacher ocr 2/4")
    assert last.startswith("teacher ocr 4/4")
    assert "reward 0.7500  loss 0.1250  eta 0 s" in last
    assert any("base" in line for line in table)


def test_live_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console()
    console.start(2, "distill")
    console.step({"loss": 0.5})
    console.note("half way")
    console.start(1, "eval")
    console.done()
    assert "half way" in capsys.readouterr().err


def test_a_quiet_console_prints_only_results(capsys):
    console = Console(quiet=True)
    console.start(1, "x")
    console.step({})
    console.note("n")
    console.table("t", ("a",), [("b",)])
    console.result("r")
    assert capsys.readouterr() == ("r\n", "")
