"""The provenance of a checkpoint, and what a resumed run may change of it. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.runs.manifest import Environment, Inputs

# Fields of the recipe, or whole sections, that a resumed run may change. All but the optimizer's steps, which a
# training that no longer learns may need smaller, change no result beyond rounding. Targets must still match the layers
# of the checkpoint: those that match none, which earlier versions ignored, can be left out.
MAY_CHANGE = frozenset(
    {
        *("train.iterations", "train.checkpoint_every", "train.keep_checkpoints", "train.keep_best"),
        "train.stop",
        *("train.sample_every", "train.track", "train.processes"),
        *("train.watch_every", "watch.rewards", "watch.prompts", "watch.groups", "watch.group_size"),
        *("train.micro", "train.rollout_batch"),
        *("train.skip_limit", "train.lr", "train.warmup", "train.max_grad_norm", "model.cache_prompts"),
        *("model.too_long", "model.device", "model.shard", "opd.log_rewards_every", "adapter.targets"),
        "adapter.copies",
        "routing.*.offload",
    }
)
# References that are compared by the content of their files, which may move; moved prompts keep their ids.
MAY_MOVE = (
    *("model.pretrained", "adapter.init", "anchor.ref", "routing.*.ref", "routing.*.base", "teachers.*.ref"),
    *("prompts.*.source", "prompts.*.id_prefix"),
)


class Provenance(Inputs):
    """Inputs, recipe and packages that a checkpoint was made with."""

    recipe: dict[str, Any]
    environment: Environment


def changed_fields(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """The fields in which two recipes differ and a resumed run must not: a message for each dotted name."""
    before, after = flat(recorded), flat(current)
    changes = {key: (before.get(key), after.get(key)) for key in {**before, **after} if not _may_change(key)}
    return {key: f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items() if old != new}


def changed_inputs(recorded: Inputs, current: Inputs) -> list[str]:
    """Messages for the differences of base, adapters and prompts, compared by content."""
    differences = []
    if recorded.base is not None and current.base is not None:
        differences += _changed(f"base {current.base.ref}", recorded.base.sha256, current.base.sha256)
    before, after = ({parent.role: parent for parent in inputs.parents} for inputs in (recorded, current))
    for role in {**before, **after}:
        old, new = before.get(role), after.get(role)
        if old is None or new is None:
            differences.append(f"{role} was {old.ref if old else 'none'}, is {new.ref if new else 'none'}")
        else:
            differences += _changed(f"{role} {new.ref}", old.sha256, new.sha256)
            bases = old.base and old.base.sha256, new.base and new.base.sha256
            differences += _changed(f"the base of {role}", *bases, none="the run's own")
    return differences + _changed("the set of prompts", recorded.prompts, current.prompts)


def changed_parents(recorded: Inputs, adapters: Adapters) -> list[str]:
    """Messages for the local input adapters whose files have changed; nothing is loaded."""
    differences = []
    for parent in recorded.parents:
        reference = AdapterRef.parse(parent.ref)
        if reference.kind in {"run", "folder"} and Path(reference.location).exists():
            differences += _changed(f"{parent.role} {parent.ref}", parent.sha256, adapters[parent.ref].sha256)
    return differences


def changed_packages(recorded: Environment, current: Environment) -> list[str]:
    """Messages for other versions of packages and of Python."""
    before, after = ({"python": one.python, **one.packages} for one in (recorded, current))
    versions = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in {**before, **after}}
    return [f"{name} was {old}, is {new}" for name, (old, new) in versions.items() if old != new]


def refuse(run: Path, differences: Iterable[str]) -> None:
    """Raise :class:`ArtifactError` with the differences of inputs that forbid to resume a run, if any."""
    if listed := "; ".join(differences):
        raise ArtifactError(
            f"{run}: cannot resume, its checkpoints were made with other inputs: {listed}; restore these, or start a "
            "new run with --out"
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
    in_section = any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
    return in_section or any(fnmatchcase(key, pattern) for pattern in (*MAY_CHANGE, *MAY_MOVE))


def _changed(what: str, old: str | None, new: str | None, none: str = "the bare base") -> list[str]:
    names = [none if digest is None else digest[:12] for digest in (old, new)]
    return [] if old == new else [f"{what} was {names[0]}, is {names[1]}"]
