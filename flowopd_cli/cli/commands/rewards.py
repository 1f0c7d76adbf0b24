"""``flowopd rewards``: list rewards, score pictures, and serve a reward to other processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from json import dumps
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Json
from flowopd_cli.errors import RewardError
from flowopd_cli.system.text import columns

HELP = """The rewards that teachers can be trained on.

\b
Example:
  flowopd rewards ls
  flowopd rewards serve pickscore --port 18085
"""
app = typer.Typer(help=HELP, no_args_is_help=True)

WIDEST = 60  # characters of a default
_NAME = "A name that 'rewards ls' prints, your own code as module:attr, or remote:URL."
_SERVED = "A reward, or a worker script (FILE.py), to serve."

Pictures = Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="The picture files to score.")]
Name = Annotated[str, typer.Option("--reward", metavar="NAME", help=_NAME, autocompletion=completion.rewards)]
Texts = Annotated[
    list[str], typer.Option("--prompt", metavar="TEXT", help="The prompt of the pictures: one for all, or one each.")
]
File = Annotated[
    str | None, typer.Option(metavar="FILE", help="A file of prompts with metadata: one for each picture.")
]
Task = Annotated[str | None, typer.Option(metavar="NAME", help="The task of the prompts.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="OPTION=VALUE", help="Set an option of the reward; may be repeated.")
]
Listed = Annotated[str | None, typer.Argument(metavar="[NAME]", help=_NAME, autocompletion=completion.rewards)]
Served = Annotated[str, typer.Argument(metavar="NAME", help=_SERVED, autocompletion=completion.rewards)]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")]
Port = Annotated[
    int | None, typer.Option(metavar="N", min=0, max=65535, help="18085 (deqa: 18086, dpg-bench: 18087); 0: any free.")
]
TokenEnv = Annotated[str, typer.Option(metavar="NAME", help="The environment variable that holds the bearer token.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds the token instead.")]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum pictures in a batch of joined requests.")]
Linger = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long a batch waits for more requests.")]
Queue = Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long a request may wait in the queue.")]
Pixels = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum pixels in one picture.")]
Bytes = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum bytes in one request.")]


@app.command("ls")
def ls(name: Listed = None, json: Json = False) -> None:
    """List every reward: whether its packages are installed, whether its scores equal the reference implementation's,
    its range, the extra that installs it, the license of its weights. With NAME, list the options of that reward.

    \b
    Example:
      flowopd rewards ls
      flowopd rewards ls ocr
      flowopd rewards ls --json
    """
    with redirect_stdout(sys.stderr):
        from flowopd_cli.rewards import catalog

        rows = catalog.listing() if name is None else catalog.options(name)
    if name is not None:
        table = [("OPTION", "TYPE", "DEFAULT"), *((row["option"], row["type"], _default(row)) for row in rows)]
        print(dumps(rows) if json else columns(table))
        return
    for row in rows:
        row |= {end: row[end] if isfinite(row[end]) else None for end in ("low", "high") if end in row}
    head = ("NAME", "INSTALLED", "EXACT", "RANGE", "EXTRA", "LICENCE")
    print(dumps(rows) if json else columns([head, *map(_cells, rows)]))


@app.command("score")
def score(
    pictures: Pictures,
    reward: Name,
    prompt: Texts = [],  # noqa: B006
    prompts: File = None,
    task: Task = None,
    settings: Settings = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Score picture files.

    \b
    Example:
      flowopd rewards score --reward ocr --prompt 'a sign that says "OPEN"' a.png b.png
      flowopd rewards score --reward geneval --prompts prompts.jsonl a.png b.png --json
    """
    from flowopd_cli.cli.plan.flags import reward_options

    options = reward_options(settings)
    with redirect_stdout(sys.stderr):
        from flowopd_cli.rewards import catalog

        pairs = catalog.paired(prompt, prompts, task, len(pictures))
        rows = catalog.score(reward, options, pictures, pairs)
    if not any(row["valid"] for row in rows):
        raise RewardError(f"reward {reward}: no picture could be scored: {_reason(rows[0])}")
    print(dumps(rows) if json else columns(_score_table(rows)))


@app.command("serve")
def serve(
    reward: Served,
    host: Host = "127.0.0.1",
    port: Port = None,
    token_env: TokenEnv = "FLOWOPD_REWARD_TOKEN",
    token_file: TokenFile = None,
    settings: Settings = [],  # noqa: B006
    max_batch: Batch = 32,
    linger: Linger = 0.01,
    queue_seconds: Queue = 60.0,
    max_pixels: Pixels = 2048 * 2048,
    max_bytes: Bytes = 64 << 20,
) -> None:
    """Serve a reward to other processes and machines until stopped. Prints the URL when ready.

    A reward whose packages conflict with flowopd's runs in its own environment, which uv (or venv and pip) creates on
    first use. To listen beyond this machine, it needs a token, which clients read from the same variable.

    \b
    Example:
      flowopd rewards serve deqa
      FLOWOPD_REWARD_TOKEN=... flowopd rewards serve pickscore --host 0.0.0.0 --port 18085 --set device=cuda
      flowopd teacher --reward remote:http://127.0.0.1:18085 --out runs/t-remote
    """
    flags = {name: value for name, value in locals().items() if name not in {"reward", "settings"}}
    from flowopd_cli.cli.plan.flags import reward_options

    options = reward_options(settings)
    with redirect_stdout(sys.stderr):
        from flowopd_cli.rewards.remote import settings as defaults
        from flowopd_cli.rewards.remote import worker
    if port is None:
        flags["port"] = defaults.PORTS.get(reward, defaults.PORT)
    worker.serve(reward, options, flags)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "low" not in row:
        return (row["name"], row["installed"], "?", "?", "", "")
    low, high = ("" if row[end] is None else f"{row[end]:g}" for end in ("low", "high"))
    exact = {True: "exact", False: "approximate"}.get(row["exact"], "?")
    return (row["name"], row["installed"], exact, f"{low}..{high}", row["extra"] or "", row["license"])


def _default(row: Mapping[str, Any]) -> str:
    text = dumps(row["default"], ensure_ascii=False)
    return "required" if row["required"] else text if len(text) <= WIDEST else f"{text[:WIDEST]}..."


def _score_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    table = [["PICTURE", "TOTAL", *names]]
    for row in rows:
        values = [row["total"], *(row["scores"].get(name) for name in names)]
        figures = ["-" if value is None else f"{value:.4f}" for value in values]
        table.append([row["image"], *(figures if row["valid"] else [f"invalid: {_reason(row)}", *figures[1:]])])
    return table


def _reason(row: Mapping[str, Any]) -> str:
    return str(row["details"].get("error", "the reward gives no reason"))
