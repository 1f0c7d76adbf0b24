# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#   "torch>=2.6,<2.8",
#   "torchvision>=0.21,<0.23",
#   "modelscope==1.40.2",
#   "transformers==4.49.0",
#   "timm==1.0.15",
#   "addict==2.4.0",
#   "pyyaml>=6,<7",
#   "simplejson>=3.19,<5",
#   "numpy>=1.26,<3",
#   "pillow>=10,<13",
#   "pydantic>=2.8,<3",
#   "starlette>=1.0,<2",
#   "uvicorn>=0.34,<1",
# ]
# ///
"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135) as a worker; start it with ``flowopd rewards serve dpg-bench``.

mPLUG (Li et al. 2022, arXiv 2205.12005), tuned for VQA, answers each question of a prompt about its picture; the share
of questions that count is the total. Its code is modelscope's, which needs an older transformers. Pictures and
questions are prepared as by modelscope's pipeline for VQA, without the packages that the pipeline imports for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowopd_cli.rewards.dpg_bench.rules import grade, read_questions
from flowopd_cli.rewards.remote.protocol import Answer, Refusal
from flowopd_cli.rewards.remote.server import run
from flowopd_cli.rewards.weights import path_digest, pick_device
from flowopd_cli.system.arguments import Options

MODEL = "damo/mplug_visual-question-answering_coco_large_en"
REVISION = "master"  # the default of ModelScope, which the reference takes
TASK = "visual-question-answering"
QUESTION_TOKENS = 25  # a longer question is cut, as in the pipeline
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SharedPicture(torch.nn.Module):
    """A vision encoder for batches whose pictures are all the same: it encodes the first."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor, **options: Any) -> torch.Tensor:
        """The features ``(B, L, D)`` of ``(B, 3, H, W)``."""
        return self.encoder(images[:1], **options).expand(len(images), -1, -1)


class DPGBench:
    """The scorer. ``model`` is a folder, or an id of ModelScope with its ``revision``; ``batch`` questions at once."""

    def __init__(self, model: str = MODEL, revision: str = REVISION, device: str = "auto", batch: int = 32) -> None:
        import modelscope
        import transformers
        from modelscope.hub.snapshot_download import snapshot_download
        from modelscope.models.multi_modal.mplug import MPlug

        folder = model if Path(model).is_dir() else snapshot_download(model, revision=revision)
        self.device, self.batch = pick_device(device), batch
        # torch reads the checkpoint as tensors alone since 2.6
        self.model: Any = MPlug.from_pretrained(folder, task=TASK).to(self.device).eval()
        self.model.visual_encoder.visual = SharedPicture(self.model.visual_encoder.visual)
        self.tokenizer = transformers.BertTokenizer.from_pretrained(folder)
        versions = f"modelscope {modelscope.__version__}, transformers {transformers.__version__}"
        self.info: Mapping[str, Any] = {
            "reward": "dpg-bench",
            "package": f"{versions}, torch {torch.__version__}",
            "weights": {"model": path_digest(Path(folder))},
            "options": {},
            "paper": "arXiv 2403.05135",
            "low": 0,
            "high": 1,
            "license": "Apache-2.0",
            **exactness(model, revision),
        }

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Refuse prompts without questions, by ``Refusal`` (422)."""
        for prompt in prompts:
            try:
                read_questions(prompt["metadata"])
            except ValueError as error:
                raise Refusal(422, f"prompt {prompt['id']!r}: {error}") from error

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """The share of questions that count in each picture, with the answers and their categories as details."""
        self.check(prompts)
        totals, reports = [], []
        for picture, prompt in zip(pictures, prompts, strict=True):
            questions = read_questions(prompt["metadata"])
            answers = self.answers(picture, [question.question for question in questions])
            ids = [question.id for question in questions]
            total, report = grade(questions, dict(zip(ids, answers, strict=True)))
            totals.append(total)
            reports.append(report)
        return Answer(totals, {}, [total is not None for total in totals], reports)

    @torch.inference_mode()
    def answers(self, picture: Image.Image, questions: Sequence[str]) -> list[str]:
        """The model's answers to questions about one picture, by its own beam search."""
        side = self.model.config.image_res
        resized = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        answers: list[str] = []
        for start in range(0, len(questions), self.batch):
            texts = [question.lower() for question in questions[start : start + self.batch]]
            limits = {"padding": "max_length", "truncation": True, "max_length": QUESTION_TOKENS}
            encoded = self.tokenizer(texts, return_tensors="pt", **limits).to(self.device)
            images = pixels.to(self.device).expand(len(texts), -1, -1, -1)
            tokens, _ = self.model(images, encoded, train=False)
            answers += [self.model.tokenizer.decode(best, skip_special_tokens=True) for best, *_ in tokens]
        return answers


def exactness(model: str, revision: str) -> dict[str, Any]:
    """The fields of a description that say whether the answers are those of the reference's model."""
    other = model if model != MODEL else f"its revision {revision}" if revision != REVISION else ""
    note = f"answered by {other}, not by {MODEL}" if other else ""
    return {"exact": not note, "note": note}


if __name__ == "__main__":
    run(lambda options: DPGBench(**Options.of(DPGBench).convert(options)))
