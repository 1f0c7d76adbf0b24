"""BLIP-VQA, the attribute score of T2I-CompBench: does the picture show each noun phrase of its prompt?

Source: Huang et al. 2023, arXiv 2307.06350; the model is BLIP-VQA base, capfilt-large (Li et al. 2022, arXiv
2201.12086). As in the official code, the first token of a question is ``[ENC]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.compbench.blip_weights import CHECKPOINT, GRID, HUB_GRID, load_blip, tokenizer_source
from flowopd_cli.rewards.compbench.phrases import approximations, load_parser
from flowopd_cli.rewards.compbench.rules import attribute_score, clean_question, questions
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import as_dtype, read
from flowopd_cli.rewards.preference.scoring import CLIP_MEAN, CLIP_STD, declared
from flowopd_cli.rewards.weights import pick_device, shared, split_digest, weights_id

ENC, DEC, YES, NO = 30523, 30522, 2748, 2053
MAX_TOKENS = 35


class Question(NamedTuple):
    """Question ``column`` about picture ``row`` of a batch, and its tokens."""

    row: int
    column: int
    ids: list[int]


class BlipVQA:
    """The question-answering model with its tokenizer, without gradients.

    ``grid`` is the side in pixels of its position table; the official model has 480. A table for 384, as in conversions
    on the Hub, is interpolated to 480.
    """

    def __init__(
        self,
        source: str = CHECKPOINT,
        *,
        tokenizer: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """Read the original checkpoint (a URL or a local file), or a converted folder or Hub id.

        A ``.pth`` needs its digest, ``model.pth#sha256=...``: its authors publish none. The tokenizer is that of the
        folder; beside an original file, or else BERT's on the Hub.

        Raises :class:`ArtifactError`: it is missing, or not a BLIP-VQA model with every weight.
        """
        from transformers import BertTokenizer, BlipImageProcessorPil

        model = load_blip(source).to(pick_device(device), as_dtype(dtype))
        self._model, self._batch = model.eval().requires_grad_(False), batch
        self._tokenizer = read(BertTokenizer, tokenizer or tokenizer_source(source))
        self.grid = int(model.config.vision_config.image_size)
        self._side = GRID if self.grid == HUB_GRID else self.grid
        size = {"height": self._side, "width": self._side}
        self._processor = BlipImageProcessorPil(size=size, resample=3, image_mean=CLIP_MEAN, image_std=CLIP_STD)

    def approximations(self) -> list[str]:
        """Differences from the official model."""
        return [] if self.grid == GRID else [f"position grid of {self.grid} pixels, not {GRID}"]

    @torch.no_grad()
    def p_yes(self, pictures: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Probability of "yes" against "no" for each question about each picture, by the answer's first token.

        Only questions of one length share a batch: in ``transformers`` the answer attends to padding, in the original
        it does not.
        """
        answers = [[math.nan] * len(row_texts) for row_texts in texts]
        for start in range(0, len(pictures), self._batch):
            states = self._encode(pictures[start : start + self._batch])
            batch_questions = [
                Question(row, column, self._tokens(text))
                for row in range(len(states))
                for column, text in enumerate(texts[start + row])
            ]
            for part in of_one_length(batch_questions, self._batch):
                rows = torch.tensor([question.row for question in part], device=states.device)
                values = self._answer(states[rows], [question.ids for question in part])
                for question, value in zip(part, values, strict=True):
                    answers[start + question.row][question.column] = value
        return answers

    def _encode(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B L D"]:
        pixels = self._processor(list(pictures), return_tensors="pt").pixel_values
        return self._model.vision_model(
            pixel_values=pixels.to(self._model.device, self._model.dtype),
            interpolate_pos_encoding=self._side != self.grid,
        ).last_hidden_state

    def _tokens(self, question: str) -> list[int]:
        ids = self._tokenizer(clean_question(question), truncation=True, max_length=MAX_TOKENS).input_ids
        return [ENC, *ids[1:]]

    def _answer(self, states: Float[Tensor, "b L D"], rows: list[list[int]]) -> list[float]:
        ids = torch.tensor(rows, device=states.device)
        states = self._model.text_encoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state
        begin = torch.full((len(rows), 1), DEC, device=states.device)
        logits = self._model.text_decoder(input_ids=begin, encoder_hidden_states=states).logits[:, 0]
        likely = logits.float().softmax(dim=-1)
        return (likely[:, YES] / (likely[:, YES] + likely[:, NO])).tolist()


class BlipVQAReward(Reward):
    """The reward ``blip-vqa``: the product of P(yes) over the prompt's noun phrases."""

    info = RewardInfo(
        "blip-vqa",
        "arXiv 2307.06350",
        0.0,
        1.0,
        license="BSD-3-Clause",
        note="exact with spaCy's en_core_web_sm; the built-in chunker agrees with it on regular sentences",
    )

    def __init__(
        self,
        model: str = CHECKPOINT,
        *,
        tokenizer: str | None = None,
        parser: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """``model`` is the original checkpoint or a converted folder, ``parser`` one of auto, builtin and spacy."""
        options = {"tokenizer": tokenizer, "dtype": dtype, "device": device, "batch": batch}
        self.parser = load_parser(parser)
        self.model = shared(BlipVQA, model, **options)
        self.engine = f"blip-vqa-{self.model.grid}/{self.parser.name}"
        self.weights = {"model": weights_id(model), "dtype": dtype}
        notes = [*approximations(self.parser), *self.model.approximations()]
        info = replace(self.info, exact=not notes, note="; ".join(notes))
        self.info = declared(info, split_digest(model)[0] == CHECKPOINT and tokenizer is None, dtype)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures: ``scores`` has ``attribute``, ``details`` the questions and the answers."""
        texts = [questions(self.parser(prompt.text).chunks) for prompt in prompts]
        answers = self.model.p_yes(to_pil(images), texts)
        valid = torch.tensor([all(map(math.isfinite, row)) for row in answers], dtype=torch.bool)
        total = torch.tensor([float(attribute_score(row)) for row in answers])
        total = torch.where(valid, total, torch.nan)
        details: list[dict[str, Any]] = []
        for row_texts, row, good in zip(texts, answers, valid.tolist(), strict=True):
            outcome = {"p_yes": [round(value, 4) for value in row]} if good else {"error": "an answer is not a number"}
            details.append({"questions": row_texts, **outcome, "parser": self.parser.name})
        return RewardResult(total, {"attribute": total}, valid, tuple(details))


def of_one_length(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Batches of at most ``size`` questions, each of questions with the same number of tokens."""
    ordered = sorted(questions, key=lambda question: len(question.ids))
    for _, group in groupby(ordered, key=lambda question: len(question.ids)):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))
