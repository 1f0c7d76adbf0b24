"""The built-in parser on sentences of the benchmark, and the choice of a parser."""

import sys
import types

import pytest

from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.compbench import phrases
from flowopd_cli.rewards.compbench.phrases import BuiltinParser, SpacyParser, Token, approximations, load_parser

parse = BuiltinParser()


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a green spoon and a blue towel", ["a green spoon", "a blue towel"]),
        ("a white orange and a brown hen", ["a white orange", "a brown hen"]),
        ("an oblong egg and a square sponge.", ["an oblong egg", "a square sponge"]),
        ("rubber boots and a wooden flute", ["rubber boots", "a wooden flute"]),
        ("a triangular slice of melon and a round jar of jam", ["a triangular slice", "melon", "a round jar", "jam"]),
        ("a cubic soda can and a metallic watering can", ["a cubic soda can", "a metallic watering can"]),
        ("a black and white goose near a pond", ["a black and white goose", "a pond"]),
        ("A long, narrow grey hallway with red doors.", ["A long, narrow grey hallway", "red doors"]),
        ("The wooden ladle and metallic pot stir the hot stew.", ["The wooden ladle", "metallic pot", "the hot stew"]),
        ("The round tray and the oval plate were on the shelf.", ["The round tray", "the oval plate", "the shelf"]),
        ("The striped towel leaned against a tiled wall.", ["The striped towel", "a tiled wall"]),
        ("The baker's hands held the warm, inviting bread.", ["The baker's hands", "the warm, inviting bread"]),
        ("The soft, gentle song of the bird woke her.", ["The soft, gentle song", "the bird", "her"]),
        ("two red foxes and three white owls", ["two red foxes", "three white owls"]),
        ("a cat on top of the side of a box", ["a cat", "top", "the side", "a box"]),
        ("a crystal-clear glass and a tie-dye shirt", ["a crystal-clear glass", "a tie-dye shirt"]),
        ("", []),
    ],
)
def test_noun_chunks(prompt, chunks):
    assert list(parse(prompt).chunks) == chunks


@pytest.mark.parametrize(
    ("prompt", "tags"),
    [
        ("a goat next to a hen", "DET NOUN ADJ ADP DET NOUN"),
        ("a key hidden by a bag", "DET NOUN VERB ADP DET NOUN"),
        ("The red scarf was on top of the chair.", "DET ADJ NOUN AUX ADP NOUN ADP DET NOUN PUNCT"),
        ("The metallic stand display a wooden mask", "DET ADJ NOUN VERB DET ADJ NOUN"),
        ("a stunning display of light", "DET ADJ NOUN ADP NOUN"),
    ],
)
def test_tags(prompt, tags):
    assert " ".join(token.pos for token in parse(prompt).tokens) == tags


def test_tokens_have_their_spaces():
    tokens = parse("The dog's bowl, red.").tokens
    assert [token.text for token in tokens] == ["The", "dog", "'s", "bowl", ",", "red", "."]
    assert "".join(token.text + " " * token.space for token in tokens) == "The dog's bowl, red."


def test_engines_are_chosen_by_name(monkeypatch):
    assert load_parser("builtin").name == "builtin-1"
    assert load_parser("auto").name == "builtin-1" or load_parser("auto").name.startswith("spacy")
    with pytest.raises(RewardError, match="engine 'nltk' is not one of auto, builtin, spacy"):
        load_parser("nltk")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingDependency, match=r"pip install 'flowopd\[spacy\]'"):
        load_parser("spacy")


def word(text, pos="", space=" "):
    return types.SimpleNamespace(text=text, pos_=pos, whitespace_=space)


class Document(list):
    noun_chunks = (word("a red hat"), word("top"))


def test_spacy_parses_each_prompt_once(monkeypatch):
    texts = []

    def model(text):
        texts.append(text)
        return Document([word("hat", "NOUN", ""), word(".", "PUNCT", "")])

    fake = types.ModuleType("spacy")
    fake.load = lambda name: model
    monkeypatch.setitem(sys.modules, "spacy", fake)
    monkeypatch.setattr(phrases, "version", lambda package: "3.5.0")
    parser = SpacyParser()
    assert parser("hat.") is parser("hat.")
    assert texts == ["hat."]
    assert parser.name == "spacy-3.5.0/en_core_web_sm-3.5.0"
    assert parser("hat.").chunks == ("a red hat", "top")
    assert parser("hat.").tokens == (Token("hat", "NOUN", False), Token(".", "PUNCT", False))
    assert approximations(parser) == []
    assert approximations(BuiltinParser()) == ["parsed by builtin-1, not by spaCy's en_core_web_sm 3.5.0"]
    monkeypatch.setattr(phrases, "version", lambda package: "3.8.0")
    assert "parsed by spacy-3.8.0/en_core_web_sm-3.8.0, not by" in approximations(SpacyParser())[0]
