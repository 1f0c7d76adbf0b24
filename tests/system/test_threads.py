"""Tasks on threads."""

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
