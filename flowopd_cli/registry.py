"""Names to things: families, bases, rewards, prompt sources and suites, each a lazy ``module:attr``. No torch here.

A plugin is a row here or a Python entry point of the group ``flowopd.<kind>`` (docs/add_a_reward.md). A reward may
also be named directly as ``my_package.my_module:attr``, or as ``remote:URL`` where a worker serves it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from flowopd_cli.errors import FlowOPDError, RecipeError, RewardError
from flowopd_cli.system.redact import REMOTE
from flowopd_cli.system.text import suggest

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_URLS = re.compile(r"https?://[^\s,/]+[^\s,]*(,https?://[^\s,/]+[^\s,]*)*")


class Registry:
    """Names of one kind of thing. Nothing is imported before ``load``; ``open_ended`` also takes ``module:attr``.

    ``remote`` is what ``remote:URL`` (or ``remote:URL,URL``) stands for: called with the URLs before other arguments.
    """

    def __init__(
        self,
        kind: str,
        rows: Mapping[str, str],
        *,
        error: type[FlowOPDError] = RecipeError,
        open_ended: bool = False,
        remote: str | None = None,
    ) -> None:
        self.kind = kind
        self._rows = dict(rows)
        self._error = error
        self._open_ended = open_ended
        self._remote = remote
        self._plugins: dict[str, str] | None = None

    def names(self) -> list[str]:
        """Every name, sorted, those of installed plugins included."""
        return sorted(self._table())

    def target(self, name: str) -> str:
        """The ``module:attr`` behind a name.

        Raises:
            FlowOPDError: the name is unknown (near names are suggested), or two plugins claim one name.
        """
        table = self._table()
        if name in table:
            return table[name]
        if self._remote and _is_remote(name):
            if not _URLS.fullmatch(name.removeprefix(REMOTE)):
                shown = REMOTE if "@" in name or "?" in name else name
                raise self._error(f"{self.kind} {shown!r}: write it as {REMOTE}http://HOST:PORT, several with commas")
            return self._remote
        if self.is_code(name):
            return name
        known = ", ".join(sorted(table)) or "none"
        direct = "; or name your own as package.module:attr" if self._open_ended else ""
        direct += f", a worker as {REMOTE}URL" if self._remote else ""
        raise self._error(f"no {self.kind} {name!r}{suggest(name, list(table))}; known: {known}{direct}")

    def is_code(self, name: str) -> bool:
        """Whether a name is the ``module:attr`` of code that is not registered, which ``load`` would import."""
        return self._open_ended and _TARGET.fullmatch(name) is not None and name not in self._table()

    def check(self, name: str) -> None:
        """Refuse a name that ``load`` could not find, importing nothing of it."""
        module = self.target(name).partition(":")[0]
        self._add_working_directory(name)
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise self._error(f"{self.kind} {name!r}: there is no module {module.partition('.')[0]!r} to import")

    def load(self, name: str) -> Any:
        """The object behind a name, imported now.

        Raises:
            FlowOPDError: the name is unknown, or its module or attribute is missing.
        """
        module, _, attribute = self.target(name).partition(":")
        self._add_working_directory(name)
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except (ImportError, AttributeError) as error:
            raise self._error(f"{self.kind} {name!r} cannot be loaded from {module}:{attribute} ({error})") from error
        return partial(value, name.removeprefix(REMOTE)) if self._remote and _is_remote(name) else value

    def _add_working_directory(self, name: str) -> None:
        """Make modules of the working directory importable, after installed ones, for a name that is not registered."""
        here = os.getcwd()
        if name not in self._table() and here not in sys.path and "" not in sys.path:
            sys.path.append(here)

    def _table(self) -> dict[str, str]:
        if self._plugins is None:
            self._plugins = self._collect(entry_points(group=f"flowopd.{self.kind}"))
        return {**self._rows, **self._plugins}

    def _collect(self, points: Sequence[EntryPoint]) -> dict[str, str]:
        plugins: dict[str, str] = {}
        for point in points:
            owner = self._rows.get(point.name) or plugins.get(point.name)
            if owner not in (None, point.value):
                raise self._error(
                    f"{self.kind} {point.name!r} is claimed by {point.value} and by {owner}; uninstall one of them"
                )
            plugins[point.name] = point.value
        return plugins


def _is_remote(name: str) -> bool:
    """``remote:`` and an address; a module may be called remote too."""
    return name.startswith(REMOTE) and not _TARGET.fullmatch(name)


MODELS = Registry(
    "model",
    {"sd3": "flowopd_cli.models.sd3:SD3Model", "flux": "flowopd_cli.models.flux:FluxModel"},
)
FAMILIES = Registry(  # what each of MODELS is, without torch
    "family",
    {"sd3": "flowopd_cli.models.files.families:SD3", "flux": "flowopd_cli.models.files.families:FLUX"},
)
BASES = Registry("base", {"toy": "flowopd_cli.toy:folder"})
REWARDS = Registry(
    "reward",
    {
        "deqa": "flowopd_cli.rewards.remote.deqa:DeQAReward",
        "aesthetic": "flowopd_cli.rewards.preference.aesthetic:AestheticReward",
        "blip-vqa": "flowopd_cli.rewards.compbench.blip_vqa:BlipVQAReward",
        "clipscore": "flowopd_cli.rewards.preference.clipscore:ClipScoreReward",
        "compbench-3d-spatial": "flowopd_cli.rewards.compbench.rewards:Spatial3DReward",
        "compbench-complex": "flowopd_cli.rewards.compbench.rewards:ComplexReward",
        "compbench-numeracy": "flowopd_cli.rewards.compbench.rewards:NumeracyReward",
        "compbench-spatial": "flowopd_cli.rewards.compbench.rewards:SpatialReward",
        "geneval": "flowopd_cli.rewards.geneval.reward:GenEvalReward",
        "geneval-hf": "flowopd_cli.rewards.geneval.reward:GenEvalHFReward",
        "hpsv2": "flowopd_cli.rewards.preference.hpsv2:HPSv2Reward",
        "imagereward": "flowopd_cli.rewards.preference.imagereward:ImageRewardReward",
        "jpeg_compressibility": "flowopd_cli.rewards.jpeg:JpegReward",
        "ocr": "flowopd_cli.rewards.ocr.reward:OCRReward",
        "pickscore": "flowopd_cli.rewards.preference.pickscore:PickScoreReward",
        "toy-geneval": "flowopd_cli.toy.rewards:geneval",
        "toy-ocr": "flowopd_cli.toy.rewards:ocr",
        "toy-quality": "flowopd_cli.toy.rewards:quality",
        "vlm": "flowopd_cli.rewards.vlm:VLMReward",
    },
    error=RewardError,
    open_ended=True,
    remote="flowopd_cli.rewards.remote.client:RemoteReward",
)
PROMPTS = Registry(
    "prompts",
    {
        "toy:geneval": "flowopd_cli.toy.prompts:geneval",
        "toy:ocr": "flowopd_cli.toy.prompts:ocr",
        "toy:all": "flowopd_cli.toy.prompts:everything",
        "geneval": "flowopd_cli.prompts.sources:geneval",
        "ocr": "flowopd_cli.prompts.sources:ocr",
        "pickscore": "flowopd_cli.prompts.sources:pickscore",
        "drawbench": "flowopd_cli.prompts.sources:drawbench",
    },
)
SUITES = Registry(
    "suite",
    {
        "average": "flowopd_cli.suites.flow_grpo:average",
        "deqa": "flowopd_cli.suites.flow_grpo:deqa",
        "drawbench": "flowopd_cli.suites.flow_grpo:drawbench",
        "geneval": "flowopd_cli.suites.geneval:geneval",
        "ocr": "flowopd_cli.suites.flow_grpo:ocr",
        "pickscore": "flowopd_cli.suites.flow_grpo:pickscore",
        "t2i-compbench": "flowopd_cli.suites.compbench:t2i_compbench",
        "toy-geneval": "flowopd_cli.toy.suites:geneval",
        "toy-ocr": "flowopd_cli.toy.suites:ocr",
        "toy-quality": "flowopd_cli.toy.suites:quality",
    },
)
KINDS: Mapping[str, Registry] = {r.kind: r for r in (MODELS, FAMILIES, BASES, REWARDS, PROMPTS, SUITES)}

# The tasks that the shipped prompt sources name, so that a route can be checked before any prompt is drawn.
PROMPT_TASKS: Mapping[str, tuple[str, ...]] = {
    "toy:geneval": ("geneval",),
    "toy:ocr": ("ocr",),
    "toy:all": ("geneval", "ocr"),
    "geneval": ("geneval",),
    "ocr": ("ocr",),
    "pickscore": ("pickscore",),
    "drawbench": ("drawbench",),
}


def reward_name(name: str, base: str) -> str:
    """The registry's name for a reward: on the base ``toy``, ``geneval`` means ``toy-geneval``."""
    return _on_base(REWARDS, name, base)


def suite_name(name: str, base: str) -> str:
    """The registry's name for a suite: on the base ``toy``, ``geneval`` means ``toy-geneval``."""
    return _on_base(SUITES, name, base)


def _on_base(registry: Registry, name: str, base: str) -> str:
    prefixed = f"{base}-{name}"
    return prefixed if base in BASES.names() and prefixed in registry.names() else name
