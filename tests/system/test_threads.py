"""Tasks on threads."""

import subprocess
import sys
import time

import pytest

from flowopd_cli.system.threads import in_parallel


def test_tasks_in_parallel_keep_their_order_and_stop_at_an_error():
    assert in_parallel([lambda i=i: i for i in range(7)], workers=3) == list(range(7))
    started = []

    def task(i):
        started.append(i)
        if i == 1:
            raise ValueError(i)
        time.sleep(0.05)

    with pytest.raises(ValueError, match="1"):
        in_parallel([lambda i=i: task(i) for i in range(50)], workers=2)
    assert len(started) < 10


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_at_the_end_changes_no_exit_code(name):
    source = (
        "import atexit, os, signal, time; from flowopd_cli.system.threads import end_process;"
        f"atexit.register(lambda: (os.kill(os.getpid(), signal.{name}), time.sleep(60)));"
        "end_process(7)"
    )
    assert subprocess.run([sys.executable, "-c", source], timeout=30).returncode == 7
