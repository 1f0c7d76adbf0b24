"""The errors a user can cause. Each carries one line that names the cause and the way out."""

from __future__ import annotations

import signal


class FlowOPDError(Exception):
    """Base of every error that is shown as one line instead of a traceback.

    ``told`` says that all processes of the run know of it.
    """

    exit_code = 2
    told = False


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

    exit_code = 4
    told = True


class Interrupted(FlowOPDError):
    """The user stopped a run by signal ``number``; its checkpoint is safe. Every process is asked to, and so knows."""

    told = True

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
