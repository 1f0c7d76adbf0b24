"""The meeting of the processes of one run."""

import multiprocessing
import os
import socket
from datetime import timedelta

import pytest

from flowopd_cli.errors import FlowOPDError
from flowopd_cli.system import distributed


def arrive(rank, address, patience, sink):
    """Be one of three processes; what it is told, or its error."""
    os.environ.update(address, WORLD_SIZE="3", RANK=str(rank))
    distributed.ARRIVAL = timedelta(seconds=patience)
    try:
        sink.send(str(distributed.Group().gather(rank)))
    except FlowOPDError as error:
        sink.send(str(error))


@pytest.fixture
def meet():
    """Forks processes of these numbers, of three, and returns their output."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    fork = multiprocessing.get_context("fork")

    def start(*ranks, patience=60):
        pipes = [fork.Pipe(duplex=False) for _ in ranks]
        for rank, (_, sink) in zip(ranks, pipes, strict=True):
            fork.Process(target=arrive, args=(rank, address, patience, sink), daemon=True).start()
        assert all(source.poll(120) for source, _ in pipes)
        return [source.recv() for source, _ in pipes]

    return start


def test_processes_that_all_arrive_talk_to_each_other(meet):
    assert meet(2, 0, 1) == ["[0, 1, 2]"] * 3


def test_a_process_that_does_not_arrive_is_named(meet):
    first, _ = meet(0, 2, patience=2)
    assert first.startswith("process 0 of 3 cannot meet the others at 127.0.0.1:")
    assert ": missing 1 (waited 2 s)" in first


def test_a_first_process_that_does_not_arrive_is_named(meet):
    (text,) = meet(1, patience=2)
    assert text.startswith("process 1 of 3 cannot meet the others at 127.0.0.1:")
    assert ": missing 0 (" in text
    assert "\n" not in text


def test_a_port_that_cannot_be_served_names_no_process_as_missing(monkeypatch):
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FlowOPDError, match=r"cannot meet the others at 127\.0\.0\.1:x \(invalid literal"):
        distributed.Group().start()
