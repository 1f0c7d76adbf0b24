"""The errors a user can cause. Each carries one line that names the cause and the way out."""

from __future__ import annotations


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
    """A training met numbers that are not finite again and again; every process knows, for they count together."""

    exit_code = 4
    told = True


class Interrupted(FlowOPDError):
    """The user stopped a run; its checkpoint is safe. Every process is asked to stop, and so knows."""

    exit_code = 130
    told = True
