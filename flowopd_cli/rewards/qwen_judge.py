"""A model over Qwen2-VL or Qwen2.5-VL that answers in this process, in the place of an endpoint."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.preference.clip import as_dtype, read, read_tokenizer
from flowopd_cli.rewards.qwen_vl import chat_inputs
from flowopd_cli.rewards.weights import pick_device

KINDS = ("qwen2_vl", "qwen2_5_vl")
LONGEST = 1024  # tokens of an answer, where the request states no limit


class QwenChat:
    """Answers requests of the chat completions API, greedily and one at a time."""

    def __init__(self, reward: str, source: str, dtype: str, device: str) -> None:
        """``source`` is a local folder or ``repository@revision``.

        Raises :class:`RewardError`: it is a model of another kind.
        Raises :class:`ArtifactError`: it cannot be read.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Tokenizer, Qwen2VLImageProcessorPil

        kind = read(AutoConfig, source).model_type
        if kind not in KINDS:
            raise RewardError(
                f"{reward}: {source} is a model of kind {kind}; in this process {' and '.join(KINDS)} answer: "
                "serve it with vLLM or SGLang, and name url and model"
            )
        self._device = pick_device(device)
        model = read(AutoModelForImageTextToText, source, dtype=as_dtype(dtype))
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._tokenizer = read_tokenizer(Qwen2Tokenizer, source, model.config.text_config.vocab_size)
        self._processor = read(Qwen2VLImageProcessorPil, source)

    @torch.no_grad()
    def request(self, path: str, payload: Any) -> dict[str, Any]:
        """The reply to a request about one picture."""
        picture, question = payload["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            inputs = chat_inputs(self._tokenizer, self._processor, [image], [question["text"]])
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        ids, limit = inputs["input_ids"], payload.get("max_tokens", LONGEST)
        kinds = (ids == self._model.config.image_token_id).int()
        output = self._model.generate(**inputs, mm_token_type_ids=kinds, max_new_tokens=limit, do_sample=False)
        answer = output[0, ids.shape[1] :]
        text = self._tokenizer.decode(answer, skip_special_tokens=True)
        finish = "length" if len(answer) >= limit else "stop"
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
