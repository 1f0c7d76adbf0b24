"""Names of files from outside."""

import os

import pytest

from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.files import is_dir, is_file
from flowopd_cli.system.paths import below


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "..", "", "a\0b", "a\nb", "\\\\host\\x", "C:\\x", "a\\..\\..\\x", "a\ud800"],
)
def test_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(ArtifactError, match="is not the name of a file in it"):
        below(tmp_path, name)


def test_plain_names_pass_and_names_that_no_file_can_have_are_missing(tmp_path):
    for name in ("x", "a/b.png", "a red hen_000001.png", "..hidden", "a..b", "é"):
        assert below(tmp_path, name) == tmp_path / name
    for name in ("x" * 5000, "a\0b", "a/" * 4000):
        assert not is_file(name)
        assert not is_dir(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_closed_folder_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(ArtifactError, match="permission denied"):
        is_file(tmp_path / "closed" / "x")
