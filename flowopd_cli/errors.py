"""The errors that a user can cause. Each has a one-line message with the cause and the remedy."""

from __future__ import annotations

import re
import signal

LONGEST = 2000
FAULTY = 3  # the exit code of a command whose check failed; not an error
# A login in an address, a secret in its query, a key of a known form.
_SECRETS = (
    re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,15}://)[^/?#\s]{1,300}(?=@)"),
    re.compile(
        r"(?i)([?&;][\w.-]{0,40}(?:token|key|secret|password|signature|sig|auth|credential)=)[^&;\s'\"]+?(?=:?(?:[&;\s'\"]|$))"
    ),
    re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-)[\w-]{12,}"),
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")


def redacted(text: str) -> str:
    """The text with logins in addresses, tokens and keys replaced by ``***``."""
    for pattern in (*_SECRETS, _BEARER):
        text = pattern.sub(r"\1***", text)
    return text


def holds_secret(text: str) -> bool:
    """Whether a text has a login in an address, a secret in its query or a key of a known form."""
    return any(pattern.search(text) for pattern in _SECRETS)


def one_line(error: object) -> str:
    """An error or text as one line for a terminal: redacted, printable, at most 2000 characters."""
    line = redacted(" ".join(str(error).split()))
    return printable(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")


def printable(text: str) -> str:
    """The text with control and other unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class FlowOPDError(Exception):
    """Base of every error that is shown as one redacted line; a ``shared`` error ends every process of a run."""

    exit_code = 2
    shared = False

    def __str__(self) -> str:
        return redacted(super().__str__())


class RecipeError(FlowOPDError):
    """A recipe, a ``--set`` expression or a command-line value is wrong."""


class PromptError(FlowOPDError):
    """A prompt file or a prompt in it cannot be used."""


class ArtifactError(FlowOPDError):
    """A run directory, checkpoint, adapter or picture is missing, damaged or of another base."""


class UnreadableError(ArtifactError):
    """A file may be sound, but the system does not let it be read."""


class StorageError(FlowOPDError, OSError):
    """A file could not be written: no space, a quota, a limit, no permission."""

    exit_code = 4


class RewardError(FlowOPDError):
    """A reward is unknown, or could not score."""


class RoutingError(FlowOPDError):
    """A prompt's task has no teacher."""


class MergeError(FlowOPDError):
    """Adapters cannot be merged, with the reason."""


class MissingDependency(FlowOPDError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'flowopd[{extra}]'")
        self.package = package
        self.extra = extra


class DivergedError(FlowOPDError):
    """A training had too many faulty steps in a row; every process counts the same."""

    exit_code = 5
    shared = True


class Interrupted(FlowOPDError):
    """The user stopped a run by signal ``number``; every process stops, and the checkpoint is safe."""

    shared = True

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
