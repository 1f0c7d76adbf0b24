"""What the Hub or the way to it has against a request, as one line with the way out. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flowopd_cli.errors import ArtifactError, StorageError, one_line
from flowopd_cli.system.files import HELP

OFFLINE = "HF_HUB_OFFLINE is set, so nothing may be uploaded: unset it"
LOGIN = "nobody is logged in: run `hf auth login`, or put a token with write access into HF_TOKEN"
WRITER = "log in with a token with write access by `hf auth login`, or put one into HF_TOKEN"
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
        StorageError: it is this machine that could not write a file.
    """
    from huggingface_hub import get_token

    try:
        yield
    except Exception as error:
        local = _local(error)
        if local is not None:
            place = one_line(local.filename or "a file of this machine")
            raise StorageError(f"{repo}: {what} ({place}: {local.strerror}; {HELP[local.errno or 0]})") from local
        reason = one_line(_reason(error)).replace(get_token() or "\0", "***")
        raise ArtifactError(f"{repo}: {what} ({reason[:400]})") from error


def _local(error: BaseException) -> OSError | None:
    """A disk that is full, or the like; the same number from a connection is the network's."""
    for cause in _causes(error):
        if type(cause).__module__.startswith(("httpx", "httpcore")):
            return None
        if isinstance(cause, OSError) and cause.errno in HELP:
            return cause
    return None


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if type(error) is ValueError:  # of a card or an object that the Hub does not take, with its reasons
        return str(error)
    for cause in _causes(error):
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


def refuse_login(repo: str, me: Mapping[str, Any]) -> None:
    """Refuse a login that cannot write to ``repo``, as far as what the Hub says of it, ``me``, tells.

    Raises:
        ArtifactError: its token may only read, or the owner of ``repo`` is nobody that it writes to.
    """
    owner, groups = repo.split("/")[0], {str(group.get("name")): group for group in me.get("orgs") or ()}
    names = [str(me.get("name")), *groups]
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise ArtifactError(f"{repo}: not uploaded (this token may only read): {WRITER}")
    if owner not in names:
        raise ArtifactError(
            f"{repo}: not uploaded (you are logged in as {names[0]}, who writes to {', '.join(names)}): "
            "name a repository there with --repo, or log in as somebody else with `hf auth login`"
        )
    if owner in groups and groups[owner].get("roleInOrg") == "read":
        raise ArtifactError(
            f"{repo}: not uploaded ({names[0]} may only read in {owner}): ask there for write access, or name another "
            "repository with --repo"
        )
