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


def test_the_splits_never_change():
    rows = [[p.id, p.text, dict(p.metadata)] for split in prompts.SPLITS for p in prompts.everything(split)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest.startswith("bfeacda80f6dd1ef")
