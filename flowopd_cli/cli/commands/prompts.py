"""``flowopd prompts``: fetch public prompt files, make training prompts."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from flowopd_cli.cli.options import Json

HELP = """Fetch public prompt files, and make training prompts.

\b
Example:
  flowopd prompts ls
  flowopd prompts fetch geneval
"""
app = typer.Typer(help=HELP, no_args_is_help=True)
_WORDING = "The plurals of geneval prompts: geneval (as in the benchmark, the default) or english."

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that 'prompts ls' prints.")]
Copy = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Also copy the files to this folder.")]
Local = Annotated[
    Path | None, typer.Option("--from", metavar="PATH", help="Take the files from here, not from the network.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")]
Kind = Annotated[str, typer.Argument(metavar="NAME", help="The kind of prompts: geneval or ocr.")]
Count = Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many prompts to make.")]
Seed = Annotated[int, typer.Option(metavar="N", help="The seed of the prompts.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="The .jsonl file to write; stdout by default.")]
Wording = Annotated[str | None, typer.Option(metavar="NAME", help=_WORDING)]


@app.command("ls")
def ls() -> None:
    """List the public prompt files, and their repositories at pinned commits.

    \b
    Example:
      flowopd prompts ls
    """
    from flowopd_cli.prompts.public import SOURCES

    for source in SOURCES.values():
        print(f"{source.name:<17}{source.repo}@{source.revision[:12]}  {source.what}")


@app.command("fetch")
def fetch(name: Name, out: Copy = None, local: Local = None, json: Json = False, quiet: Quiet = False) -> None:
    """Fetch a public set of prompts at its pinned revision, check its digest, and print its path.

    \b
    Example:
      flowopd prompts fetch geneval
      flowopd prompts fetch t2i-compbench --out prompts/compbench
      flowopd prompts fetch ocr --from ~/Flow-OPD
    """
    from flowopd_cli.prompts import public

    def warn(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    files = public.fetch(name, local=local, out=out, warn=warn)
    result = {"name": name, "path": str(files.path), "verified": files.verified, "sha256": dict(files.digests)}
    print(jsonlib.dumps(result) if json else files.path)


@app.command("make")
def make(name: Kind, count: Count = 50_000, seed: Seed = 0, out: Out = None, wording: Wording = None) -> None:
    """Generate training prompts as JSON lines, without the evaluation prompts. The same seed gives the same prompts.

    \b
    Example:
      flowopd prompts make geneval --n 50000 --seed 0 --out prompts/geneval-train.jsonl
      flowopd teacher --reward geneval --prompts prompts/geneval-train.jsonl --base my-model
    """
    from flowopd_cli.errors import PromptError
    from flowopd_cli.prompts import make_geneval, make_ocr
    from flowopd_cli.system.files import atomic_write

    if out is not None and out.suffix != ".jsonl":
        raise PromptError(f"--out {out}: give it the suffix .jsonl, which tells --prompts the format")
    if name not in {"geneval", "ocr"} or (name == "ocr" and wording is not None):
        raise PromptError(f"prompts make {name}: known are geneval, and ocr without --wording")
    if wording not in (None, *make_geneval.WORDINGS):
        raise PromptError(f"--wording {wording}: known are {', '.join(make_geneval.WORDINGS)}")
    is_ocr = name == "ocr"
    rows = make_ocr.make(count, seed) if is_ocr else make_geneval.make(count, seed, wording=wording or "geneval")
    text = "".join(jsonlib.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        print(text, end="")
        return
    atomic_write(out, text)
    print(out)
