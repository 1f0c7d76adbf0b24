"""What a checkpoint was made from, and what of that a resumed run may change. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import problems
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.runs.manifest import Environment, Inputs
from flowopd_cli.system.json_files import read_json

# Fields of the recipe that a resumed run may change. All but the optimizer's steps, which a training that no longer
# learns may need smaller, change no result beyond rounding. A section has all its own.
MAY_CHANGE = frozenset(
    {
        *("train.iterations", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_best"),
        *("train.sample_every", "train.track", "train.processes", "train.micro", "train.rollout_batch"),
        *("train.skip_limit", "train.lr", "train.warmup", "train.max_grad_norm", "model.cache_prompts"),
        *("model.device", "model.shard", "opd.log_rewards_every"),
    }
)
# Names of what is compared by its content: a folder that has moved is the same folder.
MAY_MOVE = ("model.pretrained", "adapter.init", "anchor.ref", "routing.*.ref", "teachers.*.ref")


class Provenance(Inputs):
    """Inputs, recipe and packages that a checkpoint was made with."""

    recipe: dict[str, Any]
    environment: Environment


def read_provenance(path: Path) -> Provenance:
    """The provenance in a file.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    try:
        return Provenance.model_validate(read_json(path, "record of what a checkpoint was made from"))
    except ValidationError as error:
        raise ArtifactError(f"{path}: damaged ({problems(error, Provenance)[0]})") from error


def other_fields(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two recipes differ and a resumed run must not."""
    before, after = flat(recorded), flat(current)
    return [key for key in {**before, **after} if before.get(key) != after.get(key) and not _may_change(key)]


def other_recipe(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Messages for the differences of two recipes."""
    before, after = flat(recorded), flat(current)
    return [f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in other_fields(recorded, current)]


def other_inputs(recorded: Inputs, current: Inputs) -> list[str]:
    """Messages for the differences of base, adapters and prompts, compared by content."""
    differences = []
    if recorded.base is not None and current.base is not None and recorded.base.sha256 != current.base.sha256:
        differences.append(_changed(f"base {current.base.ref}", recorded.base.sha256, current.base.sha256))
    before, after = ({parent.role: parent for parent in inputs.parents} for inputs in (recorded, current))
    for role in {**before, **after}:
        old, new = before.get(role), after.get(role)
        if old is None or new is None:
            differences.append(f"{role} was {old.ref if old else 'none'}, is {new.ref if new else 'none'}")
        elif old.sha256 != new.sha256:
            differences.append(_changed(f"{role} {new.ref}", old.sha256, new.sha256))
    if recorded.prompts != current.prompts:
        differences.append(_changed("the set of prompts", recorded.prompts, current.prompts))
    return differences


def changed_parents(recorded: Inputs, adapters: Adapters) -> list[str]:
    """Messages for the local input adapters whose files have changed; nothing is loaded."""
    differences = []
    for parent in recorded.parents:
        reference = AdapterRef.parse(parent.ref)
        if reference.kind in {"run", "folder"} and Path(reference.location).is_dir():
            sha256 = adapters[parent.ref].sha256
            if sha256 != parent.sha256:
                differences.append(_changed(f"{parent.role} {parent.ref}", parent.sha256, sha256))
    return differences


def other_packages(recorded: Environment, current: Environment) -> list[str]:
    """Messages for other versions of packages and of Python."""
    before, after = ({"python": made.python, **made.packages} for made in (recorded, current))
    return [
        f"{name} was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def refuse(run: Path, differences: Iterable[str]) -> None:
    """Refuse to resume a run with other inputs than its checkpoints were made with.

    Raises:
        ArtifactError: there are differences; the message lists them.
    """
    listed = "; ".join(differences)
    if listed:
        raise ArtifactError(
            f"{run}: cannot go on, its checkpoints were made with other things: {listed}; put these back, or start a "
            "fresh run with --out"
        )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings and lists of mappings as dotted keys."""
    if isinstance(tree, list) and tree and all(isinstance(part, Mapping) for part in tree):
        tree = {str(index): part for index, part in enumerate(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def _may_change(key: str) -> bool:
    if any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
        return True
    parts = key.split(".")
    return any(
        len(parts) == len(pattern) and all(name in ("*", part) for name, part in zip(pattern, parts, strict=True))
        for pattern in (key.split(".") for key in MAY_MOVE)
    )


def _changed(what: str, old: str | None, new: str | None) -> str:
    return f"{what} was {_brief(old)}, is {_brief(new)}"


def _brief(digest: str | None) -> str:
    return "the bare base" if digest is None else digest[:12]
