"""The toy's prompts: GenEval's metadata form, three splits that share nothing."""

from collections import Counter

from flowopd_cli.toy import prompts
from flowopd_cli.toy.rewards import geneval


def test_splits_share_no_text():
    texts = {split: {p.text for p in prompts.everything(split)} for split in prompts.SPLITS}
    assert all(texts.values())
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_no_code_is_in_two_splits():
    codes = prompts.codes()
    assert sum(map(len, codes.values())) == len({c for split in codes.values() for c in split})


def test_every_split_has_the_six_tags():
    for split in prompts.SPLITS:
        assert set(Counter(p.metadata["tag"] for p in prompts.geneval(split))) == set(prompts.TAGS)


def test_the_clauses_are_those_that_the_reward_wants():
    geneval().check(prompts.geneval("test"))


def test_counting_excludes_one_more():
    counting = next(p for p in prompts.geneval("test") if p.metadata["tag"] == "counting")
    include, exclude = counting.metadata["include"][0], counting.metadata["exclude"][0]
    assert exclude == {"class": include["class"], "count": include["count"] + 1}


def test_codes_stand_in_double_quotes():
    for prompt in prompts.ocr("test"):
        assert f'"{prompt.metadata["target"]}"' in prompt.text


def test_ids_are_unique_and_draws_are_stable():
    ids = [p.id for split in prompts.SPLITS for p in prompts.everything(split)]
    assert len(ids) == len(set(ids))
    assert prompts.geneval("test")[0] == prompts.geneval("test")[0]
