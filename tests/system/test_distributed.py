"""The meeting of the processes of one run."""

import os
import socket
import subprocess
import sys

import pytest

from flowopd_cli.errors import FlowOPDError
from flowopd_cli.system import distributed

MEET = """
from datetime import timedelta
from flowopd_cli.errors import FlowOPDError
from flowopd_cli.system import distributed
distributed.ARRIVAL = timedelta(seconds=4)
try:
    print(distributed.GROUP.gather(distributed.GROUP.rank))
except FlowOPDError as error:
    print(error)
"""


@pytest.fixture
def meet():
    """Starts processes of these numbers, of three, and returns their output."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}

    def start(*ranks):
        processes = []
        for rank in ranks:
            environment = {**os.environ, **address, "WORLD_SIZE": "3", "RANK": str(rank)}
            command = [sys.executable, "-c", MEET]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return [process.communicate(timeout=60)[0].strip() for process in processes]

    return start


def test_processes_that_all_arrive_talk_to_each_other(meet):
    assert meet(2, 0, 1) == ["[0, 1, 2]"] * 3


def test_a_process_that_does_not_arrive_is_named(meet):
    first, _ = meet(0, 2)
    assert first.startswith("process 0 of 3 cannot meet the others at 127.0.0.1:")
    assert ": missing 1 (waited 4 s)" in first


def test_a_first_process_that_does_not_arrive_is_named(meet):
    (text,) = meet(1)
    assert text.startswith("process 1 of 3 cannot meet the others at 127.0.0.1:")
    assert ": missing 0 (" in text
    assert "\n" not in text


def test_a_port_that_cannot_be_served_names_no_process_as_missing(monkeypatch):
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FlowOPDError, match=r"cannot meet the others at 127\.0\.0\.1:x \(invalid literal"):
        distributed.Group().start()
