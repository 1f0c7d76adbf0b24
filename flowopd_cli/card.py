"""Model cards: what a run was made of and how it scored, as Markdown with the Hub's metadata. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import yaml

from flowopd_cli.errors import ArtifactError, FlowOPDError, printable
from flowopd_cli.json_files import read_json_value
from flowopd_cli.manifest import Base, Manifest, is_run
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.refs import AdapterRef
from flowopd_cli.registry import BASES
from flowopd_cli.run import RunDir
from flowopd_cli.shapes import family, family_of

LICENSES = {"toy": {"license": "apache-2.0"}}
FIGURES = ("mean", "stderr", "n")
PROTOCOL = ("split", "limit", "images", "steps", "guidance", "seed")
BASE, MODEL = "base", "this model"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation run of this model or of its base: each suite's figures and version, and how pictures were made."""

    of: str
    run: RunDir
    suites: dict[str, dict[str, Any]]
    versions: dict[str, str]
    protocol: dict[str, Any]

    def comparable(self) -> bool:
        """Whether it is a whole evaluation on test prompts, which a card may report without being told to."""
        return self.protocol["split"] == "test" and self.protocol["limit"] is None

    def shared(self, other: Evaluation) -> list[str]:
        """The suites whose figures stand beside the other's: same protocol, same version."""
        same = self.protocol == other.protocol
        return [name for name in self.suites if same and other.versions.get(name) == self.versions[name]]


@dataclass(frozen=True)
class Card:
    """What the card tells."""

    title: str
    manifest: Manifest
    evaluations: Sequence[Evaluation]
    repo: str
    license: str | None = None
    picture: str | None = None
    max_sequence_length: int = 256
    absent: tuple[str, ...] = ()


def evaluations(source: RunDir, named: Sequence[str]) -> list[Evaluation]:
    """What to report of the base and of this model: the ``named`` evaluation runs, else the best beside the run.

    The best are whole evaluations on test prompts: of this model the one with the most suites (the latest of several),
    of the base the one that shares its protocol and most of its suites. Runs that cannot be read are passed over.

    Raises:
        ArtifactError: a named run is no evaluation, not of this adapter or its base, or two of them do not compare.
    """
    own, base = AdapterRef.parse(str(source.path)).sha256(), source.manifest().base
    if named:
        return _named(source, [_evaluation(RunDir.open(path, writes=False), own, base) for path in named], named)
    found = []
    for path in sorted(source.path.resolve().parent.iterdir()):
        with suppress(FlowOPDError):
            found += [_evaluation(RunDir(path, writes=False), own, base)] if is_run(path) else []
    whole = [e for e in found if e is not None and e.comparable()]
    ours = max((e for e in whole if e.of == MODEL), key=lambda e: (len(e.suites), _finished(e)), default=None)
    if ours is None:
        return []
    bases = [replace(e, suites={name: e.suites[name] for name in e.shared(ours)}) for e in whole if e.of == BASE]
    best = max((e for e in bases if e.suites), key=lambda e: (len(e.suites), _finished(e)), default=None)
    return [ours] if best is None else [best, ours]


def _named(source: RunDir, found: Sequence[Evaluation | None], named: Sequence[str]) -> list[Evaluation]:
    chosen: dict[str, Evaluation] = {}
    for path, evaluation in zip(named, found, strict=True):
        if evaluation is None:
            raise ArtifactError(f"{path}: not a finished evaluation of {source.path} or of its base")
        if evaluation.of in chosen:
            raise ArtifactError(f"--eval {path}: {chosen[evaluation.of].run.path} is of {evaluation.of} too; name one")
        chosen[evaluation.of] = evaluation
    if len(chosen) < 2:
        return list(chosen.values())
    base, ours = chosen[BASE], chosen[MODEL]
    alike = base.shared(ours)
    if not alike:
        one, two = protocol(base), protocol(ours)
        raise ArtifactError(f"--eval: base and model were not evaluated alike ({one} / {two}); repeat one, or name one")
    return [replace(base, suites={name: base.suites[name] for name in alike}), ours]


def _evaluation(run: RunDir, own: str | None, base: Base | None) -> Evaluation | None:
    """What an evaluation run of the adapter ``own`` or of its base says; ``None`` when it is something else."""
    manifest = run.manifest()
    if manifest.status != "done" or manifest.base is None or not manifest.parents:
        return None
    if manifest.parents[0].sha256 not in (own, None):
        return None
    if base is not None and base.sha256 is not None and manifest.base.sha256 != base.sha256:
        return None
    return evaluation(run)


def evaluation(run: RunDir) -> Evaluation | None:
    """What an evaluation run says of the adapter that it scored, or of the base; ``None`` when it is no such run.

    Raises:
        ArtifactError: recipe or results are damaged.
    """
    recipe = run.recipe()
    if not isinstance(recipe, EvalRecipe):
        return None
    parents = run.manifest().parents
    scored = parents[0].sha256 if parents else None
    made = recipe.eval.model_dump(include=set(PROTOCOL))
    made |= {"resolution": recipe.model.resolution, "max_sequence_length": recipe.model.max_sequence_length}
    read = _results_of(run)
    versions = {name: str(result["version"]) for name, result in read.items()}
    return Evaluation(BASE if scored is None else MODEL, run, _figures(read), versions, made)


def results(run: RunDir) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n, exact}}`` of an evaluation run.

    Raises:
        ArtifactError: a result is damaged.
    """
    return _figures(_results_of(run))


def _figures(read: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: result[key] for key in (*FIGURES, "exact")} for name, result in read.items()}


def _results_of(run: RunDir) -> dict[str, dict[str, Any]]:
    """Each suite's figures and version; the prompts beside them are no suite's."""
    read = {}
    for path in sorted(run.eval_dir.glob("*.json")):
        result = read_json_value(path, "result of an evaluation")
        if isinstance(result, dict):
            if not _is_result(result):
                raise ArtifactError(f"{path}: damaged result of an evaluation (suite, version, mean, stderr or n)")
            read[result["suite"]] = {key: result[key] for key in (*FIGURES, "version")}
            read[result["suite"]]["exact"] = bool(result.get("exact", True))
    return read


def _is_result(result: Mapping[str, Any]) -> bool:
    """Whether it has what every result of a suite has, each of its kind."""
    named = all(isinstance(result.get(key), str) and result[key].isprintable() for key in ("suite", "version"))
    mean, error, count = (result.get(key, "missing") for key in FIGURES)
    return named and _is_number(mean) and (error is None or _is_number(error)) and type(count) is int


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) >= 1e300


def _pictures(images: int | None) -> str:
    return "as many pictures each as the suite says" if images is None else f"{images} pictures each"


def _finished(evaluation: Evaluation) -> str:
    return evaluation.run.manifest().finished or ""


def protocol(evaluation: Evaluation) -> str:
    """How the pictures of an evaluation were made, in words."""
    made = evaluation.protocol
    limit = "" if made["limit"] is None else f", at most {made['limit']} a suite"
    suites = ", ".join(f"{name} {evaluation.versions[name]}" for name in evaluation.suites)
    return (
        f"{made['split']} prompts{limit}, {_pictures(made['images'])}, {made['steps']} steps, "
        f"guidance {made['guidance']:g}, seed {made['seed']}; suites {suites}"
    )


def build(card: Card) -> str:
    """The card: metadata, then what it is, its figures, how to use it, where it came from."""
    base = card.manifest.base.ref if card.manifest.base else "unknown"
    parts = [
        f"---\n{yaml.safe_dump(metadata(card, base), sort_keys=False)}---",
        f"# {card.title}",
        f"A LoRA for {_code(base)}, made by {_code('flowopd ' + card.manifest.stage)} "
        f"(flowopd {_plain(card.manifest.code_version)}).",
        _results(card.evaluations),
        f"![samples]({card.picture})" if card.picture else "",
        _usage(card, base),
        _lineage(card.manifest),
        "## Limitations\n\nThe adapter inherits what its base can and cannot do, and its license. The figures hold for "
        "the suites, prompts and seeds named in the evaluation files; a reward is not a person's judgment.",
        ""
        if card.license or _license(base)
        else f"flowopd does not know the license of {_code(base)}: look it up before you use or share this adapter.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(card: Card, base: str) -> dict[str, Any]:
    """The card's YAML: license, base, tags and the Hub's ``model-index``."""
    known = _license(base) or {"license": "other"}
    data: dict[str, Any] = {"license": card.license} if card.license else dict(known)
    data |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if base.count("/") == 1 and not base.startswith((".", "/")):
        data |= {"base_model": base, "base_model_relation": "adapter"}
    data["tags"] = ["lora", "text-to-image", "flow-matching", "flowopd", card.manifest.stage]
    own = [e for e in card.evaluations if e.of == MODEL]
    scores = [
        {
            "task": {"type": "text-to-image"},
            "dataset": {"name": suite, "type": suite},
            "metrics": [{"type": suite, "value": round(figures["mean"], 4), "name": _figure_name(suite, figures)}],
        }
        for evaluation in own
        for suite, figures in evaluation.suites.items()
    ]
    if scores:
        data["model-index"] = [{"name": card.title, "results": scores}]
    return data


def _license(base: str) -> Mapping[str, str]:
    """The Hub's metadata of a base's license; empty where it is not known here."""
    named = family_of(base)
    return LICENSES.get(base) or (family(named).licenses.get(base, {}) if named else {})


def _results(found: Sequence[Evaluation]) -> str:
    if not found:
        return ""
    suites = list(found[-1].suites)
    lines = ["## Results", "", f"| model | {' | '.join(map(_plain, suites))} |", f"|---|{'---|' * len(suites)}"]
    for evaluation in found:
        cells = [evaluation.suites.get(suite) for suite in suites]
        shown = [_cell(cell) if cell else "—" for cell in cells]
        lines.append(f"| {evaluation.of} | {' | '.join(shown)} |")
    made = f"Protocol: {_plain(protocol(found[-1]))}."
    mark = " ~: not by the scorer of papers, so not comparable with them."
    near = any(not figures["exact"] for evaluation in found for figures in evaluation.suites.values())
    told = f"{made} Mean ± standard error over prompts; each picture's row is in `eval/`.{mark if near else ''}"
    return "\n".join([*lines, "", told])


def _cell(figures: Mapping[str, Any]) -> str:
    error = "" if figures["stderr"] is None else f" ± {figures['stderr']:.4f}"
    return f"{'' if figures['exact'] else '~'}{figures['mean']:.4f}{error} (n = {figures['n']})"


def _figure_name(suite: str, figures: Mapping[str, Any]) -> str:
    return suite if figures["exact"] else f"{suite} (approximate scorer)"


def _usage(card: Card, base: str) -> str:
    length = card.max_sequence_length
    absent = "".join(f", {part}=None" for part in card.absent)
    name, lead = json.dumps(base), ""
    if base in BASES.names():
        module, _, attribute = BASES.target(base).partition(":")
        name, lead = f"{attribute}()", f"from {module} import {attribute}\n"
    return (
        f"## Use\n\n```python\nfrom diffusers import DiffusionPipeline\n{lead}\n"
        f"pipeline = DiffusionPipeline.from_pretrained({name}{absent})\n"
        f'pipeline.load_lora_weights("{card.repo}")\n'
        f'image = pipeline("a prompt", max_sequence_length={length}).images[0]\n```\n\n'
        "`pytorch_lora_weights.safetensors` is the form that diffusers reads; `adapter_config.json` with "
        "`adapter_model.safetensors` is the same adapter for PEFT and for flowopd."
    )


def _lineage(manifest: Manifest) -> str:
    lines = ["## Where it comes from", "", "| role | reference | sha256 |", "|---|---|---|"]
    base = [] if manifest.base is None else [("base", manifest.base.ref, manifest.base.sha256)]
    parents = [(p.role, p.ref, p.sha256) for p in manifest.parents]
    lines += [f"| {_plain(role)} | {_code(ref)} | {_code((sha or '—')[:16])} |" for role, ref, sha in [*base, *parents]]
    return "\n".join([*lines, "", f"Recipe {_code(manifest.recipe_sha)} is in `recipe.yaml`."])


def _code(text: str) -> str:
    """A text of somebody else's as code, which it cannot leave."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


def _plain(text: str) -> str:
    """A text of somebody else's between our words: no markup of Markdown or HTML in it acts."""
    return re.sub(r"[<>|`*\[\]\\]", lambda found: f"&#{ord(found[0])};", printable(text))
