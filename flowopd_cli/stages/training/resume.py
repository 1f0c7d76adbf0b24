"""Resuming a training from its newest intact checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.provenance import changed_packages
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import sha256_file
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.checkpoint import COUNTERS, TENSORS, TrainState


def prompts_digest(prompts: Mapping[str, Sequence[Prompt]]) -> str:
    """SHA-256 of a stage's training prompts, in order."""
    entries = [[task, [vars(prompt) for prompt in group]] for task, group in prompts.items()]
    return hashlib.sha256(json.dumps(entries, default=str, sort_keys=True).encode()).hexdigest()


def resume_state(run: RunDir, resume: bool, progress: Progress) -> TrainState | None:
    """The state of the newest intact checkpoint, the same on all processes; rows logged after it are dropped.

    Raises :class:`ArtifactError`: there are checkpoints, but none is intact; or processes have different ones.
    """
    if not resume:
        return None
    newest, steps = run.checkpoints.newest(), run.checkpoints.steps()
    names = [run.checkpoints.path(step).name for step in steps]
    if newest is None and names:
        raise ArtifactError(
            f"{run.path}: its checkpoints are damaged ({', '.join(names)}), so there is nothing to resume from; "
            f"start again with --out {run.path} --force"
        )
    digest = None if newest is None else (newest[0], *(sha256_file(newest[1] / n) for n in (COUNTERS, TENSORS)))
    others = [other for other in GROUP.gather(digest) if other != digest]
    if others:  # on several machines, each with a copy of the run
        one, two = (f"step {entry[0]}" if entry else "none" for entry in (digest, others[0]))
        raise ArtifactError(
            f"the processes found different checkpoints ({one} and {two}): copy the run to all machines, then --resume"
        )
    if newest is None:
        progress.note("no checkpoint yet: starting with the first iteration")
        run.go_back(-1)  # the row of a watch at the start goes too
        return None
    for name in names[steps.index(newest[0]) + 1 :]:
        progress.note(f"checkpoint {name} is damaged: going on from {newest[1].name}")
    then = run.checkpoints.provenance()
    changes = changed_packages(then.environment, run.manifest().environment) if then and run.writes else []
    if changes:
        progress.note(f"since the checkpoint {', '.join(changes)}: figures may differ in their last digits")
    run.go_back(newest[0])
    return TrainState.load(newest[1])
