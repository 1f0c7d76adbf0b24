"""Files that are replaced as a whole."""

import os
import stat

from flowopd_cli.system.files import atomic_write


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, "figures\n")
    assert os.read(reader, 100) == b"figures\n"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
