"""Where a training goes on: its newest sound checkpoint, made from what it is made from now."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.provenance import changed_packages
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.files import sha256_file
from flowopd_cli.system.progress import Progress
from flowopd_cli.train.checkpoint import COUNTERS, TENSORS, TrainState


def prompts_digest(prompts: Mapping[str, Sequence[Prompt]]) -> str:
    """SHA-256 of all that a stage trains on, in its order."""
    told = [[task, [asdict(prompt) for prompt in group]] for task, group in prompts.items()]
    return hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()


def seed_generators(seed: int, iteration: int) -> None:
    """Give the generators of all libraries a state that depends on seed, iteration and process alone.

    Nothing here draws from them; a reward of the user's own may, and then scores the same after a resume.
    """
    told = f"{seed}/{iteration}/{GROUP.rank}".encode()
    number = int.from_bytes(hashlib.sha256(told).digest()[:4], "big")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def resume_state(run: RunDir, resume: bool, progress: Progress) -> TrainState | None:
    """The newest sound checkpoint's state, the same on all processes; what was logged after it is dropped.

    Raises:
        ArtifactError: there are checkpoints, but none is sound; or processes find different ones.
    """
    if not resume:
        return None
    found, written = run.checkpoints.newest(), run.checkpoints.steps()
    names = [run.checkpoints.path(step).name for step in written]
    if found is None and names:
        raise ArtifactError(
            f"{run.path}: its checkpoints are damaged ({', '.join(names)}), so there is nothing to go on from; "
            f"start again with --out {run.path} --force"
        )
    _refuse_others(None if found is None else (found[0], *(sha256_file(found[1] / n) for n in (COUNTERS, TENSORS))))
    if found is None:
        progress.note("no checkpoint yet: starting with the first iteration")
    else:
        for name in names[written.index(found[0]) + 1 :]:
            progress.note(f"checkpoint {name} is damaged: going on from {found[1].name}")
        _tell_other_packages(run, progress)
    run.go_back(0 if found is None else found[0])
    return None if found is None else TrainState.load(found[1])


def _refuse_others(mine: Any) -> None:
    """Processes on several machines may each have a copy of the run, and these may differ."""
    others = [other for other in GROUP.gather(mine) if other != mine]
    if others:
        mine, other = (f"step {told[0]}" if told else "none" for told in (mine, others[0]))
        raise ArtifactError(
            f"the processes found different checkpoints ({mine} and {other}): copy the run to all machines, then "
            "--resume"
        )


def _tell_other_packages(run: RunDir, progress: Progress) -> None:
    then = run.checkpoints.provenance()
    changes = changed_packages(then.environment, run.manifest().environment) if then and run.writes else []
    if changes:
        progress.note(f"since the checkpoint {', '.join(changes)}: figures may differ in their last digits")
