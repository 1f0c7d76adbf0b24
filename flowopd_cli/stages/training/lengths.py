"""Prompts that are longer than the text encoders read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.prompts.targets import parse_target
from flowopd_cli.recipe import Recipe, TrainedRecipe
from flowopd_cli.system.progress import Progress


def check_lengths(
    recipe: Recipe,
    model: LoadedModel,
    prompts: Sequence[Prompt],
    progress: Progress,
    *,
    watched: Sequence[Prompt] = (),
    base: str = "",
) -> None:
    """Remark on prompts whose end no text encoder reads, with their number and the longest.

    ``watched`` are the prompts of a training's watch, which has rewards of its own; ``base`` names a model that is not
    the recipe's.

    Raises :class:`PromptError`: ``model.too_long`` is ``refuse``, or the text to render is in the end that is lost.
    """
    by_text = {prompt.text: prompt for prompt in (*prompts, *watched)}
    excess = model.truncated(list(by_text))
    if not excess:
        return
    text, (tokens, limit) = max(excess.items(), key=lambda item: item[1].tokens)
    way_out, reader = "shorten them", f"{limit} tokens that the text encoders{base and f' of {base}'} read"
    if limit == recipe.model.max_sequence_length:
        way_out += ", or raise model.max_sequence_length"
    rendered = [prompt for prompt in _rendered(recipe, prompts, watched) if prompt.text in excess]
    _refuse_lost_targets(model, rendered, reader, way_out)
    message = (
        f"{len(excess)} of {len(by_text)} prompts are longer than the {reader}, the longest, "
        f"{by_text[text].id!r}, by {tokens - limit}: their ends are ignored; {way_out}"
    )
    if recipe.model.too_long == "refuse":
        raise PromptError(f"{message}, or set model.too_long to warn")
    progress.note(message)


def _rendered(recipe: Recipe, prompts: Sequence[Prompt], watched: Sequence[Prompt]) -> Iterator[Prompt]:
    """The prompts with a text to render: by their metadata, or by a reward that scores them."""
    trained = getattr(recipe, "rewards", ())
    watch = recipe.watch.rewards if isinstance(recipe, TrainedRecipe) else ()
    for part, rewards in ((prompts, trained), (watched, watch or trained)):
        tasks = {spec.task for spec in rewards if spec.name in registry.QUOTED}
        yield from (p for p in part if p.metadata.get("target") is not None or {None, p.task} & tasks)


def _refuse_lost_targets(model: LoadedModel, prompts: Iterable[Prompt], reader: str, way_out: str) -> None:
    heads: dict[str, tuple[Prompt, str]] = {}
    for prompt in prompts:
        with suppress(PromptError):
            target = parse_target(prompt.id, prompt.text, prompt.metadata)
            before, match, _ = prompt.text.partition(target)
            heads |= {before + target: (prompt, target)} if match else {}
    lost = [heads[head] for head in model.truncated(list(heads))]
    if lost:
        prompt, target = lost[0]
        others = f", as in {len(lost) - 1} other prompts" * (len(lost) > 1)
        raise PromptError(
            f"prompt {prompt.id!r}: its text to render, {target[:80]!r}, is beyond the {reader}{others}: {way_out}"
        )
