"""The commands of the six stages and the demo: their flags become a plan. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flowopd_cli.cli import completion
from flowopd_cli.cli.options import Common, Json, stage_command
from flowopd_cli.errors import FAULTY, RecipeError


def register(app: typer.Typer, *, panel: str) -> None:
    """Add the six commands to the command line, in the order of the pipeline."""
    for function in (teacher, coldstart, merge, distill, eval_, push):
        stage_command(app, function, panel=panel)


def _option(metavar: str, help: str, complete: Callable[[str], list[str]] | None = None, **settings: Any) -> Any:
    return typer.Option(metavar=metavar, help=help, autocompletion=complete, **settings)


def _argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, autocompletion=completion.runs)


def _execute(stage: str, common: Common, values: dict[str, Any], refs: list[str | None] | None = None) -> None:
    from flowopd_cli.cli.execute import execute
    from flowopd_cli.cli.plan.resolve import resolve

    execute(resolve(stage, common, values, refs=[ref for ref in refs or () if ref]), common)


REWARD = "The reward to learn; repeat it for a weighted mixture. A name of 'rewards ls', remote:URL, or module:attr."
ALGORITHM = "How the adapter learns: grpo, nft (DiffusionNFT) or awm; nft and awm draw without noise (kernel ode)."
PROMPTS = "Where the training prompts come from: a named source or a file; may be repeated."
TEACHER = "The teacher of a task, once for each task of the prompts"
PARTS = "The adapters to merge: runs, adapter folders or files, or hub:REPO@REVISION."
METHOD = "How updates are combined: linear, exact, ties, dare_linear, dare_ties or factor_average."
WEIGHTS = "One factor for each adapter; 1/K each by default."
NORMALIZE = "Divide by the sum of the weights; by default only ties does, by the sum of those that agree on a sign."
RANK = "The rank of the result; by default the largest. exact and factor_average take none."
INIT = "The adapter that the student starts from; the base by default."
KEEP = "'student': the frozen --init, a run of distill, teaches its own tasks that have no --teacher, on its prompts."
ANCHOR = "The adapter that the student is kept close to on every prompt; 'base' for the bare base."
BETA = "The weight of the KL divergence to the anchor in the loss; 0 turns the anchor off."
ESTIMATOR = "How the gradient of the KL to the teachers is taken: pathwise (closed form) or score (policy gradient)."
SCORED = "The adapter to score, the bare base by default. Several, one of which may be 'base', are compared at the end."
IMAGES = "Score the pictures in this folder instead of drawing any."
IMAGES_CSV = "A CSV that lists these pictures, in any layout, with their prompts: columns file, prompt, metadata."
SCORES = "Read the scores that official scorers wrote into this folder."
FAIL_UNDER = "Exit with code 3 if the suite's mean is below X; may be repeated, and given with --resume."
EVALUATIONS = "An evaluation whose scores go into the card; may be repeated."
JOBS = "Stages at the same time, each a process; 2 by default, 1 on a single core."
Text = str | None
Texts = list[str] | None
Number = int | None
Folder = Path | None


def teacher(
    common: Common,
    reward: Annotated[Texts, _option("NAME[=WEIGHT]", REWARD, completion.rewards)] = None,
    prompts: Annotated[Texts, _option("SOURCE", PROMPTS)] = None,
    algorithm: Annotated[Text, _option("NAME", ALGORITHM)] = None,
) -> None:
    """Train one adapter on one reward, or on a weighted mixture, by GRPO, DiffusionNFT or AWM.

    \b
    Example:
      flowopd teacher --reward geneval --out runs/t-geneval
      flowopd teacher --reward ocr --algorithm nft --set sampling.guidance=1
      flowopd teacher --reward ocr=0.7 --reward quality=0.3 --prompts toy:all --set train.iterations=200
    """
    from flowopd_cli.cli.plan.flags import prompt_spec, reward_spec

    rewards, sources = list(map(reward_spec, reward or ())), list(map(prompt_spec, prompts or ()))
    kernel = "ode" if algorithm in {"nft", "awm"} else None
    values = {"rewards": rewards, "prompts": sources, "algorithm": algorithm, "sampling.kernel": kernel}
    _execute("teacher", common, values)


def coldstart(
    common: Common, teacher: Annotated[Texts, _option("TASK=REF", f"{TEACHER}.", completion.teachers)] = None
) -> None:
    """Start a student by fine-tuning it on the teachers' best pictures.

    \b
    Example:
      flowopd coldstart --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr \\
          --teacher preference=runs/t-preference --out runs/init
    """
    from flowopd_cli.cli.plan.flags import teacher_specs

    teachers = teacher_specs(teacher or ())
    _execute("coldstart", common, {"teachers": teachers}, [spec["ref"] for spec in teachers.values()])


def merge(
    common: Common,
    runs: Annotated[Texts, _argument("[RUN]...", PARTS)] = None,
    method: Annotated[Text, _option("NAME", METHOD)] = None,
    weights: Annotated[Text, _option("W,W,...", WEIGHTS)] = None,
    rank: Annotated[Number, _option("R", RANK, min=1)] = None,
    normalize: Annotated[bool | None, typer.Option("--normalize/--no-normalize", help=NORMALIZE)] = None,
) -> None:
    """Merge several adapters of one base into one: the weighted sum of their LoRA updates (B A), not of their factors.
    For a mean, the weights must sum to 1, or be normalized.

    \b
    Example:
      flowopd merge runs/t-geneval runs/t-ocr runs/t-quality --weights 0.4,0.4,0.2 --out runs/init
    """
    from flowopd_cli.cli.plan.flags import numbers

    values = {"adapters": runs, "merge.method": method, "merge.rank": rank, "merge.normalize": normalize}
    values["merge.weights"] = numbers(weights, "--weights")
    _execute("merge", common, values, [*(runs or ())])


def distill(
    common: Common,
    init: Annotated[Text, _option("REF", INIT, completion.runs)] = None,
    teacher: Annotated[
        Texts,
        _option(
            "TASK=REF[,guidance=G][,base=BASE]",
            f"{TEACHER}, its guidance scale, and its own base.",
            completion.teachers,
        ),
    ] = None,
    anchor: Annotated[Text, _option("REF[,guidance=G]", ANCHOR, completion.runs)] = None,
    beta: Annotated[float | None, _option("B", BETA)] = None,
    estimator: Annotated[Text, _option("NAME", ESTIMATOR)] = None,
    prompts: Annotated[Texts, _option("SOURCE", PROMPTS)] = None,
    keep: Annotated[Text, _option("student", KEEP)] = None,
) -> None:
    """Distill several teachers into one student, on the student's own trajectories.

    \b
    Example:
      flowopd distill --init runs/init --teacher geneval=runs/t-geneval --teacher ocr=runs/t-ocr,guidance=4.5 \\
          --teacher preference=runs/t-preference --anchor runs/t-quality --beta 0.02 --out runs/student
      flowopd distill --init runs/student --teacher quality=runs/t-quality --prompts toy:quality --keep student
    """
    from flowopd_cli.cli.plan.flags import anchor_values, prompt_spec, teacher_specs

    routing = teacher_specs(teacher or ())
    values = {"adapter.init": init, "routing": routing, "opd.estimator": estimator, **anchor_values(anchor, beta)}
    values |= {"prompts": list(map(prompt_spec, prompts or ())), "keep": keep}
    shared = [spec["ref"] for spec in routing.values() if "base" not in spec]  # adapters of the student's base
    _execute("distill", common, values, [init, *shared, values.get("anchor.ref")])


def eval_(
    common: Common,
    suite: Annotated[Texts, _option("A,B", "The suites to run; may be repeated.", completion.suites)] = None,
    adapter: Annotated[Texts, _option("REF", SCORED, completion.runs)] = None,
    limit: Annotated[Number, _option("N", "Use only N prompts of each suite, evenly spread over it.", min=1)] = None,
    images_per_prompt: Annotated[
        Number, _option("N", "Pictures to draw for each prompt; the suite's own number by default.", min=1)
    ] = None,
    categories: Annotated[
        Texts, _option("A,B", "The categories of t2i-compbench; all by default; may be repeated.")
    ] = None,
    split: Annotated[Text, _option("NAME", "The prompts to use: test (the default) or validation.")] = None,
    guidance: Annotated[Text, _option("G,G", "The guidance, or several to compare; the best is marked.")] = None,
    batch: Annotated[Number, _option("N", "Pictures drawn at once; does not change results.", min=1)] = None,
    images: Annotated[Folder, _option("DIR", IMAGES)] = None,
    images_csv: Annotated[Folder, _option("FILE", IMAGES_CSV)] = None,
    import_scores: Annotated[Folder, _option("DIR", SCORES)] = None,
    fail_under: Annotated[Texts, _option("SUITE=X", FAIL_UNDER)] = None,
) -> None:
    """Score adapters, the bare base, or pictures drawn by another program on held-out prompts. Several adapters are
    scored in runs of their own below --out, with the base loaded once; --resume takes that folder.

    \b
    Example:
      flowopd eval --suite geneval,ocr --adapter runs/student --out runs/eval-student
      flowopd eval --suite geneval,ocr --adapter runs/student --split validation --guidance 1,1.5,2
      flowopd eval --suite geneval,ocr --adapter base --adapter runs/init --adapter runs/student --out runs/evals
      flowopd eval --suite geneval --images their/pictures --fail-under geneval=0.85
      flowopd eval --suite pickscore --images my/pictures --images-csv my/prompts.csv
    """
    from flowopd_cli.cli.plan.flags import names, numbers, thresholds

    if images is not None and import_scores is not None:
        raise RecipeError("--images scores pictures, --import-scores reads existing scores: name one of them")
    refs = adapter or []
    if len(refs) > 1 and (images is not None or import_scores is not None):
        raise RecipeError("--images and --import-scores are of one model: name one --adapter, or none")
    values = {
        "adapter": refs[0] if refs else None,
        "eval.suites": names(suite or ()),
        "eval.limit": limit,
        "eval.images": images_per_prompt,
        "eval.split": split,
        "eval.guidance": numbers(guidance, "--guidance"),
        "eval.batch": batch,
        "eval.options.t2i-compbench.categories": names(categories or ()),
        "eval.pictures": images and str(images),
        "eval.pictures_csv": images_csv and str(images_csv),
        "eval.import_scores": import_scores and str(import_scores),
        "eval.fail_under": thresholds(fail_under or ()),
    }
    from flowopd_cli.cli.several import execute_each, is_folder_of_evaluations, resolve_each

    if len(refs) > 1 or is_folder_of_evaluations(common.resume):
        execute_each(resolve_each(common, values, refs), common)
    else:
        _execute("eval", common, values, [*refs])


def push(
    common: Common,
    run: Annotated[Text, _argument("[RUN]", "The run to publish.")] = None,
    repo: Annotated[Text, _option("OWNER/NAME", "The Hub repository to upload to.")] = None,
    revision: Annotated[Text, _option("BRANCH", "The branch to upload to; created if it does not exist.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may see the repository; unchanged by default.")
    ] = None,
    message: Annotated[Text, _option("TEXT", "The message of the commit.")] = None,
    eval: Annotated[Texts, _option("RUN", EVALUATIONS, completion.runs)] = None,
) -> None:
    """Publish a run on the Hub with a model card. The adapter is loaded into plain diffusers and PEFT to check it,
    before the upload and again from the Hub. With --dry-run, write the folder and upload nothing.

    \b
    Example:
      flowopd push runs/student --repo me/my-model --private
    """
    values = {"run": run, "push.repo": repo, "push.revision": revision, "push.private": private}
    values |= {"push.message": message, "push.evaluations": eval, "push.dry_run": common.dry_run or None}
    _execute("push", common, values, [run])


def demo(
    out: Annotated[Folder, _option("DIR", "The folder to write; a fresh one by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train for a few minutes only, with smaller gains.")] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train on all rewards, at once and in turn, at the student's cost.")
    ] = False,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation", help="Also distill without the anchor and from guided teachers, and evaluate with guidance."
        ),
    ] = False,
    seed: Annotated[int, _option("N", "The seed of all random numbers.")] = 0,
    jobs: Annotated[Number, _option("N", JOBS, min=1)] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")] = False,
) -> None:
    """Run the whole pipeline on the toy base: teachers, merge, distillation, a table and a report. To resume an
    interrupted demo, repeat the command with the same --out: finished stages are not repeated. Exits with 3 if a stage
    failed.

    \b
    Example:
      flowopd demo --quick --out demo
    """
    from json import dumps

    from flowopd_cli.cli.console import Console
    from flowopd_cli.cli.demo import Demo
    from flowopd_cli.cli.study.pool import failure
    from flowopd_cli.runs.layout import fresh_path

    console, chain = Console(quiet=quiet), Demo(out or fresh_path("demo"), seed, quick, baseline, ablation, jobs)
    result = chain.run(console)
    console.result(dumps(result) if json else result["report"])
    if result["faults"]:
        typer.echo(failure(result["faults"], chain.out), err=True)
        raise typer.Exit(FAULTY)
