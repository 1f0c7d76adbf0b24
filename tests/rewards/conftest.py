"""Scripted HTTP servers, and permission to read the pickles that the tests write."""

import pytest
from support.scripted import Scripted
from support.trusting import trusting


@pytest.fixture(scope="module", autouse=True)
def _trust_pickles():
    with trusting():
        yield


@pytest.fixture
def serve():
    servers = []

    def make(*replies):
        servers.append(Scripted(*replies))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
