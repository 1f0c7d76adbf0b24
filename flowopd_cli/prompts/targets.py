"""The text that a prompt asks for, which a reward of rendered text looks for in the picture.

It is the row's ``target``, else the first quotation of the prompt:

- Marks are ``"…"``, ``“…”``, ``„…“``, ``”…”``, ``«…»``, ``»…«``, ``「…」``, ``『…』`` and ``＂…＂``.
- ``"`` after a digit opens nothing: it is an inch mark.
- ``\\"`` and ``""`` stand for a mark inside ``"…"``, and open and close a quotation outside of it. A prompt that is
  one quoted field of a CSV file is read as that field.
- ``"`` after a digit ends a quotation only if the marks behind it are paired: ``"5" pipe"`` is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowopd_cli.errors import PromptError

LONGEST_TARGET = 1000  # characters
WAY_OUT = 'quote it, or write it under "target" in a .jsonl row'
_MARK = r'(?<![\d\\"])"'
_QUOTATION = re.compile(
    r'(?<!\d)\\"(.*?)\\"|(?<!\d)""(?=\S)([^"]+)""|' + _MARK + r'((?:\\"|""|[^"])*)"'
    r"|[“„”]([^“„”]*)[“”]|[«»]([^«»]*)[«»]|「([^「」]*)」|『([^『』]*)』|＂([^＂]*)＂",
    re.DOTALL,
)
_PAIR = re.compile(r'(?<![\w\\"])"[^"]*"')
_FIELD = re.compile(r'"((?:[^"]|"")*)"')


def parse_target(place: str, text: str, metadata: Mapping[str, Any]) -> str:
    """The text to render, by the rules of this module; ``place`` names the prompt in errors.

    Raises :class:`PromptError`: ``target`` is neither a text nor a number, nothing is quoted, the quotation is
    ambiguous, or the target is blank or longer than ``LONGEST_TARGET``.
    """
    value = metadata.get("target")
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise PromptError(f'{place}: "target" must be a text or a number, not {str(value)[:80]}')
    target = _quotation(place, text) if value is None else str(value)
    if not target.strip():
        raise PromptError(
            f'{place}: "target" is blank: write the text to render, or leave it out to take the quotation'
        )
    if len(target) > LONGEST_TARGET:
        raise PromptError(f"{place}: a text to render of {len(target)} characters; at most {LONGEST_TARGET} are taken")
    return target


def parse_texts(place: str, metadata: Mapping[str, Any]) -> str:
    """The texts to render of LongText-Bench's metadata, joined by spaces; ``place`` names the prompt in errors.

    Raises :class:`PromptError`: ``text`` is not a list of texts.
    """
    texts = metadata.get("text")
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise PromptError(f'{place}: needs the texts to render as a list under "text" in a .jsonl row')
    return " ".join(texts)


def _quotation(place: str, text: str) -> str:
    if (field := _FIELD.fullmatch(text.strip())) and '""' in field[1]:
        text = field[1].replace('""', '"')
    match = _QUOTATION.search(text)
    quotation = next((group for group in match.groups() if group is not None), "") if match else ""
    if not match or not quotation.strip():
        raise PromptError(f"{place}: no text in double quotes to render: {text[:80]!r}; {WAY_OUT}")
    if match[3] is None:
        return quotation.strip()  # French marks have spaces inside
    rest = _PAIR.sub(" ", text[match.end() :])
    if quotation[-1].isdigit() and len(re.findall(_MARK, rest)) % 2:
        raise PromptError(f"{place}: the quotation may end at an inch mark: {text[:80]!r}; {WAY_OUT}")
    return quotation.replace('\\"', '"').replace('""', '"')
