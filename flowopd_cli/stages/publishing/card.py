"""Model cards in Markdown with the Hub's metadata: inputs and figures of a run. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, Undefined

from flowopd_cli.errors import printable
from flowopd_cli.registry import BASES
from flowopd_cli.runs.evaluations import MODEL, Evaluation, protocol
from flowopd_cli.runs.manifest import Manifest
from flowopd_cli.stages.publishing.licenses import UNKNOWN

TASK = "text-to-image"
# Benchmarks by the name in a suite's version.
BENCHMARKS = {
    "geneval": "GenEval",
    "geneval2": "GenEval 2",
    "dpg-bench": "DPG-Bench",
    "drawbench": "DrawBench",
    "pickscore": "PickScore prompts",
    "ocr": "Flow-GRPO OCR prompts",
    "cvtg-2k": "CVTG-2K",
    "longtext-bench": "LongText-Bench",
    "t2i-compbench++": "T2I-CompBench++",
}


@dataclass(frozen=True)
class Card:
    """The content of a card.

    The lines of usage load ``repo`` at ``revision``; ``published`` says that ``repo`` is a repository, not a folder.
    ``license`` is the adapter's own, ``inherited`` the base's. ``gallery`` has each prompt with its picture's file.
    ``sampling`` has arguments of the pipeline's call, ``guidance_note`` how its guidance was chosen, ``absent`` the
    parts that the base lacks. ``transformer_class`` is diffusers' class of a full model, empty for a LoRA.
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
    sampling: Mapping[str, Any] = field(default_factory=dict)
    guidance_note: str = ""
    absent: tuple[str, ...] = ()
    trained: str = ""
    transformer_class: str = ""
    base_revision: str | None = None


def build(card: Card) -> str:
    """The text of a card."""
    base = card.manifest.base.ref if card.manifest.base else "unknown"
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701
    # Markdown: every text from outside passes through ``code`` or ``plain``.
    environment.filters |= {"code": _code, "plain": _plain, "cell": _cell}
    template = (files("flowopd_cli.stages.publishing") / "card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        card=card,
        base=base,
        manifest=card.manifest,
        metadata=metadata(card, base).to_yaml(),
        suites=list(card.evaluations[-1].suites) if card.evaluations else [],
        protocol=protocol(card.evaluations[-1]) if card.evaluations else "",
        approximate=not all(figures["exact"] for e in card.evaluations for figures in e.suites.values()),
        terms=card.inherited,
        **_usage(card, base),
    )


def metadata(card: Card, base: str) -> ModelCardData:
    """License, base, tags, pictures and results in the Hub's terms."""
    terms = {"license": card.license} if card.license else card.inherited or UNKNOWN
    scored = [(e, suite) for e in card.evaluations if e.of == MODEL for suite in e.suites]
    is_hub_base = base.count("/") == 1 and not base.startswith((".", "/"))
    return ModelCardData(
        license=terms["license"],
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name="diffusers",
        pipeline_tag=TASK,
        base_model=base if is_hub_base else None,
        base_model_relation=("finetune" if card.transformer_class else "adapter") if is_hub_base else None,
        tags=[*([] if card.transformer_class else ["lora"]), TASK, "flow-matching", "flowopd", card.manifest.stage],
        widget=[{"text": text, "output": {"url": name}} for text, name in card.gallery] or None,
        model_name=card.title if scored else None,
        eval_results=[_result(card, evaluation, suite) for evaluation, suite in scored] or None,
        inference={"parameters": dict(card.sampling)} if card.sampling else None,
    )


def _result(card: Card, evaluation: Evaluation, suite: str) -> EvalResult:
    figures, version = evaluation.results[suite], evaluation.results[suite]["version"]
    file = evaluation.run.eval_file(suite, evaluation.part).relative_to(evaluation.run.path).as_posix()
    url = f"https://huggingface.co/{card.repo}/blob/{card.revision or 'main'}/{file}"
    return EvalResult(
        task_type=TASK,
        task_name="Text-to-Image",
        dataset_type=suite,
        dataset_name=f"{BENCHMARKS.get(version.rpartition('-')[0]) or suite} ({version})",
        dataset_split=evaluation.protocol["split"],
        dataset_args={key: evaluation.protocol[key] for key in ("steps", "guidance", "seed")},
        metric_type=suite,
        metric_name=suite if figures["exact"] else f"{suite} (approximate scorer)",
        metric_value=round(figures["mean"], 4),
        metric_args={"stderr": figures["stderr"], "n": figures["n"]},
        source_name="flowopd eval" if card.published else None,
        source_url=url if card.published else None,
    )


def _usage(card: Card, base: str) -> dict[str, str]:
    pipeline, imports = json.dumps(base), ""
    if base in BASES.names():
        module, _, attribute = BASES.target(base).partition(":")
        pipeline, imports = f"{attribute}()", f"from {module} import {attribute}\n"
    elif card.base_revision and "/" in base:
        pipeline += f", revision={json.dumps(card.base_revision)}"
    sampling = {"max_sequence_length": card.max_sequence_length, **card.sampling}
    return {
        "imports": imports,
        "pipeline": pipeline + "".join(f", {part}=None" for part in card.absent),
        "adapter": json.dumps(card.repo) + (f", revision={json.dumps(card.revision)}" if card.revision else ""),
        "sampling": ", ".join(
            f"{key}={json.dumps(value) if isinstance(value, str) else f'{value:g}'}" for key, value in sampling.items()
        ),
        "scale": next((key for key in sampling if key.endswith("_scale")), ""),
        "reference": f"hub:{card.repo}@{card.revision}" if card.revision else f"hub:{card.repo}",
    }


def _cell(figures: Mapping[str, Any] | Undefined) -> str:
    if isinstance(figures, Undefined):
        return "—"
    error = "" if figures["stderr"] is None else f" ± {figures['stderr']:.4f}"
    return f"{'' if figures['exact'] else '~'}{figures['mean']:.4f}{error} (n = {figures['n']})"


def _code(text: str) -> str:
    """A text from outside as inline code that it cannot close."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


def _plain(text: str) -> str:
    """A text from outside in which no markup of Markdown or HTML takes effect."""
    return re.sub(r"[<>|`*\[\]\\]", lambda match: f"&#{ord(match[0])};", printable(text))
