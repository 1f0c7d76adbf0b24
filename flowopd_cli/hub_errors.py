"""What the Hub or the way to it has against a request, as one line with the way out. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowopd_cli.errors import ArtifactError, one_line

OFFLINE = "HF_HUB_OFFLINE is set, so nothing may be uploaded: unset it"
LOGIN = "nobody is logged in: run `hf auth login`, or put a token with write access into HF_TOKEN"
REFUSED = {
    401: "the Hub does not take this token: log in again with `hf auth login`",
    403: "this login may not write there: use a token with write access, or a repository of your own",
    404: "the repository or the branch is gone: push again",
    409: "somebody else is changing the repository: push again",
    412: "somebody else changed the repository meanwhile: push again",
    429: "the Hub takes no more requests for now: push again later",
}


@contextmanager
def told(repo: str, what: str = "not uploaded") -> Iterator[None]:
    """Whatever the Hub or the network has against what is done inside, as one line without the token.

    Raises:
        ArtifactError: names ``repo``, ``what`` did not happen, why, and the way out.
    """
    from huggingface_hub import get_token

    try:
        yield
    except Exception as error:
        reason = one_line(_reason(error)).replace(get_token() or "\0", "***")
        raise ArtifactError(f"{repo}: {what} ({reason[:400]})") from error


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if type(error) is ValueError:  # of a card or an object that the Hub does not take, with its reasons
        return str(error)
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return OFFLINE
        if isinstance(cause, LocalTokenNotFoundError):
            return LOGIN
        if isinstance(cause, HfHubHTTPError):
            return _answered(cause)
        if isinstance(cause, OSError) or type(cause).__module__.startswith("httpx"):
            return f"the Hub cannot be reached: {type(cause).__name__}: {cause}; push again later"
    return str(error)


def _answered(error: Any) -> str:
    status, said = error.response.status_code, getattr(error, "server_message", None)
    told = REFUSED.get(status, "the Hub failed: push again later" if status >= 500 else "the Hub refused")
    return f"{told}; it answered {status}{f': {said}' if said else ''}"
