"""Registries of families, bases, rewards, prompt sources and suites, each a lazy ``module:attr``. No torch here.

A plugin is a row here or a Python entry point of the group ``flowopd.<kind>`` (docs/add_a_reward.md). A reward may
also be named directly as ``my_package.my_module:attr``, or as ``remote:URL`` where a worker serves it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any

from flowopd_cli.errors import FlowOPDError, RecipeError, RewardError
from flowopd_cli.system.redact import REMOTE
from flowopd_cli.system.text import suggest

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_URLS = re.compile(r"https?://[^\s,/]+[^\s,]*(,https?://[^\s,/]+[^\s,]*)*")


@dataclass(eq=False)
class Registry:
    """Names of one kind, imported only by ``load``; an ``open_ended`` registry also takes ``module:attr``.

    ``remote`` is the target of ``remote:URL`` (or ``remote:URL,URL``), which gets the URLs as its first argument.
    """

    kind: str
    rows: Mapping[str, str]
    error: type[FlowOPDError] = field(default=RecipeError, kw_only=True)
    open_ended: bool = field(default=False, kw_only=True)
    remote: str | None = field(default=None, kw_only=True)

    def names(self) -> list[str]:
        """Every name, sorted, including those of installed plugins."""
        return sorted(self._table)

    def target(self, name: str) -> str:
        """The ``module:attr`` of a name; an unknown name is an error that suggests similar ones."""
        if name in self._table:
            return self._table[name]
        if self._is_remote(name):
            if not _URLS.fullmatch(name.removeprefix(REMOTE)):
                shown = REMOTE if "@" in name or "?" in name else name
                raise self.error(f"{self.kind} {shown!r}: write it as {REMOTE}http://HOST:PORT, several with commas")
            return str(self.remote)
        if self.is_code(name):
            return name
        names = ", ".join(self.names()) or "none"
        direct = "; or name your own as package.module:attr" if self.open_ended else ""
        direct += f", a worker as {REMOTE}URL" if self.remote else ""
        raise self.error(f"no {self.kind} {name!r}{suggest(name, self.names())}; known: {names}{direct}")

    def on_base(self, name: str, base: str) -> str:
        """The registered name on a base: on ``toy``, ``geneval`` is ``toy-geneval``."""
        prefixed = f"{base}-{name}"
        return prefixed if base in BASES.names() and prefixed in self._table else name

    def is_code(self, name: str) -> bool:
        """Whether a name is the ``module:attr`` of code that is not registered, which ``load`` would import."""
        return self.open_ended and _TARGET.fullmatch(name) is not None and name not in self._table

    def check(self, name: str) -> None:
        """Refuse a name that ``load`` could not find, without importing it."""
        package = self.target(name).partition(":")[0].partition(".")[0]
        self._add_working_directory(name)
        if importlib.util.find_spec(package) is None:
            raise self.error(f"{self.kind} {name!r}: there is no module {package!r} to import")

    def load(self, name: str) -> Any:
        """Import and return the object of a name; raises if its module or attribute is missing."""
        module, _, attribute = self.target(name).partition(":")
        self._add_working_directory(name)
        try:
            value: Any = attrgetter(attribute)(importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise self.error(f"{self.kind} {name!r} cannot be loaded from {module}:{attribute} ({error})") from error
        return partial(value, name.removeprefix(REMOTE)) if self._is_remote(name) else value

    def _is_remote(self, name: str) -> bool:
        """Whether a name is ``remote:`` and an address; a module may also be called remote."""
        return self.remote is not None and name.startswith(REMOTE) and not _TARGET.fullmatch(name)

    def _add_working_directory(self, name: str) -> None:
        """Make modules in the working directory importable (after installed ones) for an unregistered name."""
        here = os.getcwd()
        if name not in self._table and here not in sys.path and "" not in sys.path:
            sys.path.append(here)

    @cached_property
    def _table(self) -> Mapping[str, str]:
        table = dict(self.rows)
        for point in entry_points(group=f"flowopd.{self.kind}"):
            if table.setdefault(point.name, point.value) != point.value:
                raise self.error(
                    f"{self.kind} {point.name!r} is claimed by {point.value} and by {table[point.name]}; "
                    "uninstall one of them"
                )
        return table


MODELS = Registry(
    "model",
    {
        "sd3": "flowopd_cli.models.sd3:SD3Model",
        "flux": "flowopd_cli.models.flux:FluxModel",
        "z-image": "flowopd_cli.models.z_image:ZImageModel",
        "sana": "flowopd_cli.models.sana:SanaModel",
        "lumina2": "flowopd_cli.models.lumina2:Lumina2Model",
        "flux2-klein": "flowopd_cli.models.flux2_klein:Flux2KleinModel",
        "qwen-image": "flowopd_cli.models.qwen_image:QwenImageModel",
    },
)
FAMILIES = Registry(  # what each of MODELS is, without torch
    "family",
    {
        "sd3": "flowopd_cli.models.files.families:SD3",
        "flux": "flowopd_cli.models.files.families:FLUX",
        "z-image": "flowopd_cli.models.files.families:Z_IMAGE",
        "sana": "flowopd_cli.models.files.families:SANA",
        "lumina2": "flowopd_cli.models.files.families:LUMINA2",
        "flux2-klein": "flowopd_cli.models.files.families:FLUX2_KLEIN",
        "qwen-image": "flowopd_cli.models.files.families:QWEN_IMAGE",
    },
)
BASES = Registry("base", {"toy": "flowopd_cli.toy:folder"})
REWARDS = Registry(
    "reward",
    {
        "deqa": "flowopd_cli.rewards.remote.client:DeQAReward",
        "aesthetic": "flowopd_cli.rewards.preference.clip_scores:AestheticReward",
        "blip-vqa": "flowopd_cli.rewards.compbench.blip_vqa:BlipVQAReward",
        "clipscore": "flowopd_cli.rewards.preference.clip_scores:ClipScoreReward",
        "compbench-3d-spatial": "flowopd_cli.rewards.compbench.rewards:Spatial3DReward",
        "compbench-complex": "flowopd_cli.rewards.compbench.rewards:ComplexReward",
        "compbench-numeracy": "flowopd_cli.rewards.compbench.rewards:NumeracyReward",
        "compbench-spatial": "flowopd_cli.rewards.compbench.rewards:SpatialReward",
        "cvtg": "flowopd_cli.rewards.ocr.cvtg:CVTGReward",
        "dpg-bench": "flowopd_cli.rewards.dpg_bench.judges:DPGBenchReward",
        "dpg-bench-vlm": "flowopd_cli.rewards.dpg_bench.judges:DPGBenchVLMReward",
        "geneval": "flowopd_cli.rewards.geneval.reward:GenEvalReward",
        "geneval-hf": "flowopd_cli.rewards.geneval.reward:GenEvalHFReward",
        "geneval2": "flowopd_cli.rewards.geneval2.reward:GenEval2Reward",
        "geneval2-endpoint": "flowopd_cli.rewards.geneval2.reward:GenEval2EndpointReward",
        "hpsv2": "flowopd_cli.rewards.preference.hpsv2:HPSv2Reward",
        "hpsv3": "flowopd_cli.rewards.preference.hpsv3:HPSv3Reward",
        "imagereward": "flowopd_cli.rewards.preference.imagereward:ImageRewardReward",
        "jpeg_compressibility": "flowopd_cli.rewards.jpeg:JpegReward",
        "longtext": "flowopd_cli.rewards.ocr.longtext:LongTextReward",
        "ocr": "flowopd_cli.rewards.ocr.reward:OCRReward",
        "pickscore": "flowopd_cli.rewards.preference.clip_scores:PickScoreReward",
        "toy-geneval": "flowopd_cli.toy.rewards:geneval",
        "toy-ocr": "flowopd_cli.toy.rewards:ocr",
        "toy-preference": "flowopd_cli.toy.rewards:PreferenceReward",
        "toy-quality": "flowopd_cli.toy.rewards:QualityReward",
        "unifiedreward": "flowopd_cli.rewards.unifiedreward:UnifiedReward",
        "vlm": "flowopd_cli.rewards.vlm:VLMReward",
    },
    error=RewardError,
    open_ended=True,
    remote="flowopd_cli.rewards.remote.client:RemoteReward",
)
_SHIPPED_PROMPTS = {
    "toy:geneval": "flowopd_cli.toy.prompts:geneval",
    "toy:ocr": "flowopd_cli.toy.prompts:ocr",
    "toy:preference": "flowopd_cli.toy.prompts:preference",
    "toy:quality": "flowopd_cli.toy.prompts:quality",
    "toy:all": "flowopd_cli.toy.prompts:everything",
    "geneval": "flowopd_cli.prompts.sources:geneval",
    "ocr": "flowopd_cli.prompts.sources:ocr",
    "pickscore": "flowopd_cli.prompts.sources:pickscore",
    "drawbench": "flowopd_cli.prompts.sources:drawbench",
}
PROMPTS = Registry("prompts", _SHIPPED_PROMPTS)
SUITES = Registry(
    "suite",
    {
        "average": "flowopd_cli.suites.flow_grpo:average",
        "cvtg-2k": "flowopd_cli.suites.cvtg:cvtg_2k",
        "deqa": "flowopd_cli.suites.flow_grpo:deqa",
        "dpg-bench": "flowopd_cli.suites.dpg_bench:dpg_bench",
        "drawbench": "flowopd_cli.suites.flow_grpo:drawbench",
        "geneval": "flowopd_cli.suites.geneval:geneval",
        "geneval2": "flowopd_cli.suites.geneval2:geneval2",
        "longtext-bench": "flowopd_cli.suites.longtext:longtext_bench",
        "longtext-bench-en": "flowopd_cli.suites.longtext:english",
        "longtext-bench-zh": "flowopd_cli.suites.longtext:chinese",
        "ocr": "flowopd_cli.suites.flow_grpo:ocr",
        "pickscore": "flowopd_cli.suites.flow_grpo:pickscore",
        "t2i-compbench": "flowopd_cli.suites.compbench:t2i_compbench",
        "toy-geneval": "flowopd_cli.toy.suites:geneval",
        "toy-ocr": "flowopd_cli.toy.suites:ocr",
        "toy-preference": "flowopd_cli.toy.suites:preference",
        "toy-quality": "flowopd_cli.toy.suites:quality",
    },
)
KINDS: Mapping[str, Registry] = {r.kind: r for r in (MODELS, FAMILIES, BASES, REWARDS, PROMPTS, SUITES)}

# The tasks of the shipped prompt sources: a route is checked before any prompt is loaded.
PROMPT_TASKS: Mapping[str, tuple[str, ...]] = {
    **{name: (name.removeprefix("toy:"),) for name in _SHIPPED_PROMPTS},
    "toy:all": ("geneval", "ocr"),
}
QUOTED = frozenset({"ocr", "toy-ocr"})  # rewards that look for the text to render


def base_source(name: str) -> str:
    """The folder or Hub repository of a base, whose name may be an alias such as ``toy``."""
    return str(BASES.load(name)()) if name in BASES.names() else name
