"""Who may import whom, read off the syntax tree, and the sizes of the house. A wrong import fails here."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "flowopd_cli"
PACKAGE = "flowopd_cli"
FOUNDATION = {
    *("recipe", "recipe_io", "recipe_specs", "run", "refs", "manifest", "files"),
    *("registry", "errors", "progress", "arithmetic", "card", "settle", "tasks", "cache", "prompt_files", "prompt_ocr"),
    *("shapes", "footprint", "runs", "tables", "processes", "locks", "origin", "checkpoints", "run_paths"),
    *("card_scores", "hub_errors", "licenses"),
    *(
        "paths",
        "safe_yaml",
        "recipe_secrets",
        "recipe_trackers",
        "prompt_text",
        "adapter_config",
        "adapter_header",
        "json_files",
    ),
    *("completion", "recipe_trackers", "watching"),
}
FRONT = {
    *(
        "cli",
        "options",
        "plan",
        "preflight",
        "base_check",
        "execute",
        "launch",
        "console",
        "track",
        "trackers",
        "signals",
    ),
    *("cli_bench", "cli_eval", "cli_rewards", "cli_prompts", "cli_recipes", "cli_report"),
    *("cli_runs", "cli_watch", "cli_doctor"),
    *("demo", "report", "examine", "doctor", "doctor_recipe", "machine", "__main__"),
}
PACKAGES = {"bench", "core", "reports", "train", "stages", "models", "rewards", "suites", "toy"}
TENSORS = {"torch", "jaxtyping"}


@dataclass(frozen=True)
class Rule:
    """What a layer may import: ``ours`` and ``theirs`` anywhere, ``lazily`` inside a function only."""

    ours: frozenset[str]
    theirs: frozenset[str]
    lazily: frozenset[str] = frozenset()


def rule(ours, theirs, lazily=()):
    return Rule(frozenset(ours), frozenset(theirs), frozenset(lazily))


ANY = "*"
RULES = {
    "core": rule({"core", "errors"}, TENSORS),
    "train": rule({"core", "models.base", "train", "errors"}, TENSORS | {"safetensors"}),
    "train.loop": rule({"core", "models.base", "train", "errors", "processes"}, TENSORS),
    "processes": rule({"errors"}, set(), {"torch"}),
    "train.optimizers": rule({"errors"}, {"torch"}, {"bitsandbytes"}),
    "models": rule(
        {
            *("core", "models", "errors", "files", "json_files", "paths", "processes", "shapes"),
            *("adapter_config", "adapter_header"),
        },
        TENSORS | {"diffusers", "transformers", "peft", "safetensors", "huggingface_hub", "numpy"},
    ),
    "models.shapes": rule({"shapes", "json_files"}, set()),
    "rewards": rule({"core.types", "rewards", "errors", "cache", "prompt_text"}, TENSORS | {"numpy", "PIL"}, {ANY}),
    "prompts": rule({"core.types", "core.routing", "errors", "registry", "prompt_text"}, set(), {ANY}),
    "prompt_geneval": rule({"rewards.coco"}, set()),
    "prompt_sources": rule(
        {"core.types", "errors", "prompts", "prompt_files", "prompt_geneval", "prompt_text", "rewards.clauses"}, set()
    ),
    "suites": rule(
        {
            "core.types",
            "rewards",
            "prompts",
            "prompt_files",
            "prompt_sources",
            "prompt_text",
            "suites",
            "errors",
            "json_files",
        },
        TENSORS,
    ),
    "toy": rule(
        {"core", "prompts", "rewards", "suites", "toy", "errors"},
        TENSORS | {"numpy", "PIL", "diffusers", "transformers", "safetensors", "tokenizers"},
        {ANY},
    ),
    "bench": rule({"core", "train", "models", "stages._", "bench", *FOUNDATION}, TENSORS),
    "stages": rule(
        {"core", "train", "models", "rewards", "suites", "prompts", "stages._", *FOUNDATION},
        TENSORS | {"numpy", "PIL", "safetensors"},
        {"huggingface_hub", "diffusers"},
    ),
    "foundation": rule(FOUNDATION, {"pydantic", "yaml"}, {"huggingface_hub"}),
    "front": rule(FOUNDATION | FRONT, set()),
    "report": rule(FOUNDATION | {"reports"}, set()),
    "reports": rule(FOUNDATION | {"reports"}, set(), {"jinja2"}),
    "reports.svg": rule(FOUNDATION | {"reports"}, set(), {"matplotlib"}),
    "reports.strips": rule(FOUNDATION | {"reports"}, set(), {"PIL"}),
    "demo": rule(FOUNDATION | FRONT | {"reports"}, set()),
    "cli_report": rule({"report"}, {"typer"}),
    "preflight": rule(FOUNDATION | FRONT | {"rewards.clauses"}, set()),
    "base_check": rule(FOUNDATION | {"models.folders"}, set()),
    "cli": rule(FOUNDATION | FRONT, {"typer"}, {"stages"}),
    "cli_rewards": rule(FOUNDATION | FRONT, {"typer"}, {"stages"}),
    "cli_runs": rule(FOUNDATION, {"typer"}),
    "cli_prompts": rule(FOUNDATION | {"prompt_geneval"}, {"typer"}),
    "cli_bench": rule(FOUNDATION | FRONT, {"typer"}, {"bench"}),
    "cli_recipes": rule(FOUNDATION | FRONT, {"typer"}),
    "cli_watch": rule(FOUNDATION | FRONT, {"typer"}),
    "cli_doctor": rule(FOUNDATION | FRONT, {"typer"}),
    "doctor": rule(FOUNDATION | FRONT, set(), {"huggingface_hub"}),
    "doctor_recipe": rule(FOUNDATION | FRONT, set(), {"huggingface_hub", "stages"}),
    "machine": rule(FOUNDATION, set(), {"torch", "packaging"}),
    "examine": rule(FOUNDATION | FRONT, {"pydantic"}),
    "cli_eval": rule(FOUNDATION | FRONT, {"typer"}, {"stages"}),
    "options": rule(FOUNDATION, {"typer"}),
    "execute": rule(FOUNDATION | FRONT, {"typer"}, {"stages"}),
    "launch": rule(FOUNDATION, set(), {"torch"}),
    "track": rule(FOUNDATION | {"trackers"}, set()),
    "trackers": rule(FOUNDATION, set(), {"accelerate", "mlflow", "numpy", "PIL", "trackio", "wandb"}),
    "console": rule(FOUNDATION, {"rich"}),
}
# Where a function takes more than six parameters, and why.
WIDE = {
    "cli": "Typer reads a command's flags off its signature",
    "cli_bench": "Typer reads a command's flags off its signature",
    "cli_eval": "Typer reads a command's flags off its signature",
    "cli_rewards": "Typer reads a command's flags off its signature",
    "rewards.remote": "a reward's options are the arguments of its constructor",
    "rewards.workers.deqa": "a reward's options are the arguments of its constructor",
    "models.pipeline": "load takes the fields of a recipe's model section",
}
FILE_NAME = re.compile(r"[\w.-]*\w\.(jsonl?|ya?ml|html|md|safetensors|png|pt)")


def layer_of(module: str) -> str:
    """The rule that a module, named below the package, comes under: its own, its nearest package's, or its ring's."""
    parts = module.split(".")
    heads = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    ring = "foundation" if parts[0] in FOUNDATION else "front"
    return next((head for head in heads if head in RULES), ring)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported module of a file, and whether the import stands at the top level."""
    tree = ast.parse(source)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        top = id(node) not in inner
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            bare = node.module == PACKAGE or str(node.module).removeprefix(f"{PACKAGE}.") in PACKAGES
            yield from ((f"{node.module}.{a.name}", top) for a in node.names if bare)
            if not bare:
                yield str(node.module), top


def violations(module: str, source: str) -> list[str]:
    """The imports of ``module`` (named below the package) that its layer may not have."""
    wrong = []
    allowed = RULES[layer_of(module)]
    for name, top in imports(source):
        where = "at module level" if top else "inside a function"
        if name.split(".")[0] == PACKAGE:
            target = name.removeprefix(PACKAGE).lstrip(".")
            known = {*allowed.ours, *(() if top else allowed.lazily), "__version__", ""}
            fine = any(target == k or target.startswith(k if k.endswith("_") else f"{k}.") for k in known if k)
            fine = fine or not target
        else:
            theirs = name.split(".")[0]
            fine = theirs in sys.stdlib_module_names or theirs in allowed.theirs
            fine = fine or (not top and (theirs in allowed.lazily or ANY in allowed.lazily))
        if not fine:
            wrong.append(f"{module} may not import {name} {where}")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it."""
    found = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in sorted(ROOT.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in found.items() if name != "__init__"}


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module):
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("core.losses", "import diffusers", "diffusers at module level"),
        ("core.losses", "from flowopd_cli.run import RunDir", "flowopd_cli.run"),
        ("core.losses", "from flowopd_cli import run", "flowopd_cli.run"),
        ("train.loop", "from flowopd_cli.rewards.base import RewardMix", "rewards.base"),
        ("train.loop", "from flowopd_cli.models.sd3 import SD3Model", "models.sd3"),
        ("train.collect", "import accelerate", "accelerate"),
        ("train.collect", "def f():\n    from flowopd_cli import recipe", "recipe inside a function"),
        ("models.sd3", "from flowopd_cli.train.loop import fit", "train.loop"),
        ("models.shapes.sd3", "def f():\n    import torch", "torch inside a function"),
        ("rewards.ocr", "import rapidocr", "rapidocr at module level"),
        ("rewards.ocr", "from flowopd_cli.core.losses import kl", "core.losses"),
        ("suites.base", "from flowopd_cli.models.base import FlowModel", "models.base"),
        ("stages.teacher", "from flowopd_cli.stages import distill", "stages.distill"),
        ("stages.teacher", "from flowopd_cli.stages.distill import run", "stages.distill"),
        ("stages.teacher", "import rich.table", "rich.table"),
        ("stages.teacher", "def f():\n    import typer", "typer inside a function"),
        ("stages.teacher", "from flowopd_cli.toy import folder", "toy.folder"),
        ("registry", "from flowopd_cli.toy import folder", "toy.folder"),
        ("recipe", "def f():\n    import torch", "torch inside a function"),
        ("run", "import torch", "torch at module level"),
        ("launch", "import torch", "torch at module level"),
        ("cli", "from flowopd_cli.stages import teacher", "stages.teacher at module level"),
        ("plan", "import rich", "rich at module level"),
        ("report", "from flowopd_cli.stages import teacher", "stages.teacher"),
    ],
)
def test_a_wrong_import_is_refused(module, source, word):
    found = violations(module, source)
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.losses", "import math\nimport torch\nfrom flowopd_cli.core.types import Loss"),
        ("train.loop", "from flowopd_cli.processes import everyone\nfrom flowopd_cli.models.base import FlowModel"),
        ("rewards.ocr", "def f():\n    import rapidocr"),
        ("stages.teacher", "from flowopd_cli.stages import _model\nfrom flowopd_cli.run import RunDir"),
        ("cli", "def f():\n    from flowopd_cli.stages import teacher"),
        ("launch", "def f():\n    import torch"),
    ],
)
def test_a_right_import_is_not(module, source):
    assert violations(module, source) == []


def test_nobody_names_toy_but_the_registry():
    """A registry string is the only way to the toy world."""
    for name, path in MODULES.items():
        if not name.startswith("toy") and name != "registry":
            assert f"{PACKAGE}.toy" not in path.read_text(encoding="utf-8"), name


def literal_file_names(source: str) -> list[str]:
    tree = ast.parse(source)
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE_NAME.fullmatch(node.value)
    ]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("stages.")])
def test_stages_leave_file_names_to_the_run(module):
    assert literal_file_names(MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name not in {"run_paths", "manifest"}])
def test_only_the_run_knows_the_files_of_a_run(module):
    found = set(literal_file_names(MODULES[module].read_text(encoding="utf-8")))
    assert not found & {"recipe.yaml", "manifest.json", "metrics.jsonl", "prompts.json", "report.html", "README.md"}


def test_a_literal_file_name_is_seen():
    assert literal_file_names('path = folder / "metrics.jsonl"') == ["metrics.jsonl"]
    assert literal_file_names('"""The words manifest.json in a sentence are no file name."""') == []


@pytest.mark.parametrize("module", MODULES)
def test_files_keep_their_size(module):
    """Stages and their helpers are wiring and stay within 120 lines, any other file within 300."""
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= (120 if module.startswith("stages.") else 300)


def long_functions(source: str) -> list[str]:
    """Functions of more than 40 lines, docstring and signature included."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 40]


@pytest.mark.parametrize("module", MODULES)
def test_functions_keep_their_size(module):
    assert long_functions(MODULES[module].read_text(encoding="utf-8")) == []


def wide_functions(source: str) -> list[str]:
    """Functions of more than six parameters, ``self`` and ``cls`` left out."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    named = {f.name: [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)] for f in functions}
    return [name for name, arguments in named.items() if len([a for a in arguments if a not in {"self", "cls"}]) > 6]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in WIDE])
def test_functions_take_few_parameters(module):
    assert wide_functions(MODULES[module].read_text(encoding="utf-8")) == []


def test_a_wide_function_is_seen():
    assert wide_functions("def f(self, a, b, c, *, d, e, g, h): ...") == ["f"]
    assert wide_functions("def f(self, a, b, c, *, d, e, g): ...") == []


def documented(cell: str) -> set[str]:
    """The names in a cell of the table in CONTRIBUTING.md, with the rings written out."""
    words = [word.strip("` ").removesuffix("*").removesuffix("/") for word in cell.split(",") if word.strip()]
    rings = {"foundation": FOUNDATION, "front": FRONT, "anything": {ANY}}
    return set().union(*(rings.get(word, {word}) for word in words))


def test_the_table_of_layers_is_the_rules():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    table = {documented(row[0]).pop() if "`" in row[0] else row[0].strip(): row[1:] for row in rows if len(row) == 4}
    table.pop("layer")
    assert set(table) == set(RULES)
    for layer, (ours, theirs, lazily) in table.items():
        expected = RULES[layer]
        found = documented(ours), documented(theirs), documented(lazily)
        assert found == (expected.ours, expected.theirs, expected.lazily), layer


def test_the_rings_are_those_of_the_table():
    text = " ".join((ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    foundation = re.search(r"The foundation is (.*?):", text)
    front = re.search(r"The front is (.*?) and the modules", text)
    assert foundation is not None
    assert front is not None
    assert set(re.findall(r"`(\w+)`", foundation[1])) == FOUNDATION
    assert set(re.findall(r"`(\w+)`", front[1])) == FRONT - set(RULES)
