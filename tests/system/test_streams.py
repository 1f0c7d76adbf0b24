"""Standard streams that cannot be written: messages are dropped, a result ends the command."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "flowopd_cli", "recipes", "ls"]
NOISY = "import sys; from flowopd_cli.system import streams; streams.secure(); print('m' * 10000, file=sys.stderr)"


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe without a reader."""
    source, sink = os.pipe()
    os.close(source)
    yield sink
    os.close(sink)


@pytest.fixture
def full():
    """A file on a full disk."""
    with open("/dev/full", "w") as file:
        yield file


def closed(*numbers):
    """A function that closes descriptors before a program starts."""
    return lambda: [os.close(number) for number in numbers]


@pytest.mark.parametrize("name", ["closed_pipe", "full"])
def test_messages_that_cannot_be_written_change_nothing(request, name):
    stream = request.getfixturevalue(name)
    assert subprocess.run([sys.executable, "-c", NOISY], stderr=stream, check=False).returncode == 0
    ended = subprocess.run([*COMMAND[:-1], "show", "nothing"], stderr=stream, check=False)
    assert ended.returncode == 2


def test_a_result_without_a_reader_ends_the_command_quietly(closed_pipe):
    ended = subprocess.run(COMMAND, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_result_on_a_full_disk_is_an_error(full):
    ended = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "flowopd: error: stdout: cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (4, message)


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_command_without_standard_streams_ends_like_any_other(numbers):
    assert subprocess.run(COMMAND, preexec_fn=closed(*numbers), capture_output=True, check=False).returncode == 0


def test_a_descriptor_that_was_closed_is_not_given_to_a_file(tmp_path):
    program = (
        f"from flowopd_cli.system import streams; streams.secure(); print(open({str(tmp_path / 'f')!r}, 'w').fileno())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=closed(0, 2), stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(ended.stdout) > 2


def test_a_path_that_the_encoding_lacks_is_printed_with_escapes(tmp_path):
    command = [*COMMAND[:-2], "prompts", "make", "ocr", "--n", "1", "--out", "\u00e9\udcff.jsonl"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "\\xe9\\udcff.jsonl\n"), ended.stderr
