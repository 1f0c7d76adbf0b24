"""The parts of an evaluation, one for each guidance: which of its pictures are scored, drawn or missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.rewards.base import Reward
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation.folder import PictureFolder, picture_settings
from flowopd_cli.stages.evaluation.journal import Journal, Scored
from flowopd_cli.stages.evaluation.requests import PictureRequest, Requests
from flowopd_cli.system.distributed import GROUP


@dataclass(frozen=True)
class Part:
    """An evaluation at one guidance; ``name`` is part of the names of its files, empty for a single guidance.

    ``scored`` are the rows of this process that an earlier start wrote; of its other pictures ``present`` are in the
    folder and ``missing`` are not.
    """

    name: str
    guidance: float
    recipe: EvalRecipe
    folder: PictureFolder
    journal: Journal
    scored: list[Scored] = field(default_factory=list)
    present: list[PictureRequest] = field(default_factory=list)
    missing: list[PictureRequest] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The model, and the guidance if it is one of several."""
        return scored_name(self.recipe) + (f", guidance {self.guidance:g}" if self.name else "")

    def sort(self, requests: Requests) -> None:
        """Sort the pictures of this process by what is left to do."""
        for request in requests.pictures[GROUP.rank :: GROUP.size]:
            rows = self.journal.rows(request)
            if rows is not None:
                self.scored.extend(rows)
            elif self.folder.find(request) is not None:
                self.present.append(request)
            else:
                self.missing.append(request)


def scored_name(recipe: EvalRecipe) -> str:
    """The adapter that is scored, the folder's name of another program's pictures or scores, or ``base``."""
    folder = recipe.eval.pictures or recipe.eval.import_scores
    return recipe.adapter or (Path(folder).resolve().name if folder else "base")


def make_parts(
    recipe: EvalRecipe, requests: Requests, rewards: Mapping[str, Reward], run: RunDir, adapters: Adapters
) -> list[Part]:
    """The parts in the order of ``eval.guidance``.

    Raises :class:`ArtifactError`: a folder has pictures of other settings.
    """
    parts = []
    for name, (guidance, spec) in recipe.eval.by_guidance.items():
        of_part = recipe.model_copy(update={"eval": spec})
        if spec.pictures is not None:
            folder = PictureFolder(Path(spec.pictures), foreign=True)
        else:
            folder = PictureFolder(run.images_dir / name)
            parents = [adapters[recipe.adapter or "base"].parent("policy")]
            folder.claim(picture_settings(of_part, parents), requests.digests)
        journal = Journal(run.scored_dir / name, GROUP.rank, folder, requests.suites, rewards)
        part = Part(name, guidance, of_part, folder, journal)
        part.sort(requests)
        parts.append(part)
    return parts
