"""The Hub, as a push needs it: who is logged in, one commit, the same files back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import PushSpec
from flowopd_cli.stages.publishing.hub_errors import refuse_login, told
from flowopd_cli.system.files import sha256_file
from flowopd_cli.system.progress import Progress

MAIN = "main"


@dataclass(frozen=True)
class Commit:
    """What stands on the Hub: the commit, its address, and whether this push made it."""

    sha: str
    url: str
    new: bool


class Hub:
    """One branch of one repository."""

    def __init__(self, spec: PushSpec, progress: Progress) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        disable_progress_bars()
        logging.set_verbosity_error()  # stderr is the console's
        self.spec, self.repo, self.branch = spec, str(spec.repo), spec.revision or MAIN
        self._progress, self._api = progress, HfApi()

    def check(self) -> None:
        """Refuse before anything is drawn: no network, no login, one that may only read, or a namespace that is not
        the login's. What a fine-grained token may do, the Hub tells at the upload only.

        Raises:
            ArtifactError: with the way out.
        """
        with told(self.repo):
            me = self._api.whoami()
        refuse_login(self.repo, me)

    def upload(self, folder: Path, ours: tuple[str, ...]) -> Commit:
        """Make repository and branch where they are missing, and one commit of all files of ``folder``; what an earlier
        push left in the folders ``ours`` goes. A repository that shall be private is so before the first file; a new
        one that shall be public is private until :meth:`publish`.

        Raises:
            ArtifactError: the Hub refused.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api, own = self._api, dict(_files(folder))
        with told(self.repo):
            api.create_repo(self.repo, private=None if self.spec.private is None else True, exist_ok=True)
            if self.spec.private:
                self._show(private=True)
            if self.branch != MAIN:
                api.create_branch(self.repo, branch=self.branch, exist_ok=True)
            before = api.model_info(self.repo, revision=self.branch).sha
            there = api.list_repo_files(self.repo, revision=before)
            stale = [name for name in there if name.split("/")[0] in ours and "/" in name and name not in own]
            operations = [CommitOperationDelete(name) for name in stale]
            added = [CommitOperationAdd(name, str(path)) for name, path in own.items()]
            made = api.create_commit(
                self.repo, [*operations, *added], commit_message=self.spec.message, revision=self.branch
            )
        return Commit(str(made.oid), str(made.commit_url), made.oid != before)

    def fetch(self, commit: Commit, folder: Path, into: Path) -> Path:
        """The files of ``folder`` as the Hub now gives them out, downloaded into ``into`` and compared by SHA-256.

        Raises:
            ArtifactError: the Hub refused, or gives out other files.
        """
        names = [name for name, _ in _files(folder)]
        with told(self.repo, "uploaded, but not read back"):
            self._api.snapshot_download(self.repo, revision=commit.sha, local_dir=into, allow_patterns=names)
        wrong = [name for name in names if not _same(folder / name, into / name)]
        if wrong:
            raise ArtifactError(
                f"{self.repo}@{commit.sha}: {wrong[0]} on the Hub is not the file that was uploaded "
                f"({len(wrong)} of {len(names)} differ): push again, and do not use this commit"
            )
        return into

    def publish(self) -> None:
        """Let everybody see a repository that shall be public: after all checks."""
        if self.spec.private is False:
            with told(self.repo, "uploaded, but not made public"):
                self._show(private=False)

    def _show(self, *, private: bool) -> None:
        if bool(self._api.model_info(self.repo).private) is not private:
            self._api.update_repo_settings(self.repo, private=private)
            self._progress.note(f"{self.repo} was {'public' if private else 'private'}, and no longer is")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _same(one: Path, two: Path) -> bool:
    return two.is_file() and sha256_file(one) == sha256_file(two)
