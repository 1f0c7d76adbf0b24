"""T2I-CompBench's rules for attributes and for complex prompts: BLIP questions, products, the 3-in-1 combination.

Source: Huang et al. 2023, arXiv 2307.06350, ``BLIP_vqa.py``, ``CLIP_similarity.py`` and ``3_in_1.py``.
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
    """A question as BLIP's data loader prepares it: lower case, without some punctuation, at most 50 words."""
    words = PUNCTUATION.sub("", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:WORDS])


def attribute_score(p_yes: Sequence[float]) -> str:
    """The product, in float32, of the phrases' probabilities rounded to 4 decimals; 1 without phrases."""
    product = np.float32(1)
    for probability in p_yes[:PHRASES]:
        product = np.float32(product * np.float32(f"{probability:.4f}"))
    return f"{product:.4f}"


def without_adjectives(tokens: Sequence[Token]) -> str:
    """The tokens of a complex prompt without adjectives, joined by spaces, as CLIP reads them."""
    return " ".join(token.text for token in tokens if token.pos != "ADJ")


def prompt_key(prompt: str) -> str:
    """The form in which prompts are compared with the lists of relations: lower case, up to the first full stop."""
    return prompt.strip("\n").split(".")[0].lower()


def kinds_of(prompts: Iterable[str], spatial: Iterable[str], action: Iterable[str]) -> list[str]:
    """Whether each complex prompt is ``spatial``, ``action`` or (in neither list) ``both``."""
    one, two = ({prompt_key(line) for line in lines} for lines in (spatial, action))
    keys = map(prompt_key, prompts)
    return ["spatial" if key in one else "action" if key in two else "both" for key in keys]


def three_in_one(kind: str, scores: Mapping[str, float]) -> float:
    """Mean of the scores that count for a prompt of this kind; ``scores`` has attribute, spatial and action."""
    parts = PARTS[kind]
    return sum(scores[part] for part in parts) / len(parts)
