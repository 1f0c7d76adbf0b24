"""HPSv3 (Ma et al. 2025, arXiv 2508.03789): Qwen2-VL-7B reads a picture, an instruction and the prompt.

A small network turns its state at the token ``<|Reward|>`` into the mean and the logarithm of the deviation of a
Gaussian; the mean is the score. Formula and preprocessing are those of the package ``hpsv3`` 1.0.0.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.instructions import SourceFile, read_instruction
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import as_dtype, read, read_tokenizer
from flowopd_cli.rewards.preference.scoring import assemble, declared, scalar_result
from flowopd_cli.rewards.qwen_vl import chat_inputs, refuse_special_tokens
from flowopd_cli.rewards.weights import check_tensors, pick_device, read_checkpoint, refuse_mismatch, weights_id

MODEL = "MizzenAI/HPSv3@4f81e3e09edd82fe3c5f636444c721b592a735ca"
FILE = "HPSv3.safetensors"
BASE = "Qwen/Qwen2-VL-7B-Instruct@eed13092ef92e448dd6875b2a00151bd3f7db0ac"
WHEEL = SourceFile(
    "https://files.pythonhosted.org/packages/20/ed/6feb979b0086f57dc7a8b545693e1dbeffd60c8d942971e0445c65fcf438/"
    "hpsv3-1.0.0-py3-none-any.whl",
    "1a1b3ed1f538315ddf0e90c55b9f5c8ab3248d772cd713c11f7dfe35bf867ab3",
    "hpsv3/dataset/data_collator_qwen.py",
)
PROMPT, REWARD = "{text_prompt}", "<|Reward|>"
PIXELS = 256 * 28 * 28
WIDTHS = (1024, 16, 2)  # of the head's layers
PARTS = (  # of a checkpoint, under its names in transformers 4.45 and later ones, and here
    (re.compile(r"(model\.)?visual\."), "visual."),
    (re.compile(r"model\.(language_model\.)?(?=(layers|embed_tokens|norm)\.)"), "language_model."),
)
EMBEDDINGS = "language_model.embed_tokens.weight"
UNUSED = "lm_head.weight"


class HPSv3Reward(Reward):
    """The mean of a Gaussian of human preference, about 0 (Stable Diffusion 2) to 11 (FLUX.1); ``sigma`` is its width.

    The reference computes in bfloat16, the head in float32; so does this by default.
    """

    info = RewardInfo(
        "hpsv3",
        "arXiv 2508.03789",
        -5.0,
        15.0,
        license="Apache-2.0 (weights and base), MIT (code)",
        note="range as usually seen, not a bound; 17 GB of weights",
    )

    def __init__(
        self,
        source: str = MODEL,
        base: str = BASE,
        instruction: str | None = None,
        dtype: str = "bfloat16",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """``source`` has the checkpoint, ``base`` configuration, tokenizer and picture processor: local folders or
        ``repository@revision``; ``source`` may be the file itself.

        ``instruction`` is a text file with ``{text_prompt}`` and ``<|Reward|>`` in place of the published one.

        Raises :class:`ArtifactError`: one of them cannot be read, or they do not fit together.
        """
        from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

        self._instruction = own_instruction(instruction) if instruction else published_instruction()
        tensors, path = read_checkpoint(source, FILE)
        body, head = _split(tensors, path)
        refuse_mismatch(path, [] if EMBEDDINGS in body else [EMBEDDINGS], [], [])
        config, words = read(Qwen2VLConfig, base), len(body[EMBEDDINGS])
        config.text_config.vocab_size = words
        self._tokenizer = read_tokenizer(Qwen2Tokenizer, base, words)
        self._tokenizer.add_tokens([REWARD], special_tokens=True)
        if len(self._tokenizer) != words:
            size = f"{len(self._tokenizer)} words with {REWARD}"
            raise ArtifactError(f"{base}: a tokenizer of {size}, for a model of {words}")
        self._reward = self._tokenizer.convert_tokens_to_ids(REWARD)
        self._processor = read(Qwen2VLImageProcessorPil, base)
        self._device, self._batch, self.source = pick_device(device), batch, source
        self._model = assemble(Qwen2VLModel, config, body, path, as_dtype(dtype)).to(self._device)
        self._head = _head(head, config.text_config.hidden_size, path).to(self._device)
        text = hashlib.sha256(self._instruction.encode()).hexdigest()
        self.weights = {"checkpoint": weights_id(source), "base": weights_id(base), "instruction": text, "dtype": dtype}
        default = source == MODEL and base == BASE and instruction is None
        self.info = declared(self.info, default, dtype, "bfloat16")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts with special tokens, such as those that mark the picture's and the score's place."""
        refuse_special_tokens("hpsv3", self._tokenizer, ((prompt, prompt.text) for prompt in prompts))

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        self.check(prompts)
        parts = [torch.zeros(0, 2)]
        for start in range(0, len(prompts), self._batch):
            rows = slice(start, start + self._batch)
            parts.append(self._gaussians(to_pil(images[rows]), [prompt.text for prompt in prompts[rows]]))
        mean, log_deviation = torch.cat(parts).unbind(dim=1)
        return scalar_result(mean, {"sigma": log_deviation.exp()}, self.source)

    def _gaussians(self, images: list[Image.Image], texts: list[str]) -> Float[Tensor, "b 2"]:
        """Mean and logarithm of the deviation.

        Positions count tokens, for the picture's too: the reference calls the language model without Qwen2-VL's
        positions in three dimensions.
        """
        questions = [self._instruction.replace(PROMPT, text) for text in texts]
        inputs = chat_inputs(self._tokenizer, self._processor, images, questions, pixels=PIXELS)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1], device=self._device).expand(3, *ids.shape)
        states = self._model(**inputs, position_ids=positions, use_cache=False).last_hidden_state
        return self._head(states[ids == self._reward].float()).cpu()


def published_instruction() -> str:
    """The instruction that the checkpoint was trained with, from the authors' package."""
    return WHEEL.literal(PROMPT) + WHEEL.literal(REWARD)


def own_instruction(path: str) -> str:
    """A user's instruction with the places of the prompt and of the score."""
    return read_instruction("hpsv3", path, PROMPT, REWARD)


def _split(tensors: Mapping[str, Tensor], path: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The checkpoint's Qwen2-VL under the names of ``Qwen2VLModel``, and its head; the language head is not used."""
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = tensor
        elif name != UNUSED:
            match = next(((m, new) for old, new in PARTS if (m := old.match(name))), None)
            refuse_mismatch(path, [], [] if match else [name], [])
            if match:
                body[match[1] + name[match[0].end() :]] = tensor
    return body, head


def _head(tensors: Mapping[str, Tensor], width: int, path: str) -> nn.Sequential:
    first, second, last = (nn.Linear(a, b, device="meta") for a, b in zip((width, *WIDTHS[:-1]), WIDTHS, strict=True))
    head = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), last)
    check_tensors(path, head.state_dict(), tensors)
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return head.eval().requires_grad_(False)
