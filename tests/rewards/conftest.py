"""Servers that answer by a script, closed after the test; the tests' own checkpoints, which are taken as they are."""

import pytest
from support.scripted import Scripted
from support.trusting import trusting


@pytest.fixture(scope="module", autouse=True)
def _own_checkpoints():
    with trusting():
        yield


@pytest.fixture
def serve():
    made = []

    def make(*replies):
        made.append(Scripted(*replies))
        return made[-1]

    yield make
    for server in made:
        server.close()
