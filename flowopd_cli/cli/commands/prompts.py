"""``flowopd prompts``: the public prompt files, and training prompts made here. Nothing heavy is imported."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Fetch public prompt files, and make training prompts.

\b
Example:
  flowopd prompts ls
  flowopd prompts fetch geneval
"""
app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command("ls")
def ls() -> None:
    """List the public prompt files, their repositories, and whether their sha256 is pinned.

    \b
    Example:
      flowopd prompts ls
    """
    from flowopd_cli.prompts.public import SOURCES

    for source in SOURCES.values():
        pinned = "sha256 pinned" if source.verified else "no sha256 known"
        print(f"{source.name:<17}{pinned:<17}{source.repo}@{source.revision[:12]}  {source.what}")


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that 'prompts ls' prints.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also copy the files to this folder.")
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Take the files from here, not from the network."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print path and sha256 as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")] = False,
) -> None:
    """Fetch a public set of prompts at its pinned revision, check its sha256, and print its path.

    \b
    Example:
      flowopd prompts fetch geneval
      flowopd prompts fetch t2i-compbench --out prompts/compbench
      flowopd prompts fetch ocr --from ~/Flow-OPD
    """
    from flowopd_cli.prompts import public

    def tell(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    files = public.fetch(name, local=local, out=out, adopt=True, warn=tell)
    if json:
        shown = {"name": name, "path": str(files.path), "verified": files.verified, "sha256": dict(files.digests)}
        print(jsonlib.dumps(shown))
    else:
        print(files.path)


@app.command("make")
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The kind of prompts: geneval or ocr.")],
    count: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many prompts to make.")] = 50_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The seed of the prompts.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The .jsonl file to write; stdout by default.")
    ] = None,
    wording: Annotated[
        str | None,
        typer.Option(
            "--wording",
            metavar="NAME",
            help="The plurals of geneval prompts: geneval (as in the benchmark, the default) or english.",
        ),
    ] = None,
) -> None:
    """Make training prompts as JSON lines, the evaluation prompts left out; the same for the same seed.

    \b
    Example:
      flowopd prompts make geneval --n 50000 --seed 0 --out prompts/geneval-train.jsonl
      flowopd teacher --reward geneval --prompts prompts/geneval-train.jsonl --base my-model
    """
    from flowopd_cli.errors import PromptError
    from flowopd_cli.system.files import atomic_write

    if out is not None and out.suffix != ".jsonl":
        raise PromptError(f"--out {out}: give it the suffix .jsonl, by which --prompts knows its format")
    lines = (jsonlib.dumps(row, ensure_ascii=False) for row in _rows(name, count, seed, wording))
    if out is None:
        for line in lines:
            print(line)
        return
    try:
        atomic_write(out, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise PromptError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    print(out)


def _rows(name: str, count: int, seed: int, wording: str | None) -> Iterator[dict[str, Any]]:
    from flowopd_cli.errors import PromptError
    from flowopd_cli.prompts import make_geneval, make_ocr

    if name == "ocr" and wording is None:
        return make_ocr.make(count, seed)
    if name != "geneval":
        raise PromptError(f"prompts make {name}: known are geneval, and ocr without --wording")
    if wording not in (None, *make_geneval.WORDINGS):
        raise PromptError(f"--wording {wording}: known are {', '.join(make_geneval.WORDINGS)}")
    return make_geneval.make(count, seed, wording=wording or "geneval")
