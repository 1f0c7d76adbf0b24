"""The Hub for a push: check the login, make one commit, download its files. Errors become one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, logging

from flowopd_cli.errors import ArtifactError, StorageError, one_line
from flowopd_cli.models.files import adapter_header, full_weights
from flowopd_cli.recipe import PushSpec
from flowopd_cli.runs.layout import EVAL, SAMPLES
from flowopd_cli.system.files import CHECKSUMS, HELP, files_below, sha256_file
from flowopd_cli.system.progress import Progress

MAIN = "main"
FOLDERS = (f"{EVAL}/*", f"{SAMPLES}/*")
LORA = (adapter_header.CONFIG, adapter_header.PEFT_WEIGHTS, adapter_header.DIFFUSERS_WEIGHTS, CHECKSUMS)
WHOLE = (full_weights.WEIGHTS, full_weights.SHARDS, full_weights.INDEX)  # the weights of a full model
OFFLINE = "HF_HUB_OFFLINE is set, so nothing may be uploaded: unset it"
LOGIN = "nobody is logged in: run `hf auth login`, or put a token with write access into HF_TOKEN"
REFUSALS = {
    401: "the Hub does not accept this token: log in again with `hf auth login`",
    403: "this login may not write there: use a token with write access, or a repository of your own",
    404: "the repository or the branch is gone: push again",
    409: "another client is changing the repository: push again",
    412: "another client changed the repository meanwhile: push again",
    429: "the Hub accepts no more requests for now: push again later",
}


@dataclass(frozen=True)
class Commit:
    """A commit on the Hub, its address, whether this push made it, and the files that it deleted."""

    sha: str
    url: str
    new: bool
    deleted: tuple[str, ...] = ()


class Hub:
    """One branch of one repository. Every method raises an :class:`ArtifactError` where the Hub refuses."""

    def __init__(self, spec: PushSpec, progress: Progress) -> None:
        disable_progress_bars()
        logging.set_verbosity_error()  # stderr is the console's
        self.spec, self.repo, self.branch = spec, str(spec.repo), spec.revision or MAIN
        self._progress, self._api = progress, HfApi()

    def check(self) -> None:
        """Refuse a missing network or login, a read-only token, and a namespace of another account.

        The rights of a fine-grained token are known at the upload only.
        """
        with one_line_errors(self.repo):
            me = self._api.whoami()
        name, owner = str(me.get("name")), self.repo.partition("/")[0]
        groups = {str(group.get("name")): group for group in me.get("orgs") or ()}
        token = (me.get("auth") or {}).get("accessToken") or {}
        if token.get("role") == "read":
            reason = "this token may only read"
            way_out = "log in with a token with write access by `hf auth login`, or put one into HF_TOKEN"
        elif owner not in (name, *groups):
            reason = f"you are logged in as {name}, who writes to {', '.join([name, *groups])}"
            way_out = "name a repository there with --repo, or log in with another account by `hf auth login`"
        elif groups.get(owner, {}).get("roleInOrg") == "read":
            reason = f"{name} may only read in {owner}"
            way_out = "ask there for write access, or name another repository with --repo"
        else:
            return
        raise ArtifactError(f"{self.repo}: not uploaded ({reason}): {way_out}")

    def stale(self, folder: Path) -> list[str] | None:
        """The files of the branch that an upload of ``folder`` would delete; ``None`` without a visible repository."""
        with one_line_errors(self.repo, "not looked at for files that an upload would delete"):
            for branch in (self.branch, MAIN):  # from which a new branch is created
                with suppress(RepositoryNotFoundError, RevisionNotFoundError):
                    return _stale(self._api.list_repo_files(self.repo, revision=branch), files_below(folder))
        return None

    def upload(self, folder: Path) -> Commit:
        """Make one commit of all files of ``folder``, which deletes what an earlier push left and ``folder`` has not.

        Missing repositories and branches are created. A repository that becomes private does so before the first
        file; a new one that becomes public stays private until :meth:`publish`.
        """
        api, files = self._api, files_below(folder)
        with one_line_errors(self.repo):
            api.create_repo(self.repo, private=None if self.spec.private is None else True, exist_ok=True)
            if self.spec.private:
                self._set_private(True)
            if self.branch != MAIN:
                api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            before = api.model_info(self.repo, revision=self.branch).sha
            stale = _stale(api.list_repo_files(self.repo, revision=before), files)
            operations = [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
            ]
            commit = api.create_commit(self.repo, operations, commit_message=self.spec.message, revision=self.branch)
        return Commit(str(commit.oid), str(commit.commit_url), commit.oid != before, tuple(stale))

    def fetch(self, commit: Commit, folder: Path, into: Path) -> Path:
        """Download the files of ``folder`` at ``commit`` into ``into`` and compare them by SHA-256."""
        files = files_below(folder)
        with one_line_errors(self.repo, "uploaded, but not read back"):
            self._api.snapshot_download(self.repo, revision=commit.sha, local_dir=into, allow_patterns=list(files))
        fetched = files_below(into)
        wrong = [n for n, path in files.items() if n not in fetched or sha256_file(path) != sha256_file(fetched[n])]
        if wrong:
            raise ArtifactError(
                f"{self.repo}@{commit.sha}: {wrong[0]} on the Hub is not the file that was uploaded "
                f"({len(wrong)} of {len(files)} differ): push again, and do not use this commit"
            )
        return into

    def publish(self) -> None:
        """Make a repository public after all checks, if the recipe says so."""
        if self.spec.private is False:
            with one_line_errors(self.repo, "uploaded, but not made public"):
                self._set_private(False)

    def _set_private(self, private: bool) -> None:
        if bool(self._api.model_info(self.repo).private) is not private:
            self._api.update_repo_settings(self.repo, private=private)
            self._progress.note(f"{self.repo} was {'public' if private else 'private'}, and no longer is")


def _stale(present: Iterable[str], files: Collection[str]) -> list[str]:
    """Names in a push's own folders, and of weights in any form, that are ``present`` and not among its ``files``.

    Weights of another kind or form would be read in place of those that are pushed.
    """

    def among(patterns: Iterable[str]) -> list[str]:
        names = (name for name in present if name not in files)
        return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))

    own = (*FOLDERS, *LORA, *WHOLE)
    return among((*own, full_weights.CONFIG) if among(WHOLE) else own)  # a configuration alone is of no full model


@contextmanager
def one_line_errors(repo: str, what: str = "not uploaded") -> Iterator[None]:
    """Turn errors of the Hub, the network or this disk into one line with the way out and without the token."""
    try:
        yield
    except Exception as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        for cause in takewhile(lambda cause: not _is_of_network(cause), causes):
            if isinstance(cause, OSError) and cause.errno in HELP:
                place = one_line(cause.filename or "a local file")
                raise StorageError(f"{repo}: {what} ({place}: {cause.strerror}; {HELP[cause.errno]})") from cause
        reason = one_line(_reason(causes)).replace(get_token() or "\0", "***")
        raise ArtifactError(f"{repo}: {what} ({reason[:400]})") from error


def _reason(causes: list[BaseException]) -> str:
    cause = next((cause for cause in causes if isinstance(cause, OSError) or _is_of_network(cause)), None)
    if cause is None or type(causes[0]) is ValueError:  # such an error lists what the Hub refuses in a card
        return str(causes[0])
    if isinstance(cause, OfflineModeIsEnabled):
        return OFFLINE
    if isinstance(cause, LocalTokenNotFoundError):
        return LOGIN
    if isinstance(cause, HfHubHTTPError):
        status, message = cause.response.status_code, cause.server_message
        way_out = "the Hub failed: push again later" if status >= 500 else "the Hub refused"
        return f"{REFUSALS.get(status, way_out)}; it answered {status}{f': {message}' if message else ''}"
    return f"the Hub cannot be reached: {type(cause).__name__}: {cause}; push again later"


def _is_of_network(error: BaseException) -> bool:
    return type(error).__module__.startswith(("httpx", "httpcore"))
