"""Servers that answer by a script, closed after the test."""

import pytest
from scripted import Scripted


@pytest.fixture
def serve():
    made = []

    def make(*replies):
        made.append(Scripted(*replies))
        return made[-1]

    yield make
    for server in made:
        server.close()
