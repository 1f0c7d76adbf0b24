"""Messages that cannot be shown stop no run, and a result that cannot be printed leaves a finished one."""

import pytest

from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir

FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {number})"
NO_READER = "import os; source, sink = os.pipe(); os.close(source); os.dup2(sink, {number})"
TERMINAL_GONE = """
import os
from flowopd_cli.runs.run import RunDir
main, side = os.openpty()
os.dup2(side, {number})
os.close(side)
log = RunDir.log
def closing(run, row):
    log(run, row)
    if row["iteration"] == 2:
        os.close(main)
RunDir.log = closing
"""


@pytest.mark.parametrize("before", [FULL, NO_READER, TERMINAL_GONE], ids=["full", "no-reader", "terminal-gone"])
def test_a_run_whose_messages_cannot_be_written_is_done(forks, whole, tmp_path, before):
    path = tmp_path / "r"
    ended = forks.run(*whole.commands["teacher"], "--out", path, before=before.format(number=2))
    assert (ended.code, ended.out) == (0, f"{path}\n")
    assert status_now(path) == "done"
    assert len(RunDir(path).rows()) == 5


@pytest.mark.parametrize(("before", "code"), [(FULL, 4), (NO_READER, 141)], ids=["full", "no-reader"])
def test_a_run_whose_result_cannot_be_written_is_done(forks, whole, tmp_path, before, code):
    path = tmp_path / "r"
    ended = forks.run(*whole.commands["teacher"], "--out", path, before=before.format(number=1))
    assert ended.code == code
    assert ("stdout: cannot be written" in ended.err) == (code == 4)
    assert status_now(path) == "done"
