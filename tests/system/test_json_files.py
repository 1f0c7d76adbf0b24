"""JSON lines with damaged rows, and values made plain."""

import pytest
import torch

from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.json_files import plain, read_json_lines


@pytest.mark.parametrize("line", [b"oops", b"[1]", b"3", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_a_damaged_row_is_named_by_its_line_and_ignored_at_the_end(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2: not JSON, or not an object"):
        read_json_lines(path)
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    assert read_json_lines(path) == [{"step": 1}]


def test_tensors_of_one_element_are_numbers():
    assert plain({"loss": torch.tensor(0.5), "pair": (1, torch.tensor(2.0))}) == {"loss": 0.5, "pair": [1, 2.0]}
