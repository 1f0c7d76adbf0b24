"""What may not stand in the program's source at all, read off the syntax tree (SECURITY.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "flowopd_cli"
MODULES = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in sorted(ROOT.rglob("*.py"))}
# Modules that unpickle, unpack or evaluate what they are given.
MODULES_BANNED = {
    *("cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile", "code", "pty"),
}
CALLS_BANNED = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "shutil.unpack_archive"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "ssl._create_unverified_context"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "pickle.load", "pickle.loads", "pickle.Unpickler"),
    *("markupsafe.Markup", "Markup", "builtins.eval", "builtins.exec"),
}
# What a call must say, by its name.
MUST_SAY = {
    "torch.load": {"weights_only": True},
    "Environment": {"autoescape": True},
    "Image.open": {"formats": None},
    "PIL.Image.open": {"formats": None},
}
MAY_NOT_SAY = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "verify": True}
# Where an exception is made, and why.
ALLOWED = {
    ("safe_yaml", "yaml.load"): "by a subclass of SafeLoader",
    ("rewards.workers.deqa", "trust_remote_code"): "the model is code, pinned, and asked for by name",
}
STARTS_PROGRAMS = {"launch", "rewards.isolated"}
YAML_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}
READS_PICKLE_ERRORS = {"UnpicklingError", "PickleError"}


def name_of(node: ast.AST) -> str:
    """``a.b.c`` of an attribute or a name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def faults(module: str, source: str) -> Iterator[str]:
    """What of a module is not allowed."""
    must_say = {name: said for name, said in MUST_SAY.items() if name != "Environment" or "jinja2" in source}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from imports(module, [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            yield from imports(module, [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Attribute) and name_of(node).startswith("pickle."):
            if node.attr not in READS_PICKLE_ERRORS:
                yield name_of(node)
        elif isinstance(node, ast.Attribute) and name_of(node) in YAML_LOADERS:
            yield name_of(node)
        elif isinstance(node, ast.Call):
            yield from call(module, node, must_say)
        elif isinstance(node, ast.Dict):
            yield from pairs(module, node)


def imports(module: str, names: list[str]) -> Iterator[str]:
    for name in names:
        head = name.split(".")[0]
        if head in MODULES_BANNED or name in CALLS_BANNED:
            yield f"import {name}"
        if head == "subprocess" and module not in STARTS_PROGRAMS:
            yield "import subprocess"
        if name.startswith("pickle.") and name.removeprefix("pickle.") not in READS_PICKLE_ERRORS:
            yield f"import {name}"


def call(module: str, node: ast.Call, must_say: dict[str, dict[str, object]]) -> Iterator[str]:
    name = name_of(node.func)
    said = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    if name in CALLS_BANNED or (name == "yaml.load" and (module, name) not in ALLOWED):
        yield name
    for needed, value in must_say.get(name, {}).items():
        if needed not in said or (value is not None and constant(said[needed]) is not value):
            yield f"{name} without {needed}"
    for keyword, value in said.items():
        if keyword in MAY_NOT_SAY and constant(value) is not MAY_NOT_SAY[keyword] and (module, keyword) not in ALLOWED:
            yield f"{name}({keyword}=...)"


def pairs(module: str, node: ast.Dict) -> Iterator[str]:
    """Keywords that are handed on in a dictionary."""
    for key, value in zip(node.keys, node.values, strict=True):
        named = constant(key)
        if named in MAY_NOT_SAY and constant(value) is not MAY_NOT_SAY[named] and (module, named) not in ALLOWED:
            yield f"{{{named!r}: ...}}"


def constant(node: ast.AST | None) -> object:
    """The value of a constant; something that equals nothing else for any other expression."""
    return node.value if isinstance(node, ast.Constant) else node


@pytest.mark.parametrize("module", MODULES)
def test_nothing_forbidden_stands_in_the_source(module):
    assert list(faults(module, MODULES[module].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("from pickle import loads", "import pickle.loads"),
        ("import pickle\nclass U(pickle.Unpickler): pass", "pickle.Unpickler"),
        ("import dill", "import dill"),
        ("from zipfile import ZipFile", "import zipfile"),
        ("import yaml\nyaml.load(f, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(f)", "yaml.unsafe_load"),
        ("import yaml\nx = yaml.Loader", "yaml.Loader"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("__import__(x)", "__import__"),
        ("import os\nos.system(x)", "os.system"),
        ("from os import system", "import os.system"),
        ("import subprocess", "import subprocess"),
        ("run(x, shell=True)", "run(shell=...)"),
        ("run(x, shell=flag)", "run(shell=...)"),
        ("torch.load(p)", "torch.load without weights_only"),
        ("torch.load(p, weights_only=False)", "torch.load without weights_only"),
        ("torch.load(p, weights_only=flag)", "torch.load without weights_only"),
        ("np.load(p, allow_pickle=True)", "np.load(allow_pickle=...)"),
        ("M.from_pretrained(p, trust_remote_code=True)", "M.from_pretrained(trust_remote_code=...)"),
        ("M.from_pretrained(p, **{'trust_remote_code': True})", "{'trust_remote_code': ...}"),
        ("tempfile.mktemp()", "tempfile.mktemp"),
        ("Image.open(p)", "Image.open without formats"),
        ("from jinja2 import Environment\nEnvironment()", "Environment without autoescape"),
        ("from jinja2 import Environment\nEnvironment(autoescape=False)", "Environment without autoescape"),
        ("get(u, verify=False)", "get(verify=...)"),
    ],
)
def test_what_is_forbidden_is_seen(source, found):
    assert found in list(faults("stages.teacher", source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("launch", "import subprocess\nsubprocess.Popen(argv, env=environment)"),
        ("rewards.clip", "torch.load(p, map_location='cpu', weights_only=True)"),
        ("rewards.weights", "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass"),
        ("report", "from jinja2 import Environment\nEnvironment(autoescape=True)"),
        ("manifest", "Environment(python=x)"),
        ("rewards.pictures", "Image.open(p, formats=('PNG',))"),
        ("models.sd3", "re.compile('x')"),
        ("safe_yaml", "yaml.load(text, Loader=_Loader)"),
    ],
)
def test_what_is_allowed_is_not(module, source):
    assert list(faults(module, source)) == []


def test_exceptions_are_still_needed():
    for module, what in ALLOWED:
        assert what.rpartition(".")[2] in MODULES[module].read_text(encoding="utf-8"), (module, what)
    for module in STARTS_PROGRAMS:
        assert "subprocess" in MODULES[module].read_text(encoding="utf-8")


def test_templates_escape_everything():
    for path in ROOT.rglob("*.j2"):
        text = path.read_text(encoding="utf-8")
        for way_around in ("|safe", "| safe", "autoescape", "<script", "javascript:", "{% include", "{% import"):
            assert way_around not in text, f"{path.name}: {way_around}"
