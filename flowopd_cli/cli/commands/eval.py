"""``flowopd eval``: its flags, turned into a recipe. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Common
from flowopd_cli.errors import RecipeError


def _option(flag: str, metavar: str, help: str, **more: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, **more)


SuiteNames = Annotated[str | None, _option("--suite", "A,B", "The suites to run.", autocompletion=completion.suites)]
Adapter = Annotated[
    str | None,
    _option("--adapter", "REF", "The adapter to score; the base if omitted.", autocompletion=completion.runs),
]
Limit = Annotated[int | None, _option("--limit", "N", "Only N prompts of each suite, evenly spread.", min=1)]
PerPrompt = Annotated[int | None, _option("--images-per-prompt", "N", "Pictures of each prompt.", min=1)]
Categories = Annotated[str | None, _option("--categories", "A,B", "Categories of t2i-compbench; all if omitted.")]
Split = Annotated[str | None, _option("--split", "NAME", "test or validation.")]
Batch = Annotated[int | None, _option("--batch", "N", "Pictures drawn at once.", min=1)]
Images = Annotated[Path | None, _option("--images", "DIR", "Score these pictures instead of drawing any.")]
ImportScores = Annotated[Path | None, _option("--import-scores", "DIR", "Read what official scorers wrote there.")]
FailUnder = Annotated[
    list[str], _option("--fail-under", "SUITE=X", "Exit with 3 below it, also on --resume; repeatable.")
]


def eval_(
    common: Common,
    suite: SuiteNames = None,
    adapter: Adapter = None,
    limit: Limit = None,
    images_per_prompt: PerPrompt = None,
    categories: Categories = None,
    split: Split = None,
    batch: Batch = None,
    images: Images = None,
    import_scores: ImportScores = None,
    fail_under: FailUnder = [],  # noqa: B006
) -> None:
    """Score an adapter, the bare base, or somebody's pictures on held-out prompts.

    \b
    Example:
      flowopd eval --suite geneval,ocr --adapter runs/student --out runs/eval-student
      flowopd eval --suite geneval --images their/pictures --fail-under geneval=0.85
    """
    from flowopd_cli.cli import execute
    from flowopd_cli.cli.plan import resolve as plan

    if images is not None and import_scores is not None:
        raise RecipeError("--images scores pictures, --import-scores reads scores that are there: name one of them")
    values: dict[str, Any] = {"adapter": adapter, "eval.suites": names(suite)}
    values |= {"eval.limit": limit, "eval.images": images_per_prompt, "eval.split": split, "eval.batch": batch}
    values |= {"eval.options.t2i-compbench.categories": names(categories)}
    values |= {"eval.pictures": images and str(images), "eval.import_scores": import_scores and str(import_scores)}
    values |= {"eval.fail_under": bars(fail_under)}
    execute.perform(plan.resolve("eval", common, values, refs=[adapter] if adapter else []), common)


def names(text: str | None) -> list[str] | None:
    """``A, B`` as names."""
    return None if text is None else [name.strip() for name in text.split(",")]


def bars(texts: Sequence[str]) -> dict[str, float]:
    """``SUITE=X`` as numbers by suite.

    Raises:
        RecipeError: another form.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name or not isfinite(found[name]):
            raise RecipeError(f"--fail-under {text}: write it as SUITE=NUMBER, for example geneval=0.85")
    return found
