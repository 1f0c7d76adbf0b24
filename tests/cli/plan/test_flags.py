"""The grammar of single flags."""

import pytest

from flowopd_cli.cli.plan import flags
from flowopd_cli.errors import RecipeError


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (flags.prompt_spec, "p.txt,task=[", "--prompts p.txt: task:1: not YAML"),
        (flags.prompt_spec, "p.txt,limit=&a", "--prompts p.txt: limit:1: not YAML"),
        (lambda text: flags.teacher_specs([text]), "ocr=r,guidance={", "--teacher ocr=r: guidance:1: not YAML"),
        (lambda text: flags.reward_options([text]), "a=[", "--set a:1: not YAML"),
        (lambda text: flags.reward_options([text]), "api_key=S3CRET", "option 'api_key' holds a secret"),
        (lambda text: flags.reward_options([text]), "url=http://u:S3CRET@h", "option 'url' holds a login"),
    ],
)
def test_values_of_flags_are_refused_in_one_line(read, text, words):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert words in str(caught.value)
    assert "S3CRET" not in str(caught.value)
