"""Prompts of a registered source or of a file."""

from __future__ import annotations

from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.files import Row, read_rows


def load_prompts(
    source: str, *, task: str | None = None, split: str = "train", limit: int | None = None
) -> list[Prompt]:
    """The prompts of a registered source, or of a ``.txt`` (one a line) or ``.jsonl`` file.

    A JSONL row, ``{"prompt": …, "task"?: …, …}``, is the prompt's metadata. ``task`` is that of rows which name none;
    ``split`` applies to registered sources.

    Raises:
        PromptError: no such file, an invalid line, or a prompt without a task.
    """
    if source in registry.PROMPTS.names():
        prompts: list[Prompt] = list(registry.PROMPTS.load(source)(split))
        prompts = [prompt for prompt in prompts if task is None or prompt.task == task]
    else:
        prompts = [_prompt(row) for row in read_rows(Path(source), task)]
    if not prompts:
        raise PromptError(f"prompts: {source}: no prompt in it" + (f" of task {task!r}" if task else ""))
    return prompts[:limit]


def _prompt(row: Row) -> Prompt:
    if row.task is None:
        raise PromptError(f'{row.place}: no task: write "task" in a .jsonl row or give --prompts FILE,task=NAME')
    return Prompt(row.place if row.id is None else row.id, row.text, row.task, row.metadata)
