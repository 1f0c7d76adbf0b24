"""The errors a user can cause. Each carries one line that names the cause and the way out."""

from __future__ import annotations

import re
import signal

LONGEST = 2000
FAULTY = 3  # the exit code of a command whose check does not hold; no error
# What must not be repeated: a login in an address, a secret in its query, a key of a known form.
_SECRETS = (
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,15}://)[^/?#\s]{1,300}@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([?&;][\w.-]{0,40}(?:token|key|secret|password|signature|sig|auth|credential)=)[^&;\s'\"]+?(?=:?(?:[&;\s'\"]|$))"
        ),
        r"\1***",
    ),
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-)[\w-]{12,}"), r"\1***"),
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")


def redacted(text: str) -> str:
    """The text without what looks like a login in an address, a token or a key."""
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    return _BEARER.sub(r"\1***", text)


def holds_secret(text: str) -> bool:
    """Whether a text has a login in an address, a secret in its query or a key of a known form."""
    return any(pattern.search(text) for pattern, _ in _SECRETS)


def one_line(error: object) -> str:
    """An error or a text as one line for a terminal: no secret, no character that moves a cursor, 2000 at most."""
    line = redacted(" ".join(str(error).split()))
    return printable(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")


def printable(text: str) -> str:
    """The text with what no terminal should obey written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class FlowOPDError(Exception):
    """Base of every error that is shown as one line instead of a traceback. Its text never repeats a secret.

    ``shared`` says that every process of the run ends with it.
    """

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


class StorageError(FlowOPDError, OSError):
    """A file could not be written: no space, a quota, a limit, a place that may not be written to."""

    exit_code = 4


class RewardError(FlowOPDError):
    """A reward is unknown, or could not score."""


class RoutingError(FlowOPDError):
    """A prompt's task has no teacher."""


class MergeError(FlowOPDError):
    """Adapters cannot be merged, with the reason."""


class MissingDependency(FlowOPDError):
    """A package that an extra installs is absent."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'flowopd[{extra}]'")
        self.package = package
        self.extra = extra


class DivergedError(FlowOPDError):
    """A training could not learn, again and again: every process knows, for they count together."""

    exit_code = 5
    shared = True


class Interrupted(FlowOPDError):
    """The user stopped a run by signal ``number``; its checkpoint is safe. Every process is asked to, and so knows."""

    shared = True

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
