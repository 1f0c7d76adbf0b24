"""The command line: each command turns its flags into a recipe and hands it over. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flowopd_cli import __version__
from flowopd_cli.cli import completion
from flowopd_cli.cli.commands import (
    bench as cli_bench,
)
from flowopd_cli.cli.commands import (
    doctor as cli_doctor,
)
from flowopd_cli.cli.commands import (
    eval as cli_eval,
)
from flowopd_cli.cli.commands import (
    prompts as cli_prompts,
)
from flowopd_cli.cli.commands import (
    recipes as cli_recipes,
)
from flowopd_cli.cli.commands import (
    report as cli_report,
)
from flowopd_cli.cli.commands import (
    rewards as cli_rewards,
)
from flowopd_cli.cli.commands import (
    runs as cli_runs,
)
from flowopd_cli.cli.commands import (
    watch as cli_watch,
)
from flowopd_cli.cli.options import Common, stage_command
from flowopd_cli.errors import FlowOPDError, one_line

HELP = """Post-train flow-matching text-to-image models: teachers, merging, multi-teacher on-policy distillation.

\b
Example, on the toy base, two cores, no download:
  flowopd teacher --reward geneval --out runs/t-geneval
  flowopd teacher --reward ocr --out runs/t-ocr
  flowopd teacher --reward quality --out runs/t-quality
  flowopd merge runs/t-geneval runs/t-ocr runs/t-quality --out runs/init
  flowopd distill --init runs/init --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr \\
      --anchor runs/t-quality --out runs/student
  flowopd eval --adapter runs/student

stdout carries only the result. Exit codes: 0 done, 1 unexpected error, 2 a mistake in what was asked,
3 an evaluation under its bar (--fail-under) or a fault that was looked for, 4 no space or no leave to write,
5 a training that no longer learns, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("bench")(cli_bench.bench)
app.command("report")(cli_report.report)
app.command("watch")(cli_watch.watch)
app.command("doctor")(cli_doctor.doctor)
app.add_typer(cli_rewards.app, name="rewards")
app.add_typer(cli_prompts.app, name="prompts")
app.add_typer(cli_runs.app, name="runs")
app.add_typer(cli_recipes.app, name="recipes")


def _completed(complete: Callable[[str], list[str]], flag: str, metavar: str, help: str) -> Any:
    """An option, or an argument where there is no flag, that the shell completes."""
    if not flag:
        return typer.Argument(metavar=metavar, help=help, autocompletion=complete)
    return typer.Option(flag, metavar=metavar, help=help, autocompletion=complete)


Rewards = Annotated[
    list[str],
    _completed(completion.rewards, "--reward", "NAME[=WEIGHT]", "A reward; repeat for a mixture."),
]
Teachers = Annotated[
    list[str], _completed(completion.teachers, "--teacher", "TASK=REF", "A task and its teacher; repeatable.")
]
GuidedTeachers = Annotated[
    list[str],
    _completed(completion.teachers, "--teacher", "TASK=REF[,guidance=G]", "A task and its teacher; repeatable."),
]
Init = Annotated[str | None, _completed(completion.runs, "--init", "REF", "The adapter to start from.")]
Anchor = Annotated[
    str | None, _completed(completion.runs, "--anchor", "REF", "What every prompt is pulled towards, or base.")
]
Runs = Annotated[
    list[str] | None, _completed(completion.runs, "", "[RUN]...", "Runs, adapter folders or hub:<repo>@<revision>.")
]
Published = Annotated[str | None, _completed(completion.runs, "", "[RUN]", "The run to publish.")]


def _stage(stage: str, common: Common, values: dict[str, Any], refs: list[str] | None = None) -> None:
    """Resolve the recipe of a command and perform it; imports wait until a command is really run."""
    from flowopd_cli.cli import execute
    from flowopd_cli.cli.plan import resolve as plan

    execute.perform(plan.resolve(stage, common, values, refs=refs or []), common)


@stage_command(app)
def teacher(
    common: Common,
    reward: Rewards = [],  # noqa: B006
    prompts: Annotated[
        list[str], typer.Option("--prompts", metavar="SOURCE", help="A prompt source or file; repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Train one adapter on one reward, or on a weighted mixture, with GRPO.

    \b
    Example:
      flowopd teacher --reward geneval --out runs/t-geneval
      flowopd teacher --reward ocr=0.7 --reward quality=0.3 --prompts toy:all --set train.iterations=200
    """
    from flowopd_cli.cli.plan import resolve as plan

    rewards = [plan.reward_spec(text) for text in reward]
    sources = [plan.prompt_spec(text) for text in prompts]
    _stage("teacher", common, {"rewards": rewards, "prompts": sources})


@stage_command(app)
def coldstart(
    common: Common,
    teacher: Teachers = [],  # noqa: B006
) -> None:
    """Start a student by fine-tuning it on the teachers' own best pictures.

    \b
    Example:
      flowopd coldstart --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr --out runs/init
    """
    from flowopd_cli.cli.plan import resolve as plan

    teachers = plan.teacher_specs(teacher)
    _stage("coldstart", common, {"teachers": teachers}, [spec["ref"] for spec in teachers.values()])


@stage_command(app)
def merge(
    common: Common,
    runs: Runs = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME", help="linear, exact, ties, dare_linear, dare_ties or factor_average."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W,...", help="One for each run, used as given; 1/K each if omitted."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", min=1, help="Rank of the result; not for exact, factor_average."),
    ] = None,
) -> None:
    """Merge several adapters of one base into one: the weighted sum of their products, not of their factors. The
    weights are not normalized: give them a sum of 1 for a mean.

    \b
    Example:
      flowopd merge runs/t-geneval runs/t-ocr runs/t-quality --weights 0.4,0.4,0.2 --out runs/init
    """
    from flowopd_cli.cli.plan import resolve as plan

    values = {"adapters": runs, "merge.method": method, "merge.rank": rank}
    values["merge.weights"] = plan.numbers(weights, "--weights")
    _stage("merge", common, values, runs)


@stage_command(app)
def distill(
    common: Common,
    init: Init = None,
    teacher: GuidedTeachers = [],  # noqa: B006
    anchor: Anchor = None,
    beta: Annotated[float | None, typer.Option("--beta", metavar="B", help="How strongly; 0 turns it off.")] = None,
    estimator: Annotated[
        str | None, typer.Option("--estimator", metavar="NAME", help="pathwise (closed form) or score.")
    ] = None,
) -> None:
    """Distill several teachers into one student, on the student's own trajectories.

    \b
    Example:
      flowopd distill --init runs/init --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr,guidance=4.5 \\
          --anchor runs/t-quality --beta 0.02 --out runs/student
    """
    from flowopd_cli.cli.plan import resolve as plan

    routing = plan.teacher_specs(teacher)
    values = {"adapter.init": init, "routing": routing, "opd.estimator": estimator, **plan.anchor_values(anchor, beta)}
    refs = [init, *(spec["ref"] for spec in routing.values()), values.get("anchor.ref")]
    _stage("distill", common, values, [ref for ref in refs if ref])


stage_command(app)(cli_eval.eval_)


@stage_command(app)
def push(
    common: Common,
    run: Published = None,
    repo: Annotated[str | None, typer.Option("--repo", metavar="OWNER/NAME", help="The Hub repository.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="A branch of it, made where it is missing.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who sees the repository; as it is if omitted.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = None,
    evaluations: Annotated[
        list[str] | None, typer.Option("--eval", metavar="RUN", help="An eval run for the card; may be repeated.")
    ] = None,
) -> None:
    """Publish a run on the Hub with its card: checked by loading it into plain diffusers and PEFT before the upload
    and, from the Hub, after it. With --dry-run it writes the folder and uploads nothing.

    \b
    Example:
      flowopd push runs/student --repo me/my-model --private
    """
    values = {"run": run, "push.repo": repo, "push.revision": revision, "push.private": private}
    values |= {"push.message": message, "push.evaluations": evaluations, "push.dry_run": common.dry_run or None}
    _stage("push", common, values, [run] if run else [])


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; fresh if omitted.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes, smaller gains.")] = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train the GRPO mixture.")] = False,
    ablation: Annotated[bool, typer.Option("--ablation", help="Also distill without the anchor.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Run the whole pipeline on the toy base: three teachers, merge, distillation, a table and a report. The same
    command with the --out of an interrupted demo goes on with it: finished stages are kept.

    \b
    Example:
      flowopd demo --quick --out demo
    """
    from json import dumps

    from flowopd_cli.cli import execute
    from flowopd_cli.cli.console import Console
    from flowopd_cli.cli.demo import Demo
    from flowopd_cli.runs.layout import fresh_path

    console = Console(quiet=quiet)
    result = execute.run_demo(Demo(out or fresh_path("demo"), seed, quick, baseline, ablation), console)
    console.result(dumps(result) if json else result["report"])


def _version(asked: bool) -> None:
    if asked:
        print(f"flowopd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Take the options that stand before a command."""


def _said(error: OSError) -> str:
    """What the system refused, and over which file."""
    reason = error.strerror or f"{type(error).__name__}: {error}"
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def main() -> None:
    """Run the command line: a user's mistake is one line on stderr; the exit code says what happened."""
    from flowopd_cli.cli import launch

    code: Any = 1
    told = True
    launch.announce()
    try:
        app(prog_name="flowopd")
    except SystemExit as stop:
        code = stop.code
    except FlowOPDError as error:
        code, told = error.exit_code, error.told
        if launch.is_main():
            print(f"flowopd: error: {one_line(error)}", file=sys.stderr)
    except OSError as error:
        code, told = FlowOPDError.exit_code, False
        print(f"flowopd: error: {one_line(_said(error))}", file=sys.stderr)
    finally:
        code = code if isinstance(code, int) else 1 if code else 0
        launch.record_exit(code)
    sys.exit(launch.final_code(code, told=told))
