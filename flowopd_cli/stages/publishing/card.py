"""Model cards: what a run was made of and how it scored, as Markdown with the Hub's metadata. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from flowopd_cli.errors import printable
from flowopd_cli.registry import BASES
from flowopd_cli.runs.evaluations import BASE, MODEL, Evaluation, evaluations, protocol
from flowopd_cli.runs.manifest import Manifest
from flowopd_cli.stages.publishing.licenses import UNKNOWN, known_license

__all__ = ["BASE", "MODEL", "Card", "Evaluation", "build", "evaluations", "metadata", "protocol"]

TASK = {"type": "text-to-image", "name": "Text-to-Image"}
# What papers call the prompts of a suite, by the version that is scored.
TITLES = {
    "geneval": "GenEval",
    "drawbench": "DrawBench",
    "pickscore": "PickScore prompts",
    "ocr": "Flow-GRPO OCR prompts",
    "t2i-compbench++": "T2I-CompBench++",
}


@dataclass(frozen=True)
class Card:
    """What the card tells. ``repo`` is what the lines of usage load, at ``revision``; ``published`` says that it is a
    repository; ``license`` was asked for, ``inherited`` is the base's; ``gallery`` are prompts and their pictures'
    files, ``picture`` is all of them in a row; ``sampling`` are the further arguments of the pipeline's call;
    ``trained`` says on what. ``base_revision`` is that of a base on the Hub.
    """

    title: str
    manifest: Manifest
    evaluations: Sequence[Evaluation]
    repo: str
    revision: str | None = None
    published: bool = False
    license: str | None = None
    inherited: Mapping[str, str] = field(default_factory=dict)
    picture: str | None = None
    gallery: Sequence[tuple[str, str]] = ()
    max_sequence_length: int = 256
    sampling: Mapping[str, float] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    trained: str = ""
    base_revision: str | None = None


def build(card: Card) -> str:
    """The card: metadata, then what it is, its figures, how to use it, where it came from."""
    base = card.manifest.base.ref if card.manifest.base else "unknown"
    parts = [
        f"---\n{yaml.safe_dump(metadata(card, base), sort_keys=False)}---",
        f"# {card.title}",
        f"A LoRA for {_code(base)}, made by {_code('flowopd ' + card.manifest.stage)} "
        f"(flowopd {_plain(card.manifest.code_version)}).",
        _results(card.evaluations),
        f"![samples]({card.picture})\n\nFrom the evaluation, one picture a prompt, none picked by hand."
        if card.picture
        else "",
        _usage(card, base),
        _lineage(card.manifest),
        _limitations(card, base),
        _license(card, base),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(card: Card, base: str) -> dict[str, Any]:
    """The card's YAML: license, base, tags, pictures and the Hub's ``model-index``, which it shows as a table."""
    data: dict[str, Any] = {"license": card.license} if card.license else dict(_inherited(card, base) or UNKNOWN)
    data |= {"library_name": "diffusers", "pipeline_tag": TASK["type"]}
    if base.count("/") == 1 and not base.startswith((".", "/")):
        data |= {"base_model": base, "base_model_relation": "adapter"}
    data["tags"] = ["lora", "text-to-image", "flow-matching", "flowopd", card.manifest.stage]
    if card.gallery:
        data["widget"] = [{"text": text, "output": {"url": name}} for text, name in card.gallery]
    own = [e for e in card.evaluations if e.of == MODEL]
    scores = [_score(card, e, suite) for e in own for suite in e.suites]
    if scores:
        data["model-index"] = [{"name": card.title, "results": scores}]
    return data


def _score(card: Card, evaluation: Evaluation, suite: str) -> dict[str, Any]:
    """One suite as a result of the ``model-index``."""
    figures, version = evaluation.suites[suite], evaluation.versions[suite]
    title = TITLES.get(version.rpartition("-")[0])
    metric = {"type": suite, "value": round(figures["mean"], 4), "name": _figure_name(suite, figures)}
    metric["args"] = {"stderr": figures["stderr"], "n": figures["n"]}
    found = {
        "task": dict(TASK),
        "dataset": {
            "name": f"{title or suite} ({version})",
            "type": suite,
            "split": evaluation.protocol["split"],
            "args": {key: evaluation.protocol[key] for key in ("steps", "guidance", "seed")},
        },
        "metrics": [metric],
    }
    if card.published:
        at = f"https://huggingface.co/{card.repo}/blob/{card.revision or 'main'}"
        name = evaluation.run.eval_file(suite).relative_to(evaluation.run.path).as_posix()
        found["source"] = {"name": "flowopd eval", "url": f"{at}/{name}"}
    return found


def _inherited(card: Card, base: str) -> Mapping[str, str]:
    return card.inherited or known_license(base)


def _license(card: Card, base: str) -> str:
    """Under what the adapter comes, and from where that is known."""
    told = _inherited(card, base)
    if card.license:
        return (
            f"## License\n\n{_code(card.license)}, as its author chose. The license of {_code(base)} holds beside it."
        )
    if not told:
        return (
            f"## License\n\nflowopd does not know the license of {_code(base)}, which the adapter inherits: look it up "
            "before you use or share this adapter."
        )
    named, link = told.get("license_name", told["license"]), told.get("license_link")
    shown = f"[{_plain(named)}]({link})" if link else _code(named)
    return f"## License\n\n{shown}, inherited from {_code(base)}."


def _limitations(card: Card, base: str) -> str:
    sha = card.manifest.base.sha256 if card.manifest.base else None
    made = f" (sha256 of its transformer {_code(sha[:16])}…)" if sha else ""
    lines = [
        f"It works on {_code(base)}{made} alone, and inherits what that can and cannot do.",
        f"It was trained on {_plain(card.trained)}; what it does to other prompts was not measured."
        * bool(card.trained),
        "A reward is not a person's judgment, and a model that was trained on one may have learned its blind spots.",
        "The figures hold for the suites, prompts, steps, guidance and seeds named in the evaluation files."
        if card.evaluations
        else "No evaluation came with it: nothing here says how good it is.",
    ]
    return "\n".join(["## Limitations", "", *(f"- {line}" for line in lines if line)])


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
    absent = "".join(f", {part}=None" for part in card.absent)
    pinned = f", revision={json.dumps(card.base_revision)}" if card.base_revision and "/" in base else ""
    name, lead = json.dumps(base), ""
    if base in BASES.names():
        module, _, attribute = BASES.target(base).partition(":")
        name, lead = f"{attribute}()", f"from {module} import {attribute}\n"
    at = f", revision={json.dumps(card.revision)}" if card.revision else ""
    asked = "".join(f", {key}={value:g}" for key, value in card.sampling.items())
    adapter = f"{card.repo}@{card.revision}" if card.revision else card.repo
    return (
        f"## Use\n\n```python\nfrom diffusers import DiffusionPipeline\n{lead}\n"
        f"pipeline = DiffusionPipeline.from_pretrained({name}{pinned}{absent})\n"
        f"pipeline.load_lora_weights({json.dumps(card.repo)}{at})\n"
        f'image = pipeline("a prompt", max_sequence_length={card.max_sequence_length}{asked}).images[0]\n```\n\n'
        "The same with PEFT, in place of `load_lora_weights`:\n\n```python\nfrom peft import PeftModel\n\n"
        f"pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, {json.dumps(card.repo)}{at})\n```\n\n"
        "`pytorch_lora_weights.safetensors` is the form that diffusers reads; `adapter_config.json` with "
        "`adapter_model.safetensors` is the same adapter for PEFT and for flowopd"
        + (f", where it is `hub:{adapter}`: as a teacher, an anchor, a start." if card.published else ".")
    )


def _lineage(manifest: Manifest) -> str:
    lines = ["## Where it comes from", "", "| role | reference | sha256 |", "|---|---|---|"]
    base = [] if manifest.base is None else [("base", manifest.base.ref, manifest.base.sha256)]
    parents = [(p.role, p.ref, p.sha256) for p in manifest.parents]
    lines += [f"| {_plain(role)} | {_code(ref)} | {_code(sha or '—')} |" for role, ref, sha in [*base, *parents]]
    return "\n".join([*lines, "", f"Recipe {_code(manifest.recipe_sha)} is in `recipe.yaml`."])


def _code(text: str) -> str:
    """A text of somebody else's as code, which it cannot leave."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


def _plain(text: str) -> str:
    """A text of somebody else's between our words: no markup of Markdown or HTML in it acts."""
    return re.sub(r"[<>|`*\[\]\\]", lambda found: f"&#{ord(found[0])};", printable(text))
