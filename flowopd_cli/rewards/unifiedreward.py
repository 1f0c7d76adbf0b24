"""UnifiedReward (Wang et al. 2025, arXiv 2503.05236) by its published questions and parsing.

``flow_grpo`` is the protocol of Flow-GRPO (arXiv 2505.05470) and DiffusionNFT (arXiv 2509.16117): pictures of
512 x 512, the first ``Final Score: N`` of a greedy answer, and 0 where there is none. ``elements`` is the question of
the authors' own example for their models over Qwen2.5-VL.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.instructions import SourceFile, read_instruction
from flowopd_cli.rewards.pictures import png_url
from flowopd_cli.rewards.qwen_vl import QwenVL, refuse_special_tokens
from flowopd_cli.rewards.vlm import Connection, Judge, Judgement, message, named_endpoints, with_options
from flowopd_cli.rewards.weights import weights_id
from flowopd_cli.system.arguments import OptionsOf

RAW = "https://raw.githubusercontent.com/CodeGoat24/UnifiedReward/ff6f520247a2d36e2aff7b2ba53a935afd437f66"
CAPTION, PROMPT = "Text Caption: [{prompt}]", "{prompt}"
FINAL = re.compile(r"Final Score:\s*([1-5](?:\.\d+)?)")
NO_SCORE = "the answer has no score"
LONGEST = 1024  # tokens of an answer in this process, where a variant states no limit


@dataclass(frozen=True)
class Variant:
    """Where a question is published, the side of the square that pictures become, and the model it is put to."""

    source: SourceFile
    judge: str
    side: int | None = None
    max_tokens: int | None = None


VARIANTS = {
    "flow_grpo": Variant(
        SourceFile(
            f"{RAW}/sglang_llava/sglang_inference.py",
            "2f33c334ce04d8833484e156bb74722a0370d9407fa7f2b9de78448758104f4d",
            name="unifiedreward-sglang_inference.py",
        ),
        judge="UnifiedReward-7b-v1.5",
        side=512,
    ),
    "elements": Variant(
        SourceFile(
            f"{RAW}/inference_qwen/image_generation/qwen_point_score_image_generation.py",
            "5c8c2efcb7f07283a3a4b3685043e2da0ee909c876829a9edbe4938a4881971c",
            name="unifiedreward-qwen_point_score_image_generation.py",
        ),
        judge="UnifiedReward-qwen-7b",
        max_tokens=512,
    ),
}


@dataclass(frozen=True)
class Settings(Connection):
    """``unreadable`` is the score of an answer without one: ``zero`` as in the reference, or ``invalid``.

    ``instruction`` is a text file with ``{prompt}`` in place of the published question. The other fields are those of
    :class:`Connection`.
    """

    unreadable: Literal["zero", "invalid"] = "zero"
    instruction: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unreadable not in ("zero", "invalid"):
            raise RewardError(f"unifiedreward: unreadable {self.unreadable!r} is not one of zero, invalid")


@dataclass(frozen=True)
class QwenChat:
    """A model in this process in the place of an endpoint, which answers one request at a time."""

    model: QwenVL

    def request(self, path: str, payload: Any) -> dict[str, Any]:
        """The reply to a request about one picture."""
        picture, question = payload["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            text, cut = self.model.answer(image, question["text"], payload.get("max_tokens", LONGEST))
        return {"choices": [{"message": {"content": text}, "finish_reason": "length" if cut else "stop"}]}


class UnifiedReward(Judge):
    """A number from 1 to 5 as ``raw``, which papers print, and a fifth of it as the total, which they train on."""

    info = RewardInfo(
        "unifiedreward",
        "arXiv 2503.05236",
        0.0,
        1.0,
        license="MIT",
        note="published figures are of UnifiedReward-7b-v1.5 behind SGLang",
    )

    def __init__(
        self,
        url: str | Sequence[str] = (),
        model: str = "",
        variant: Literal["flow_grpo", "elements"] = "flow_grpo",
        source: str | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        **options: Annotated[Any, OptionsOf(Settings)],
    ) -> None:
        """``url`` is one endpoint or several, up to and with ``/v1``; ``model`` the name they serve.

        ``source`` in their place is a model over Qwen2-VL or Qwen2.5-VL that answers in this process: a local folder or
        ``repository@revision``. ``options`` are the fields of ``Settings``.

        Raises :class:`RewardError`: endpoint and source are both or neither named, or an option is wrong.
        Raises :class:`ArtifactError`: the question or the model cannot be read.
        """
        if variant not in VARIANTS:
            raise RewardError(f"unifiedreward: variant {variant!r} is not one of {', '.join(VARIANTS)}")
        if source is not None and (url or model):
            raise RewardError("unifiedreward: name a source, or an endpoint and its model, not both")
        self.settings = self.connection = with_options(Settings(), "unifiedreward", options)
        self.variant = VARIANTS[variant]
        self.concurrent = source is None
        if source is None:
            urls = named_endpoints("unifiedreward", url, model)
            self.chat = self.settings.endpoints("unifiedreward", urls)
        else:
            if unused := sorted(self.settings.extra.keys() - {"max_tokens"}):
                raise RewardError(f"unifiedreward: extra {', '.join(unused)}: a source takes max_tokens alone")
            self.chat, model = QwenChat(QwenVL(source, dtype, device)), source
            self.connection = replace(self.settings, concurrency=1)
        own = self.settings.instruction
        self.question = read_instruction(self.info.name, own, PROMPT) if own else self.variant.source.literal(CAPTION)
        self.model, self.name = model, f"{model}/{variant}"
        digest = hashlib.sha256(self.question.encode()).hexdigest()
        unreadable = self.settings.unreadable
        self.weights = {"model": weights_id(model), "variant": variant, "question": digest, "unreadable": unreadable}
        self.weights |= self.settings.identity | ({"dtype": dtype} if source else {})
        self.info = replace(self.info, **self._exactness())

    def _exactness(self) -> dict[str, Any]:
        """The fields of a declaration that say whether these are the figures that papers print."""
        published, judge = VARIANTS["flow_grpo"], self.model.partition("@")[0].rpartition("/")[2]
        question = self.variant is published and not self.settings.instruction
        other = [] if question else ["another question than in tables of papers"]
        other += [] if judge == published.judge else [f"judged by {self.model}, not by {published.judge}"]
        other += [] if self.settings.unreadable == "zero" else ["answers without a score are invalid, not 0"]
        fields = [name for name, value in self.settings.extra.items() if value != self._decoding.get(name)]
        other += [f"other settings of the request: {', '.join(fields)}"] if fields else []
        return {"exact": not other, "note": "; ".join(other)}

    @property
    def _decoding(self) -> dict[str, Any]:
        """The published settings of the request."""
        return {"temperature": 0, "max_tokens": self.variant.max_tokens}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts with special tokens of a model in this process."""
        if isinstance(self.chat, QwenChat):
            texts = ((prompt, prompt.text) for prompt in prompts)
            refuse_special_tokens(self.info.name, self.chat.model.tokenizer, texts)

    def body(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The picture, then the question; greedy decoding."""
        if self.variant.side:
            image = image.resize((self.variant.side, self.variant.side), Image.Resampling.BICUBIC)
        return {
            "model": self.model,
            "messages": [message(png_url(image), self.question.replace(PROMPT, text))],
            **self._decoding,
            **self.settings.extra,
        }

    def read(self, answer: str, cut: bool) -> Judgement:
        """The first score of the answer, wherever it ends."""
        if match := FINAL.search(answer):
            return Judgement(float(match[1]), answer)
        if self.settings.unreadable == "zero":
            return Judgement(0.0, answer, f"{NO_SCORE}; it counts as 0, as in the reference")
        return Judgement(None, answer, NO_SCORE)
