"""``flowopd runs replay``: the objective on the micro-batch whose numbers were not finite."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import torch

from flowopd_cli.core.types import StepBatch
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.recipe import TrainedRecipe
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.fit import save_memory
from flowopd_cli.stages.training.model import Roles, load_model
from flowopd_cli.stages.training.objective import make_objective
from flowopd_cli.system.files import is_intact
from flowopd_cli.train.faults import Dump
from flowopd_cli.train.objectives import Objective


def replay(path: Path, device: str | None = None) -> dict[str, Any]:
    """Loss and gradient norm of each row of the newest fault's batch, and how many are not finite.

    Raises :class:`ArtifactError`: the run has nothing to replay, or it is damaged.
    """
    run = RunDir.open(path, writes=False)
    recipe = run.recipe()
    folders = sorted(folder for folder in run.faults_dir.glob("iteration-*") if folder.is_dir())
    if not folders or not isinstance(recipe, TrainedRecipe):
        raise ArtifactError(f"{path}: this run did not end with non-finite numbers: nothing to replay")
    if not is_intact(folders[-1]):
        raise ArtifactError(f"{folders[-1]}: is damaged, and there is no other copy")
    dump = Dump.load(folders[-1])
    if dump.batch is None:
        raise ArtifactError(f"{folders[-1]}: no single micro-batch was at fault, only their sum: lower train.lr")
    spec = recipe.model if device is None else recipe.model.model_copy(update={"device": device})
    model = load_model(spec.model_copy(update={"shard": False}), recipe.adapter.targets)
    Roles(model, Adapters()).add_policy(recipe.adapter, recipe.seed)
    model.adapters.load_state("policy", dict(dump.policy))
    save_memory(model, recipe.train)
    rows = _rows(model, make_objective(recipe, model), dump.batch)
    bad = sum(not (isfinite(row["loss"]) and isfinite(row["gradient"])) for row in rows)
    summary = {"run": str(path), "iteration": dump.iteration, "step": dump.step, "fault": str(dump.fault), "bad": bad}
    for row in rows:  # JSON has no other numbers
        row |= {key: row[key] if isfinite(row[key]) else str(row[key]) for key in ("loss", "gradient")}
    return summary | {"rows": rows}


def _rows(model: LoadedModel, objective: Objective, batch: StepBatch) -> list[dict[str, Any]]:
    parameters = list(model.adapters.trainable().values())
    rows, batch = [], batch.to(parameters[0].device)
    for index in range(len(batch)):
        row = batch[index : index + 1]
        with model.adapters.use("policy"):
            loss = objective(row).total
            loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        prompt = row.prompts[0].text if row.prompts else ""
        figures = {"sigma": round(float(row.sigma), 6), "loss": float(loss.detach()), "gradient": float(norm)}
        rows.append({"prompt": prompt, **figures})
    return rows
