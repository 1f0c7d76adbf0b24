"""``flowopd bench``: its flags, turned into the recipes to measure. Nothing heavy is imported here."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd_cli.cli.options import Json
from flowopd_cli.errors import RecipeError
from flowopd_cli.system.files import atomic_write

if TYPE_CHECKING:  # half of the time that --help takes
    from flowopd_cli import recipe as recipes

TOY = "toy"
TOY_RECIPES = {"distill": "toy/distill", "teacher": "toy/teacher-geneval-grpo"}
TEACHERS = 2
GUIDANCE = 4.5
BATCH = 4


def _option(flag: str, metavar: str, help: str, **more: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, **more)


RecipeName = Annotated[
    str | None, _option("--recipe", "NAME|FILE", "A recipe of distill or teacher; its adapters need not exist.")
]
Base = Annotated[str | None, _option("--base", "BASE", "'toy', a diffusers folder or a Hub id.")]
ShapeName = Annotated[
    str | None, _option("--shape", "NAME", "Random weights of a named shape, such as small or sd3.5-medium.")
]
Resolution = Annotated[int | None, _option("--resolution", "N", "Side of a picture in pixels.", min=1)]
Steps = Annotated[int | None, _option("--steps", "N", "Sampling steps.", min=2)]
Rank = Annotated[int | None, _option("--rank", "R", "Rank of every adapter.", min=1)]
Teachers = Annotated[int | None, _option("--teachers", "N", "Teachers, each an adapter; 2 without a recipe.", min=1)]
Anchor = Annotated[bool | None, typer.Option("--anchor/--no-anchor", help="With or without the anchor.")]
Batch = Annotated[int | None, _option("--batch", "N", "Pictures per iteration; 4 without a recipe.", min=1)]
Guidance = Annotated[
    float | None, _option("--guidance", "G", "Guidance of the student; at 1 the empty prompt is not computed.", min=0)
]
TeacherGuidance = Annotated[
    float | None, _option("--teacher-guidance", "G", "Guidance of the teachers and the anchor.", min=0)
]
Algorithms = Annotated[
    list[str], _option("--algorithm", "NAME", "Measure a teacher by grpo, nft or awm; repeat it to compare.")
]
Dtype = Annotated[str | None, _option("--dtype", "NAME", "auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, _option("--device", "NAME", "auto, cpu, cuda or cuda:N.")]
Repeats = Annotated[int, _option("--repeats", "N", "Samples of each variant.", min=1)]
Overrides = Annotated[list[str], _option("--set", "A.B=C", "Override one field of the recipe; may be repeated.")]
Out = Annotated[Path | None, _option("--out", "FILE", "Also write the measurements to a JSON file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only errors to stderr.")]


def bench(
    recipe: RecipeName = None,
    base: Base = None,
    shape: ShapeName = None,
    resolution: Resolution = None,
    steps: Steps = None,
    rank: Rank = None,
    teachers: Teachers = None,
    anchor: Anchor = None,
    batch: Batch = None,
    guidance: Guidance = None,
    teacher_guidance: TeacherGuidance = None,
    algorithms: Algorithms = [],  # noqa: B006
    dtype: Dtype = None,
    device: Device = None,
    repeats: Repeats = 5,
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a distillation step on this machine: in total, its required passes alone, and its parts.

    With --algorithm, or with a recipe of teacher, time an iteration of a teacher, its rewards left out.

    The adapters are random, with the recipe's rank, so no trained teacher is needed. With --shape the base is random
    too and nothing is downloaded.

    \b
    Example:
      flowopd bench --shape small
      flowopd bench --shape sd3.5-medium --resolution 512 --batch 8 --json
      flowopd bench --recipe toy/distill
      flowopd bench --shape small --algorithm grpo --algorithm nft
    """
    from flowopd_cli.cli.plan.settings import check_guidance

    values: dict[str, Any] = {"model.resolution": resolution, "sampling.steps": steps, "sampling.guidance": guidance}
    values |= {"adapter.rank": rank, "adapter.alpha": rank, "model.dtype": dtype, "model.device": device}
    if recipe and base:
        from flowopd_cli.models.files.families import model_fields

        values |= {f"model.{key}": value for key, value in model_fields(base).items()}
    tree, where = starting_point(recipe, base, shape, "teacher" if algorithms else "distill")
    roles = Roles(teachers, anchor, teacher_guidance)
    if algorithms or tree.get("stage") == "teacher":
        if roles != Roles(None, None, None):
            raise RecipeError("--teachers, --anchor and --teacher-guidance are for distillation: leave them out")
        compared = algorithm_recipes(tree, where, values, algorithms, overrides)
        show(compare(compared, batch or BATCH, repeats, quiet), out, as_json, quiet)
        return
    distill = distillation(tree, where, values, roles, overrides)
    check_guidance(distill)
    show(measure(distill, batch, repeats, recipe is not None and teachers is None, quiet), out, as_json, quiet)


@dataclass(frozen=True)
class Roles:
    """The number of teachers, whether there is an anchor, and the guidance of both; ``None`` keeps the recipe's."""

    teachers: int | None
    anchor: bool | None
    guidance: float | None


def measure(recipe: recipes.DistillRecipe, batch: int | None, repeats: int, named: bool, quiet: bool) -> dict[str, Any]:
    """The figures; heavy modules are imported here."""
    from flowopd_cli.cli.console import Console

    with redirect_stdout(sys.stderr):
        from flowopd_cli.stages.bench.measure import Request, run

        return run(Request(recipe, batch or (None if named else BATCH), repeats, named), Console(quiet=quiet))


def compare(compared: dict[str, recipes.TeacherRecipe], pictures: int, repeats: int, quiet: bool) -> dict[str, Any]:
    """The figures of teachers; heavy modules are imported here."""
    from flowopd_cli.cli.console import Console

    with redirect_stdout(sys.stderr):
        from flowopd_cli.stages.bench.teachers import run

        return run(compared, pictures, repeats, Console(quiet=quiet))


def show(figures: dict[str, Any], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Print tables on stderr and a line or the figures on stdout; write the figures to a file if one is named."""
    from flowopd_cli.cli.console import Console

    console, text = Console(quiet=quiet), json.dumps(figures)
    if out is not None:
        atomic_write(out, text + "\n")
    if of := figures.get("algorithms"):
        shown, line = algorithm_tables(figures), ", ".join(f"{name} {of[name]['seconds']:.3f} s" for name in of)
        line += " an iteration"
    else:
        shown, ratio = tables(figures), figures["ratios"]["fused_to_floor"]
        line = f"{figures['fused_seconds']:.3f} s an iteration, {ratio:.2f} x the floor"
    for title, columns, rows in shown:
        console.table(title, columns, rows)
    console.result(text if as_json else line)


def starting_point(
    recipe: str | None, base: str | None, shape: str | None, stage: str = "distill"
) -> tuple[dict[str, Any], str]:
    """A recipe's tree and its source: the named recipe, the toy's for the toy base, or a default one of ``stage``.

    Raises :class:`RecipeError`: not exactly one of the three is given, or the recipe or shape does not exist.
    """
    from flowopd_cli import recipe as recipes
    from flowopd_cli.models.files.families import model_fields, named_shapes
    from flowopd_cli.system.text import suggest

    if shape is not None and (recipe or base):
        raise RecipeError("--shape is a base of random weights: leave out --recipe and --base")
    if recipe is None and base is None and shape is None:
        raise RecipeError("bench needs something to measure: --recipe NAME, --base BASE or --shape small")
    if recipe is not None or base == TOY:
        path = recipes.find(recipe or TOY_RECIPES[stage])
        return recipes.read(path), str(path)
    names = list(named_shapes())
    if shape is not None and shape not in names:
        raise RecipeError(f"--shape {shape}: no such shape{suggest(shape, names)}; known: {', '.join(names)}")
    model: dict[str, Any] = model_fields(str(shape or base))
    if shape == "small":
        model |= {"resolution": None, "max_sequence_length": 16}
    tree: dict[str, Any] = {"stage": stage, "model": model, "prompts": [{"source": "none"}]}
    tree["sampling"] = {"guidance": GUIDANCE}
    if stage == "teacher":
        return {**tree, "rewards": [{"name": "none"}]}, "bench"
    routing = {f"task{i}": {"ref": f"teacher-{i}"} for i in range(TEACHERS)}
    return {**tree, "routing": routing, "anchor": {"ref": "anchor"}}, "bench"


def algorithm_recipes(
    tree: dict[str, Any], where: str, values: Mapping[str, Any], names: Sequence[str], overrides: Sequence[str]
) -> dict[str, recipes.TeacherRecipe]:
    """The recipe to measure for each algorithm, the tree's own if none is named; the sampler is one that it takes.

    Raises :class:`RecipeError`: the recipe is of another stage, or a field is unknown or out of range.
    """
    from flowopd_cli import recipe as recipes

    compared: dict[str, recipes.TeacherRecipe] = {}
    kernel = tree.get("sampling", {}).get("kernel", "ode")
    noisy = "flow_sde" if kernel == "ode" else kernel
    for name in names or [tree.get("algorithm", "grpo")]:
        own = copy.deepcopy(tree)
        fields = {**values, "algorithm": name, "sampling.kernel": noisy if name == "grpo" else "ode"}
        for key, value in fields.items():
            if value is not None:
                recipes.assign(own, key, value)
        built = recipes.build(own, overrides=overrides, stage="teacher", where=where)
        assert isinstance(built, recipes.TeacherRecipe)
        compared[name] = built
    return compared


def _teachers(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The teachers of a recipe's tree, also those that a task mixes."""
    routes = tree.get("routing", {}).values()
    return [spec for route in routes for spec in (route if isinstance(route, list) else [route])]


def distillation(
    tree: dict[str, Any], where: str, values: Mapping[str, Any], roles: Roles, overrides: Sequence[str]
) -> recipes.DistillRecipe:
    """The recipe to measure: ``values`` (dotted keys, ``None`` left out), roles and ``--set`` over the tree.

    Raises :class:`RecipeError`: the recipe is of another stage or has substeps, or a field is unknown or out of range.
    """
    from flowopd_cli import recipe as recipes
    from flowopd_cli.cli.plan.resolve import complete_names

    if tree.get("stage") != "distill":
        raise RecipeError(f"{where}: is a {tree.get('stage')} recipe; bench measures distillation")
    for key, value in values.items():
        if value is not None:
            recipes.assign(tree, key, value)
    if roles.teachers is not None:
        specs = _teachers(tree) or [{}]
        tasks = [*tree.get("routing", {}), *(f"more{i}" for i in range(roles.teachers))][: roles.teachers]
        tree["routing"] = {t: {**specs[i % len(specs)], "ref": f"teacher-{i}"} for i, t in enumerate(tasks)}
    if roles.anchor is not None:
        beta = tree.get("anchor", {}).get("beta") or recipes.AnchorSpec().beta
        tree["anchor"] = {**tree.get("anchor", {}), "beta": beta if roles.anchor else 0.0}
    if roles.guidance is not None:
        for spec in [*_teachers(tree), tree.setdefault("anchor", {})]:
            spec["guidance"] = roles.guidance
    built = complete_names(recipes.build(tree, overrides=overrides, stage="distill", where=where))
    assert isinstance(built, recipes.DistillRecipe)
    if built.opd.teacher_substeps > 1:
        raise RecipeError(
            f"opd.teacher_substeps {built.opd.teacher_substeps}: bench measures one forward of a teacher at a step: "
            "--set opd.teacher_substeps=1"
        )
    return built


def algorithm_tables(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The figures of teachers as a table: title, columns, rows."""
    rows: list[list[str]] = []
    for name, of in figures["algorithms"].items():
        times = [f"{of[key]:.3f}" for key in ("seconds", "seconds_collect", "seconds_learn")]
        peak = f"{of['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append([name, *times, f"{of['images_per_second']:.2f}", str(of["forwards"]), peak])
    columns = ["an iteration", "seconds", "collect", "learn", "images/s", "forwards of a picture", "peak memory"]
    yield _title(figures), columns, rows


def tables(figures: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The figures as tables: title, columns, rows."""
    settings = figures["settings"]
    floor, pictures = figures["floor_seconds"], settings["pictures"]
    title = _title(figures) + "".join(f", a teacher on {base}" for base in settings["own_bases"])
    title += f", extrapolate {settings['extrapolate']:g}" * (settings["extrapolate"] != 1)
    rows = []
    for name in ("floor", "fused", "replay", "upstream_structure"):
        value = figures[f"{name}_seconds"]
        rows.append([name.replace("_", " "), f"{value:.3f}", f"{value / floor:.2f}", f"{pictures / value:.2f}"])
    yield title, ["an iteration", "seconds", "x floor", "images/s"], rows
    parts = {"floor": figures["floor"], **figures["split"]}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    rows = [[part, *(f"{shown[n]:.3f}" if n in shown else "" for n in names)] for part, shown in parts.items()]
    yield "where the seconds go", ["", *names], rows
    largest, operations = figures["largest_micro_batch"], figures["operations"]
    rows = [["peak memory", f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB"]]
    rows += [["largest micro-batch", f"{largest['rows']} rows ({largest['how']})"]]
    rows += [[f"{name}, {pictures} pictures", f"{value:.3f} s"] for name, value in figures["extras"].items()]
    rows += [[f"the recipe's {settings['iterations']} iterations", f"{figures['hours']:.2f} h"]]
    if operations:
        passes, rate = operations["passes_per_second"] / 1e12, operations["matmul_per_second"] / 1e12
        rows += [["passes of the floor", f"{passes:.3f} of {rate:.3f} TFLOP/s ({operations['share']:.0%})"]]
    yield "this machine", ["", "figure"], rows


def _title(figures: Mapping[str, Any]) -> str:
    settings, machine = figures["settings"], figures["machine"]
    title = f"{settings['base']}, {settings['pictures']} pictures, {settings['steps']} steps, {machine['dtype']}, "
    return f"{title}{machine['device']}, {machine['threads']} threads"
