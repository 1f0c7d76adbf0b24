"""Questions read out of source files, without running them."""

import pytest

from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.rewards.instructions import literal, read_instruction

CODE = '''
raise SystemExit
SHORT = "Caption: {text}"
LONG = """How good?
Caption: {text} {{x}}"""
def ask(text, other):
    return f"Judge \\"{other.name}\\":\\n" "Text: [" f'{text}]'
'''


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("Caption: {text}", "How good?\nCaption: {text} {{x}}"),
        ("[{text}]", 'Judge "{other.name}":\nText: [{text}]'),
    ],
)
def test_the_longest_string_with_a_phrase(phrase, text):
    assert literal(CODE, phrase) == text


def test_a_file_without_the_phrase_is_refused():
    with pytest.raises(ArtifactError, match="no string of the file has 'Final"):
        literal(CODE, "Final Score")


def test_an_own_instruction_has_each_mark_once(tmp_path):
    path = tmp_path / "q.txt"
    with pytest.raises(RewardError, match=r"x: instruction .*q\.txt: cannot be read"):
        read_instruction("x", str(path), "{prompt}")
    path.write_text("{prompt} {prompt}")
    with pytest.raises(RewardError, match=r"needs \{prompt\} once, has it 2 times"):
        read_instruction("x", str(path), "{prompt}")
