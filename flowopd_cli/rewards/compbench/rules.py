"""T2I-CompBench's rules for attributes and for complex prompts: BLIP questions, products, the 3-in-1 combination.

Source: Huang et al. 2023, arXiv 2307.06350, ``BLIP_vqa.py``, ``CLIP_similarity.py`` and ``3_in_1.py``. Spatial
relations are in ``spatial.py``, counting in ``numeracy.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flowopd_cli.rewards.compbench.phrases import Token

PHRASES = 8
WORDS = 50
DROPPED = ("top", "the side", "the left", "the right")
PUNCTUATION = re.compile(r"""[.!"()*#:;~]""")
IMAGES = 10
# The scores that make up the 3-in-1 score of each kind of complex prompt.
PARTS = {
    "spatial": ("attribute", "spatial"),
    "action": ("attribute", "action"),
    "both": ("attribute", "spatial", "action"),
}


def questions(chunks: Sequence[str]) -> list[str]:
    """BLIP's questions about a prompt with these noun chunks: ``"<chunk>?"``, without places, at most eight."""
    return [f"{chunk}?" for chunk in chunks if chunk not in DROPPED][:PHRASES]


def clean_question(question: str) -> str:
    """A question as BLIP's data loader passes it on: lower case, some punctuation gone, 50 words at most."""
    words = PUNCTUATION.sub("", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:WORDS])


def question_files(names: Iterable[str], chunks: Mapping[str, Sequence[str]], index: int) -> list[dict[str, str | int]]:
    """The annotation that the official script writes for phrase number ``index``: one row per picture.

    Pictures are sorted by the number at the end of their names; a picture whose prompt has fewer phrases gets the
    empty question, which counts as 1.
    """
    rows: list[dict[str, str | int]] = []
    for number, name in enumerate(sorted(names, key=file_number)):
        texts = questions(chunks[file_prompt(name)])
        rows.append({"question_id": number, "image": name, "question": texts[index] if index < len(texts) else ""})
    return rows


def file_prompt(name: str) -> str:
    """The prompt in a picture's name: what stands before the first underscore."""
    return name.split("_")[0]


def file_number(name: str) -> int:
    """The running index in a picture's name: the number after the last underscore."""
    return int(name.split("_")[-1].split(".")[0])


def attribute_score(p_yes: Sequence[float]) -> str:
    """The product of the phrases' probabilities as it is written: each rounded to 4 decimals, multiplied in float32.

    A prompt without phrases scores 1.
    """
    product = np.float32(1)
    for probability in p_yes[:PHRASES]:
        product = np.float32(product * np.float32(f"{probability:.4f}"))
    return f"{product:.4f}"


def without_adjectives(tokens: Sequence[Token]) -> str:
    """What CLIP reads of a complex prompt: its tokens without the adjectives, joined by spaces."""
    return " ".join(token.text for token in tokens if token.pos != "ADJ")


def prompt_key(prompt: str) -> str:
    """How prompts are compared with the lists of relations: lower case, up to the first full stop."""
    return prompt.strip("\n").split(".")[0].lower()


def kind_of(prompt: str, spatial: Iterable[str], action: Iterable[str]) -> str:
    """Whether a complex prompt is ``spatial``, ``action`` or (in neither list) ``both``."""
    return kinds_of([prompt], spatial, action)[0]


def kinds_of(prompts: Iterable[str], spatial: Iterable[str], action: Iterable[str]) -> list[str]:
    """:func:`kind_of` each prompt."""
    one, two = ({prompt_key(line) for line in lines} for lines in (spatial, action))
    keys = map(prompt_key, prompts)
    return ["spatial" if key in one else "action" if key in two else "both" for key in keys]


def three_in_one(kind: str, scores: Mapping[str, float]) -> float:
    """Mean of the scores that count for a prompt of this kind; ``scores`` has attribute, spatial and action."""
    parts = PARTS[kind]
    return sum(scores[part] for part in parts) / len(parts)


def combine(kinds: Sequence[str], scores: Mapping[str, Sequence[float]], images: int = IMAGES) -> list[float]:
    """3-in-1 scores of a whole category: picture i belongs to prompt ``i // images``, whatever its id.

    ``scores`` has a list of ``len(kinds) * images`` values under attribute, spatial and action.
    """
    return [
        three_in_one(kind, {name: values[i * images + j] for name, values in scores.items()})
        for i, kind in enumerate(kinds)
        for j in range(images)
    ]
