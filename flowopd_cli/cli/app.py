"""The command line: its commands in their panels, and errors as exit codes. Nothing heavy is imported here."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from flowopd_cli import __version__
from flowopd_cli.cli.commands import bench, doctor, prompts, recipes, report, rewards, runs, stages, study, vote, watch
from flowopd_cli.errors import FlowOPDError, RecipeError, one_line
from flowopd_cli.system import streams, threads

HELP = """Post-train flow-matching text-to-image models: teachers, merging, multi-teacher on-policy distillation.

\b
Example, on the toy base, two cores, no download:
  flowopd teacher --reward geneval --out runs/t-geneval
  flowopd teacher --reward ocr --out runs/t-ocr
  flowopd teacher --reward preference --out runs/t-preference
  flowopd teacher --reward quality --out runs/t-quality
  flowopd merge runs/t-geneval runs/t-ocr runs/t-preference runs/t-quality --out runs/init
  flowopd distill --init runs/init --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr \\
      --teacher preference=runs/t-preference --anchor runs/t-quality --out runs/student
  flowopd eval --adapter runs/student

\b
stdout carries only the result. Exit codes:
  0 done; 1 unexpected error; 2 invalid command line, recipe or input;
  3 an evaluation below its threshold (--fail-under), a check that found a fault, or a failed run of a study or demo;
  4 no space or no permission to write; 5 a training that diverged;
  130 stopped by Ctrl-C; 143 stopped by SIGTERM; 141 the reader of stdout has gone.
"""
STAGES, RUNS = "Stages, in the order of the pipeline", "Runs and results"
MATERIAL, MACHINE = "Recipes, rewards and prompts", "This machine"


class _Panels(TyperGroup):
    """Lists the commands of ``--help`` by panel, in plain text, because rich takes 0.3 s to import."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each panel as a section."""
        for title in (STAGES, RUNS, MATERIAL, MACHINE):
            panel = {n: c for n, c in self.commands.items() if getattr(c, "rich_help_panel", None) == title}
            with formatter.section(title):
                formatter.write_dl([(name, _first_sentence(command.help or "")) for name, command in panel.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run a command. A broken pipe or connection is an error, which typer would hide."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise FlowOPDError(_os_error(error)) from error


app = typer.Typer(cls=_Panels, help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
stages.register(app, panel=STAGES)
app.add_typer(runs.app, name="runs", rich_help_panel=RUNS)
app.command("report", rich_help_panel=RUNS)(report.report)
app.command("watch", rich_help_panel=RUNS)(watch.watch)
app.command("vote", rich_help_panel=RUNS)(vote.vote)
app.command("study", rich_help_panel=RUNS)(study.study)
app.add_typer(recipes.app, name="recipes", rich_help_panel=MATERIAL)
app.add_typer(rewards.app, name="rewards", rich_help_panel=MATERIAL)
app.add_typer(prompts.app, name="prompts", rich_help_panel=MATERIAL)
app.command("demo", rich_help_panel=MACHINE)(stages.demo)
app.command("doctor", rich_help_panel=MACHINE)(doctor.doctor)
app.command("bench", rich_help_panel=MACHINE)(bench.bench)


class _Command(TyperCommand):
    """Refuses a repeated option of one value, of which click takes the last, and notes two ``--set`` of one field."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser of the command's options."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            if not ctx.resilient_parsing:  # as completion does
                _check_repeats(values, order)
            return values, rest, order

        parser.parse_args = parse_once
        return parser


def _check_repeats(values: Mapping[str, Any], order: Sequence[Any]) -> None:
    """Refuse repeated options, from the values by parameter and the parameters in the order of the command line.

    A later ``--set`` overrides an earlier one, so that a script can append to a command; that is a note.
    """
    from flowopd_cli.cli import launch

    for option, count in Counter(order).items():
        is_switch = getattr(option, "is_flag", False) and not option.secondary_opts
        if count > 1 and not getattr(option, "multiple", False) and not is_switch:
            raise RecipeError(f"{option.opts[0]}: is given {count} times and takes one value")
        if "--set" in option.opts:
            fields = Counter(text.partition("=")[0] for text in values[option.name])
            for field in (field for field, number in fields.items() if number > 1):
                if launch.is_main() and not values.get("quiet"):
                    print(f"note: --set {field}: is given {fields[field]} times, the last counts", file=sys.stderr)


for _app in (app, runs.app, recipes.app, rewards.app, prompts.app):
    for _registered in _app.registered_commands:
        _registered.cls = _Command


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."


def _print_version(value: bool) -> None:
    if value:
        print(f"flowopd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Handle the options that precede a command."""


def _os_error(error: OSError) -> str:
    reason = error.strerror or f"{type(error).__name__}: {error}"
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _expand_home(argument: str) -> str:
    """A shell expands ``~/`` only at the start of a word, not in ``--out=~/run`` or ``TASK=~/run,guidance=4``."""
    from flowopd_cli.system.paths import expand_home

    return "".join(map(expand_home, re.split("([=,])", argument)))


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    streams.secure()
    try:
        code = run()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threads.end_process(code)


def run() -> int:
    """Run the command line; returns its exit code. A user's mistake prints one line on stderr."""
    from flowopd_cli.cli import launch

    code: Any = 0
    shared = True  # whether every process of the run ends with the error
    try:
        launch.REMARKS[:] = launch.adopt(os.environ)
        app(list(map(_expand_home, sys.argv[1:])), prog_name="flowopd")
    except SystemExit as stop:
        code = stop.code
    except FlowOPDError as error:
        code, shared = error.exit_code, error.shared
        if launch.is_main() or not shared:
            _print_error(error)
    except OSError as error:
        code, shared = FlowOPDError.exit_code, False
        _print_error(_os_error(error))
    return launch.exit_code(code if isinstance(code, int) else int(bool(code)), shared=shared)


def _print_error(error: object) -> None:
    from flowopd_cli.system.distributed import GROUP

    place = f"process {GROUP.rank} of {GROUP.size}: " if GROUP.rank else ""
    print(f"flowopd: error: {place}{one_line(error)}", file=sys.stderr)
