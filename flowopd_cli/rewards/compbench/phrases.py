"""Nouns and noun phrases of a prompt, by spaCy where it is installed, else by a small built-in tagger and chunker.

T2I-CompBench uses spaCy's ``en_core_web_sm`` (3.5). The built-in parser follows its conventions on the benchmark's
sentences. Reports name the parser, because another parse leads to other questions.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from flowopd_cli.errors import MissingDependency, RewardError

SPACY_MODEL = "en_core_web_sm"
ENGINES = ("auto", "builtin", "spacy")
TOKEN = re.compile(r"'s\b|\d+(?:[:.,]\d+)*|\w+?(?='s\b)|\w+|[^\w\s]")
MODIFIERS = ("ADJ", "VBN", "VBG")
NOUNS = ("NOUN", "PROPN")
PLAIN = {"VBN": "VERB", "VBG": "VERB", "POSS": "PRON"}
ADJECTIVE_ENDINGS = ("ous", "ful", "less", "able", "ible", "ish", "ical", "esque", "ive", "ic")
LISTED = ("DET", "PRON", "POSS", "AUX", "CCONJ", "SCONJ", "NUM", "ADV", "ADJ", "ADP", "VN", "VERB")


def _read_lexicon() -> dict[str, frozenset[str]]:
    text = re.sub(r"(?m)^#.*$", "", Path(__file__).with_name("lexicon.txt").read_text(encoding="utf-8"))
    parts = re.split(r"(?m)^\[(\w+)\]$", text)
    return {name: frozenset(words.split()) for name, words in zip(parts[1::2], parts[2::2], strict=True)}


LEXICON = _read_lexicon()


@dataclass(frozen=True)
class Token:
    """A word or a punctuation mark, its universal part-of-speech tag, and whether a space follows it."""

    text: str
    pos: str
    space: bool = True


@dataclass(frozen=True)
class Parse:
    """The tokens of a prompt and its noun chunks, in order."""

    tokens: tuple[Token, ...]
    chunks: tuple[str, ...]


def load_parser(engine: str = "auto") -> SpacyParser | BuiltinParser:
    """A parser by the name of its engine: ``builtin``, ``spacy``, or ``auto``, spaCy where it is installed.

    Raises :class:`RewardError`: no such engine.
    Raises :class:`MissingDependency`: ``spacy`` without spaCy or its English model.
    """
    if engine not in ENGINES:
        raise RewardError(f"phrases: engine {engine!r} is not one of {', '.join(ENGINES)}")
    installed = all(importlib.util.find_spec(name) is not None for name in ("spacy", SPACY_MODEL))
    return SpacyParser() if engine == "spacy" or (engine == "auto" and installed) else BuiltinParser()


def approximations(parser: SpacyParser | BuiltinParser) -> list[str]:
    """Differences of a parser from the benchmark's; none for spaCy with the 3.5 model."""
    reference = f"{SPACY_MODEL}-3.5." in parser.name
    return [] if reference else [f"parsed by {parser.name}, not by spaCy's {SPACY_MODEL} 3.5.0"]


class SpacyParser:
    """spaCy's small English model, as the official scripts use it."""

    def __init__(self) -> None:
        try:
            import spacy  # pyright: ignore[reportMissingImports]

            self._model = spacy.load(SPACY_MODEL)
        except (ImportError, OSError) as error:
            raise MissingDependency(f"spacy with its model {SPACY_MODEL}", extra="spacy") from error
        self.name = f"spacy-{version('spacy')}/{SPACY_MODEL}-{version(SPACY_MODEL)}"
        self._cache: dict[str, Parse] = {}

    def __call__(self, text: str) -> Parse:
        """Tokens and noun chunks of one prompt."""
        if text not in self._cache:
            document = self._model(text)
            tokens = tuple(Token(token.text, token.pos_, bool(token.whitespace_)) for token in document)
            self._cache[text] = Parse(tokens, tuple(chunk.text for chunk in document.noun_chunks))
        return self._cache[text]


class BuiltinParser:
    """Tags by lexicon, ending and neighbours; a chunk is a determiner, modifiers and nouns, up to the last noun."""

    name = "builtin-1"

    def __call__(self, text: str) -> Parse:
        """Tokens and noun chunks of one prompt."""
        spans = [(match.start(), match.end()) for match in TOKEN.finditer(text)]
        pieces = [text[start:end] for start, end in spans]
        tags = resolve([first_guess(piece, number) for number, piece in enumerate(pieces)], pieces)
        chunks = tuple(text[spans[a][0] : spans[b][1]] for a, b in noun_spans(tags, pieces))
        spaces = [end < len(text) and text[end].isspace() for _, end in spans]
        plain = [PLAIN.get(tag, tag) for tag in tags]
        return Parse(tuple(map(Token, pieces, plain, spaces)), chunks)


def first_guess(word: str, number: int) -> str:
    """The tag of a word on its own. ``VBN`` and ``VBG`` are participles, ``VN`` a verb that may be a noun."""
    lower = word.lower()
    if lower == "'s":
        return "PART"
    if not word[0].isalnum():
        return "PUNCT"
    if word[0].isdigit():
        return "NUM"
    tag = next((tag for tag in LISTED if lower in LEXICON[tag]), None)
    if tag is None and word[0].isupper() and number:
        tag = "PROPN"
    return tag or _tag_by_ending(lower)


def _tag_by_ending(word: str) -> str:
    if word.endswith(ADJECTIVE_ENDINGS) and word not in LEXICON["NOT_ADJ"]:
        return "ADJ"
    if word.endswith("ly") and len(word) > 4 and word not in LEXICON["NOT_ADV"]:
        return "ADV"
    if word not in LEXICON["NOT_PARTICIPLE"] and len(word) > 3:
        return "VBN" if word.endswith("ed") else "VBG" if word.endswith("ing") else "NOUN"
    return "NOUN"


def resolve(guesses: Sequence[str], pieces: Sequence[str]) -> list[str]:
    """Tags by the neighbours of each word. Participles stay ``VBN`` or ``VBG`` where they modify a noun."""
    guesses, tags = _nominal(guesses, pieces), []
    for i, guess in enumerate(guesses):
        before = tags[-1] if tags else ""
        after = guesses[i + 1] if i + 1 < len(guesses) else ""
        word = pieces[i].lower()
        if guess == "VN":
            verb = before in ("AUX", "PRON", "PART") or (before in NOUNS and after in _AFTER_VERB)
            guess = "VERB" if verb else "NOUN"
        elif guess in ("VBN", "VBG"):
            commas = before == "DET"
            gerund = guess == "VBG" and before in ("ADJ", "DET", "POSS") and not noun_follows(guesses, i, commas)
            guess = guess if _modifies(guesses, pieces, tags, i) else "NOUN" if gerund else "VERB"
        elif word == "can" and _container(before, pieces[i - 1], after):
            guess = "NOUN"
        elif guess == "AUX" and word.startswith("ha") and after not in ("VBN", "AUX", "VERB", "ADV"):
            guess = "VERB"
        elif guess == "DET" and word == "that" and after in ("VERB", "AUX", "VBN", "PRON"):
            guess = "PRON"
        elif guess == "NOUN" and word.endswith("ing") and after in ("DET", "POSS"):
            guess = "VERB"
        elif guess == "POSS" and not noun_follows(guesses, i):
            guess = "PRON"
        tags.append(guess)
    return tags


def _nominal(guesses: Sequence[str], pieces: Sequence[str]) -> list[str]:
    """Adjectives that stand for a noun ("a red square") become nouns, the last of a row first."""
    tags = list(guesses)
    for i in range(len(tags) - 1, 0, -1):
        noun = tags[i] == "ADJ" and pieces[i].lower() in LEXICON["NOMINAL"] and tags[i - 1] in _OPENERS
        if noun and not noun_follows(tags, i):
            tags[i] = "NOUN"
    return tags


def _container(before: str, previous: str, after: str) -> bool:
    """Whether ``can`` holds soup rather than helps a verb."""
    return before in MODIFIERS or previous == "watering" or (before in NOUNS and after in ("", "PUNCT", "CCONJ", "ADP"))


_AFTER_VERB = ("DET", "ADP", "POSS", "PRON", "NUM", "ADV", "ADJ", "PART", "VBG", "SCONJ")
_OPENERS = ("DET", "POSS", "NUM", "ADP", *MODIFIERS)


def noun_follows(tags: Sequence[str], i: int, commas: bool = False) -> bool:
    """Whether only modifiers, which commas and conjunctions may join, are between position ``i`` and a noun.

    With ``commas`` a comma may also precede the noun itself.
    """
    for j in range(i + 1, len(tags)):
        after = tags[j + 1] if j + 1 < len(tags) else ""
        joins = tags[j] in ("PUNCT", "CCONJ") and after in (*MODIFIERS, "ADV")
        joins = joins or (commas and tags[j] == "PUNCT" and after in NOUNS)
        if tags[j] in (*NOUNS, "VN"):
            return True
        if tags[j] not in (*MODIFIERS, "NUM", "ADV") and not joins:
            return False
    return False


def _modifies(guesses: Sequence[str], pieces: Sequence[str], tags: Sequence[str], i: int) -> bool:
    """Whether a participle stands before its noun ("a striped rug") rather than after it ("the rug leaned")."""
    before = tags[-1] if tags else ""
    if not noun_follows(guesses, i, commas=before == "DET"):
        return False
    after, noun = guesses[i + 1], pieces[i + 1].lower()
    if before in NOUNS:
        return guesses[i] == "VBN" and after in NOUNS and not noun.endswith("s")
    if before == "ADP" and guesses[i] == "VBG" and pieces[i - 1].lower() in ("for", "by", "from", "without", "while"):
        return False
    if before in ("PUNCT", "CCONJ"):
        return len(tags) > 1 and (tags[-2] in MODIFIERS or not {"VERB", "AUX", "PRON"} & set(tags))
    return before in ("", "ADV", *_OPENERS)


def noun_spans(tags: Sequence[str], pieces: Sequence[str]) -> list[tuple[int, int]]:
    """First and last token of each noun chunk."""
    spans: list[tuple[int, int]] = []
    i = 0
    while i < len(tags):
        last = i if tags[i] == "PRON" else _last_noun(tags, pieces, i)
        if last is not None:
            spans.append((i, last))
        i = i + 1 if last is None else last + 1
    return spans


def _last_noun(tags: Sequence[str], pieces: Sequence[str], start: int) -> int | None:
    """Where a chunk that begins at ``start`` ends; ``None`` when none begins there."""
    end: int | None = None
    commas = tags[start] == "DET"
    for j in range(start, len(tags)):
        tag, after = tags[j], tags[j + 1] if j + 1 < len(tags) else ""
        if tag in NOUNS:
            end = j
            continue
        opens = j == start and tag in ("DET", "POSS")
        modifies = tag in (*MODIFIERS, "NUM") and noun_follows(tags, j, commas and end is None)
        advises = tag == "ADV" and end is None and after in MODIFIERS
        onward = (*MODIFIERS, "ADV", *(NOUNS if tag == "PUNCT" and commas else ()))
        between = j > start and tags[j - 1] in MODIFIERS and after in onward
        joins = tag in ("PUNCT", "CCONJ") and end is None and between and noun_follows(tags, j - 1, commas)
        glues = pieces[j] in ("-", "'s") and j > start and (after in NOUNS or noun_follows(tags, j))
        if not (opens or modifies or advises or joins or glues):
            break
    return end
