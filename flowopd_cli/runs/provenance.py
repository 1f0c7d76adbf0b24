"""What a checkpoint was made from, and what of that a resumed run may change. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe.reading import first_problem
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
        raise ArtifactError(f"{path}: damaged ({first_problem(error, Provenance)})") from error


def other_fields(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two recipes differ and a resumed run must not."""
    before, after = flat(then), flat(now)
    return [key for key in {**before, **after} if before.get(key) != after.get(key) and not _may_change(key)]


def other_recipe(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences of two recipes in words."""
    before, after = flat(then), flat(now)
    return [f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in other_fields(then, now)]


def other_inputs(then: Inputs, now: Inputs) -> list[str]:
    """The differences of base, adapters and prompts in words, by their content."""
    found = []
    if then.base is not None and now.base is not None and then.base.sha256 != now.base.sha256:
        found.append(_changed(f"base {now.base.ref}", then.base.sha256, now.base.sha256))
    before, after = ({parent.role: parent for parent in inputs.parents} for inputs in (then, now))
    for role in {**before, **after}:
        old, new = before.get(role), after.get(role)
        if old is None or new is None:
            found.append(f"{role} was {old.ref if old else 'none'}, is {new.ref if new else 'none'}")
        elif old.sha256 != new.sha256:
            found.append(_changed(f"{role} {new.ref}", old.sha256, new.sha256))
    if then.prompts != now.prompts:
        found.append(_changed("the set of prompts", then.prompts, now.prompts))
    return found


def changed_parents(then: Inputs, adapters: Adapters) -> list[str]:
    """Those local adapters of a provenance that lie where they lay and are others now, in words; nothing is loaded."""
    found = []
    for parent in then.parents:
        reference = AdapterRef.parse(parent.ref)
        if reference.kind in {"run", "folder"} and Path(reference.location).is_dir():
            now = adapters[parent.ref].sha256
            if now != parent.sha256:
                found.append(_changed(f"{parent.role} {parent.ref}", parent.sha256, now))
    return found


def other_packages(then: Environment, now: Environment) -> list[str]:
    """Packages and interpreters of other versions, in words."""
    before, after = ({"python": made.python, **made.packages} for made in (then, now))
    return [
        f"{name} was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def refuse(run: Path, differences: Iterable[str]) -> None:
    """Refuse to go on with other things than a run's checkpoints were made with.

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
        len(parts) == len(pattern) and all(want in ("*", part) for want, part in zip(pattern, parts, strict=True))
        for pattern in (name.split(".") for name in MAY_MOVE)
    )


def _changed(what: str, old: str | None, new: str | None) -> str:
    return f"{what} was {_brief(old)}, is {_brief(new)}"


def _brief(digest: str | None) -> str:
    return "the bare base" if digest is None else digest[:12]
