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


@pytest.mark.parametrize("name", ["x", "a/b.png", "a red hen_000001.png", "..hidden", "a..b", "é"])
def test_plain_names_pass(tmp_path, name):
    assert below(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 4000])
def test_names_that_no_file_can_have_are_not_there(name):
    assert not is_file(name)
    assert not is_dir(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_closed_folder_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(ArtifactError, match="permission denied"):
        is_file(tmp_path / "closed" / "x")
