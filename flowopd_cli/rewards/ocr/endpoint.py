"""A vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, a provider) as a text reader."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.ocr.qwen import MAX_TOKENS, QUESTION
from flowopd_cli.rewards.ocr.reading import Line, Reading
from flowopd_cli.rewards.pictures import png_url, to_pil
from flowopd_cli.rewards.remote.http import EndpointError, Endpoints
from flowopd_cli.rewards.vlm import PATH, REFUSED, authorization, message, named_endpoints
from flowopd_cli.system.threads import in_parallel


class EndpointTextReader:
    """Asks LongText-Bench's question about each picture, several at a time, with greedy decoding."""

    def __init__(
        self,
        url: str | Sequence[str] = (),
        model: str = "",
        max_tokens: int = MAX_TOKENS,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        """``url`` is one endpoint or several, up to and with ``/v1``; ``model`` the name they serve.

        A text ends after ``max_tokens``. The API key is read from the environment, ``FLOWOPD_VLM_API_KEY``.

        Raises :class:`RewardError`: an endpoint, the model or an option is missing or wrong.
        """
        urls = named_endpoints("reader endpoint", url, model)
        if min(max_tokens, concurrency) < 1 or timeout <= 0 or retries < 0:
            limits = "max_tokens and concurrency must be 1 or more, timeout above 0, retries 0 or more"
            raise RewardError(f"reader endpoint: {limits}")
        self._endpoints = Endpoints(urls, authorization("reader endpoint"), timeout, retries)
        self._model, self._max_tokens, self._concurrency = model, max_tokens, concurrency
        self.name = f"endpoint/{model}"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The text of each RGB image in [0, 1], as one line; a picture that is refused has an ``error``.

        Raises :class:`RewardError`: no endpoint answers, or each of several pictures was refused.
        """
        readings = in_parallel([partial(self._read, picture) for picture in to_pil(images)], self._concurrency)
        if len(readings) > 1 and all(reading.error for reading in readings):
            raise RewardError(f"reader endpoint: every picture was refused: {readings[0].error}")
        return readings

    def _read(self, picture: Image.Image) -> Reading:
        request = {
            "model": self._model,
            "messages": [message(png_url(picture), QUESTION)],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        try:
            return Reading((Line(self._endpoints.request(PATH, request, read_text), 1.0),))
        except EndpointError as error:
            if error.status not in REFUSED:
                raise
            return Reading(error=str(error))


def read_text(reply: Any) -> str:
    """The text of a chat completion; ``ValueError`` without one."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError("its answer has no message")
    return text
