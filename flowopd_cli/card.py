"""Model cards: what a run was made of and how it scored, as Markdown with the Hub's metadata. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from flowopd_cli.errors import ArtifactError
from flowopd_cli.manifest import Manifest, is_run
from flowopd_cli.refs import AdapterRef
from flowopd_cli.registry import BASES
from flowopd_cli.run import RunDir

LICENSES = {
    "toy": {"license": "apache-2.0"},
    "stabilityai/": {
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    },
}
FIGURES = ("mean", "stderr", "n")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation run of this model or of its base: suite to mean, standard error, number of pictures."""

    of: str
    run: RunDir
    suites: dict[str, dict[str, Any]]


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
    without_t5: bool = False


def evaluations(source: RunDir, named: Sequence[str]) -> list[Evaluation]:
    """The evaluations to report: the ``named`` runs, else those beside the run that scored its adapter or its base.

    Raises:
        ArtifactError: a named run is no evaluation, or not of this adapter or its base.
    """
    own, base = AdapterRef.parse(str(source.path)).sha256(), source.manifest().base
    runs = [RunDir.open(path, writes=False) for path in named]
    beside = [] if named else [p for p in sorted(source.path.resolve().parent.iterdir()) if p.is_dir() and is_run(p)]
    runs += [RunDir(path, writes=False) for path in beside]
    found: dict[str, Evaluation] = {}
    for run in runs:
        manifest = run.manifest()
        parents = manifest.parents
        fits = manifest.stage == "eval" and manifest.status == "done" and bool(parents) and manifest.base is not None
        fits = fits and (base is None or manifest.base is None or manifest.base.sha256 == base.sha256)
        fits = fits and parents[0].sha256 in (own, None)
        if fits:
            of = "this model" if parents[0].sha256 == own else "base"
            found[of] = Evaluation(of, run, results(run))
        elif named:
            raise ArtifactError(f"{run.path}: not a finished evaluation of {source.path} or of its base")
    return [found[of] for of in ("base", "this model") if of in found]


def results(run: RunDir) -> dict[str, dict[str, Any]]:
    """``{suite: {mean, stderr, n}}`` of an evaluation run."""
    suites = run.recipe().eval.suites  # type: ignore[union-attr]
    loaded = {name: json.loads(run.eval_file(name).read_text(encoding="utf-8")) for name in suites}
    return {name: {key: result[key] for key in FIGURES} for name, result in loaded.items()}


def build(card: Card) -> str:
    """The card: metadata, then what it is, its figures, how to use it, where it came from."""
    base = card.manifest.base.ref if card.manifest.base else "unknown"
    parts = [
        f"---\n{yaml.safe_dump(metadata(card, base), sort_keys=False)}---",
        f"# {card.title}",
        f"A LoRA for `{base}`, made by `flowopd {card.manifest.stage}` (flowopd {card.manifest.code_version}).",
        _results(card.evaluations),
        f"![samples]({card.picture})" if card.picture else "",
        _usage(card, base),
        _lineage(card.manifest),
        "## Limitations\n\nThe adapter inherits what its base can and cannot do, and its license. The figures hold for "
        "the suites, prompts and seeds named in the evaluation files; a reward is not a person's judgment.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metadata(card: Card, base: str) -> dict[str, Any]:
    """The card's YAML: license, base, tags and the Hub's ``model-index``."""
    known = next((v for k, v in LICENSES.items() if base == k or base.startswith(k)), {"license": "other"})
    data: dict[str, Any] = {"license": card.license} if card.license else dict(known)
    data |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if base.count("/") == 1 and not base.startswith((".", "/")):
        data |= {"base_model": base, "base_model_relation": "adapter"}
    data["tags"] = ["lora", "text-to-image", "flow-matching", "flowopd", card.manifest.stage]
    own = [e for e in card.evaluations if e.of == "this model"]
    scores = [
        {
            "task": {"type": "text-to-image"},
            "dataset": {"name": suite, "type": suite},
            "metrics": [{"type": suite, "value": round(figures["mean"], 4), "name": suite}],
        }
        for evaluation in own
        for suite, figures in evaluation.suites.items()
    ]
    if scores:
        data["model-index"] = [{"name": card.title, "results": scores}]
    return data


def _results(found: Sequence[Evaluation]) -> str:
    if not found:
        return ""
    suites = list(found[-1].suites)
    lines = ["## Results", "", f"| model | {' | '.join(suites)} |", f"|---|{'---|' * len(suites)}"]
    for evaluation in found:
        cells = [evaluation.suites.get(suite) for suite in suites]
        shown = [f"{c['mean']:.4f} ± {c['stderr']:.4f} (n = {c['n']})" if c else "—" for c in cells]
        lines.append(f"| {evaluation.of} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", "Mean ± standard error over pictures; prompts and seeds are in `eval/`."])


def _usage(card: Card, base: str) -> str:
    length = card.max_sequence_length
    absent = ", text_encoder_3=None, tokenizer_3=None" if card.without_t5 else ""
    name, lead = f'"{base}"', ""
    if base in BASES.names():
        module, _, attribute = BASES.target(base).partition(":")
        name, lead = f"{attribute}()", f"from {module} import {attribute}\n"
    return (
        f"## Use\n\n```python\nfrom diffusers import StableDiffusion3Pipeline\n{lead}\n"
        f"pipeline = StableDiffusion3Pipeline.from_pretrained({name}{absent})\n"
        f'pipeline.load_lora_weights("{card.repo}")\n'
        f'image = pipeline("a prompt", max_sequence_length={length}).images[0]\n```\n\n'
        "`pytorch_lora_weights.safetensors` is the form that diffusers reads; `adapter_config.json` with "
        "`adapter_model.safetensors` is the same adapter for PEFT and for flowopd."
    )


def _lineage(manifest: Manifest) -> str:
    lines = ["## Where it comes from", "", "| role | reference | sha256 |", "|---|---|---|"]
    base = [] if manifest.base is None else [("base", manifest.base.ref, manifest.base.sha256)]
    parents = [(p.role, p.ref, p.sha256 or "—") for p in manifest.parents]
    lines += [f"| {role} | `{ref}` | `{sha[:16]}` |" for role, ref, sha in [*base, *parents]]
    return "\n".join([*lines, "", f"Recipe `{manifest.recipe_sha}` is in `recipe.yaml`."])
