"""Prompts that are longer than the text encoders read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.prompts.targets import parse_target
from flowopd_cli.recipe import Recipe
from flowopd_cli.system.progress import Progress


def check_lengths(recipe: Recipe, model: LoadedModel, prompts: Iterable[Prompt], progress: Progress) -> None:
    """Remark on prompts whose end no text encoder reads, with their number and the longest.

    Raises :class:`PromptError`: ``model.too_long`` is ``refuse``, or the text to render is in the end that is lost.
    """
    by_text = {prompt.text: prompt for prompt in prompts}
    excess = model.truncated(list(by_text))
    if not excess:
        return
    text, (tokens, limit) = max(excess.items(), key=lambda item: item[1].tokens)
    way_out = "shorten them"
    if limit == recipe.model.max_sequence_length:
        way_out += ", or raise model.max_sequence_length"
    _refuse_lost_targets(recipe, model, [by_text[text] for text in excess], f"{limit} tokens", way_out)
    message = (
        f"{len(excess)} of {len(by_text)} prompts are longer than the {limit} tokens that the text encoders read, the "
        f"longest, {by_text[text].id!r}, by {tokens - limit}: their ends are ignored; {way_out}"
    )
    if recipe.model.too_long == "refuse":
        raise PromptError(f"{message}, or set model.too_long to warn")
    progress.note(message)


def _refuse_lost_targets(
    recipe: Recipe, model: LoadedModel, prompts: Iterable[Prompt], limit: str, way_out: str
) -> None:
    tasks = {spec.task for spec in getattr(recipe, "rewards", ()) if spec.name in registry.QUOTED}
    heads: dict[str, tuple[Prompt, str]] = {}
    for prompt in prompts:
        if prompt.metadata.get("target") is not None or {None, prompt.task} & tasks:
            with suppress(PromptError):
                target = parse_target(prompt.id, prompt.text, prompt.metadata)
                before, match, _ = prompt.text.partition(target)
                heads |= {before + target: (prompt, target)} if match else {}
    lost = [heads[head] for head in model.truncated(list(heads))]
    if lost:
        prompt, target = lost[0]
        others = f", as in {len(lost) - 1} other prompts" * (len(lost) > 1)
        raise PromptError(
            f"prompt {prompt.id!r}: its text to render, {target[:80]!r}, is beyond the {limit} that the text encoders "
            f"read{others}: {way_out}"
        )
