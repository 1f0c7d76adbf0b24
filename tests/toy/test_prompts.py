"""The toy's prompts: GenEval's metadata form, three disjoint splits."""

import hashlib
import json

from flowopd_cli.toy import prompts
from flowopd_cli.toy.rewards import geneval


def test_splits_share_no_text():
    texts = [{p.text for p in prompts.everything(split)} for split in prompts.SPLITS]
    assert all(texts)
    assert len(set.union(*texts)) == sum(map(len, texts))
    codes = prompts.codes()
    assert sum(map(len, codes.values())) == len({c for split in codes.values() for c in split})


def test_every_split_has_the_six_tags_and_valid_clauses():
    for split in prompts.SPLITS:
        assert {p.metadata["tag"] for p in prompts.geneval(split)} == set(prompts.TAGS)
    geneval().check(prompts.geneval("test"))


def test_counting_excludes_one_more():
    counting = next(p for p in prompts.geneval("test") if p.metadata["tag"] == "counting")
    include, exclude = counting.metadata["include"][0], counting.metadata["exclude"][0]
    assert exclude == {"class": include["class"], "count": include["count"] + 1}


def test_codes_are_in_double_quotes_and_ids_are_unique():
    assert all(f'"{prompt.metadata["target"]}"' in prompt.text for prompt in prompts.ocr("test"))
    ids = [p.id for split in prompts.SPLITS for p in prompts.everything(split)]
    assert len(ids) == len(set(ids))


def test_the_splits_never_change():
    rows = [[p.id, p.text, dict(p.metadata)] for split in prompts.SPLITS for p in prompts.everything(split)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest.startswith("bfeacda80f6dd1ef")
