"""``flowopd doctor``: its tables are those of pyproject.toml, and each line is right about machines made up here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.doctor import checks as doctor
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor import recipe as doctor_recipe
from flowopd_cli.cli.doctor.machine import GIB, Device
from flowopd_cli.models.files.shapes import base_weights, shape_of
from flowopd_cli.models.footprint import needs

ROOT = Path(__file__).resolve().parents[3]
SD35 = "sd35m/distill-1gpu"


def project():
    tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges(lines):
    found = [Requirement(line) for line in lines]
    return {r.name: {str(part) for part in r.specifier} for r in found if r.name != "flowopd"}


def test_the_tables_are_those_of_pyproject():
    declared = project()
    assert set(declared["requires-python"].split(",")) == {machine.PYTHON[0]}
    known = {name: set(wanted.split(",")) for name, (wanted, _) in machine.PACKAGES.items()}
    assert known == ranges(declared["dependencies"])
    extras = {
        name: ranges(lines) for name, lines in declared["optional-dependencies"].items() if name not in {"dev", "docs"}
    }
    ours = {
        extra: {name: set(wanted.split(",")) for name, wanted in packages.items()}
        for extra, packages in machine.EXTRAS.items()
    }
    assert {name: found for name, found in extras.items() if found} == ours


def test_what_the_tests_ran_with_lies_in_the_ranges():
    for wanted, tested in machine.PACKAGES.values():
        assert machine.allowed(tested, wanted)
    assert machine.allowed("2.13.0+cpu", "<=2.13.0")
    assert not machine.allowed("2.13.1", "<=2.13.0")


def test_a_version_that_is_none_or_cannot_be_compared_is_no_error(seen, monkeypatch):
    assert machine.allowed("unknown", "<3") is None
    lines = seen(versions={"diffusers": "unknown", "rapidocr": "unknown", "onnxruntime": "2"})
    assert (lines["diffusers"].state, lines["diffusers"].way_out) == ("warn", "pip install 'diffusers>=0.36,<0.43'")
    assert lines["extra ocr"].state == "ok"
    monkeypatch.setitem(sys.modules, "packaging.specifiers", None)  # an import of it fails
    lines = seen(versions={"packaging": None})
    assert (lines["packaging"].state, lines["packaging"].way_out) == ("fail", "pip install 'packaging>=21'")
    assert (lines["python"].state, lines["torch"].state, lines["torch"].way_out) == ("ok", "warn", "")


def test_a_check_that_breaks_is_a_line_and_the_others_go_on(seen, monkeypatch, flowopd, tmp_path):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "huggingface_hub", None)
        lines = seen()
    for name in ("hub token", "hub cache"):
        assert lines[name].state == "fail"
        assert "huggingface_hub" in lines[name].found
    assert lines["cache"].state == "ok"

    def broken():
        raise OSError("libcudart.so.12: cannot open\nshared object file")

    monkeypatch.setattr(machine, "devices", broken)
    code, out, err = flowopd("doctor", "--recipe", "toy/teacher-ocr", "--json")
    found = {line["name"]: line for line in json.loads(out)["lines"]}
    assert (code, err) == (3, "")
    assert "(OSError: libcudart.so.12: cannot open shared object file)" in found["device"]["found"]
    assert found["device"]["way_out"] == "install the build of PyTorch that fits this machine"
    assert found["memory needed"]["state"] == "fail"
    assert (found["recipe"]["state"], found["base"]["state"]) == ("ok", "ok")
    assert "reward toy-ocr" in found


@pytest.fixture
def seen(monkeypatch):
    """The lines by name, after the machine was changed."""

    def look(devices=(), memory=(16 * GIB, 8 * GIB), versions=(), gpu=None):
        installed = {name: tested for name, (_, tested) in machine.PACKAGES.items()} | dict(versions)
        monkeypatch.setattr(machine, "version", installed.get)
        monkeypatch.setattr(machine, "devices", lambda: list(devices))
        monkeypatch.setattr(machine, "memory", lambda: memory)
        monkeypatch.setattr(machine, "unused_gpu", lambda: gpu)
        return {line.name: line for line in doctor.examine()}

    return look


def test_packages_are_judged_by_their_ranges(seen):
    lines = seen(
        versions={"diffusers": "0.30.0", "peft": None, "torch": "2.7.0", "rapidocr": "3.4.1", "onnxruntime": "2"}
    )
    assert (lines["diffusers"].state, lines["diffusers"].way_out) == ("fail", "pip install 'diffusers>=0.36,<0.43'")
    assert (lines["peft"].state, lines["peft"].found) == ("fail", "not installed")
    assert (lines["torch"].state, lines["torch"].found) == ("ok", "2.7.0 (tested with 2.13.0)")
    assert (lines["extra ocr"].state, lines["extra ocr"].found) == ("ok", "rapidocr 3.4.1, onnxruntime 2")
    assert lines["extra paddle"].way_out == "pip install 'flowopd[paddle]'"
    assert lines["extra paddle"].state == "warn"


def test_devices_and_memory(seen):
    lines = seen([Device("A", 24 * GIB, 20 * GIB, True), Device("T", 16 * GIB, 15 * GIB, False)])
    assert (lines["device cuda:0"].state, lines["device cuda:0"].found) == (
        "ok",
        "A, 24.0 GiB, 20.0 GiB free, bfloat16",
    )
    assert (lines["device cuda:1"].state, lines["device cuda:1"].way_out) == (
        "warn",
        "set model.dtype=float16 or float32",
    )
    assert lines["memory"].found == "16.0 GiB, 8.0 GiB available"
    assert seen(memory=(8 * GIB, GIB))["memory"].state == "warn"
    assert seen(memory=None)["memory"].state == "warn"
    assert seen()["device"].state == "warn"
    assert seen(gpu="PyTorch is built without CUDA")["device"].state == "fail"


def test_the_token_is_told_of_and_never_printed(seen, monkeypatch, flowopd):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 30)
    assert seen()["hub token"].found == "there is one (HF_TOKEN)"
    _, out, err = flowopd("doctor", "--json")
    assert "sss" not in out + err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert seen()["hub token"].state == "warn"


def test_folders(monkeypatch, tmp_path):
    assert doctor._folder("a", tmp_path / "not" / "there").state == "ok"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GIB))
    assert doctor._folder("a", tmp_path).state == "warn"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert doctor._folder("a", tmp_path).state == "fail"
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "may not be written to" in doctor._folder("a", tmp_path).found


def test_a_container_s_limit_counts(monkeypatch):
    monkeypatch.setattr(machine, "_limits", lambda: [(3 * GIB, 2 * GIB), (2**63, 0)])
    assert machine.memory() == (3 * GIB, GIB)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "idle"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_pages_of_files_that_may_be_dropped_are_not_used(tmp_path, folder, limit, used, idle):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text("1000\n")
    (place / used).write_text("900\n")
    assert machine._limits(tmp_path) == [(1000, 900)]
    (place / "memory.stat").write_text(f"anon 300\n{idle} 600\nactive_file 7\n")
    assert machine._limits(tmp_path) == [(1000, 300)]
    (place / limit).write_text("max\n")
    assert machine._limits(tmp_path) == []


@pytest.mark.parametrize("name", ["toy/teacher-ocr", "toy/distill", "toy/coldstart", SD35])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_micro_batch_is_the_last_that_fits(name, checkpointing):
    recipe = recipes.load(recipes.find(name), overrides=["train.groups=2", "train.group_size=4", "model.device=cpu"])

    def peak(micro):
        return needs(doctor_recipe._with(recipe, micro=micro)).peak(checkpointing=checkpointing)

    room = peak(3)
    most = doctor_recipe.largest_micro(recipe, room, checkpointing=checkpointing)
    assert most >= 3
    assert peak(most) <= room
    assert doctor_recipe.largest_micro(recipe, room - 1, checkpointing=checkpointing) < 3 or peak(2) == room
    assert doctor_recipe.largest_micro(recipe, 0, checkpointing=checkpointing) == 0


def memory_line(monkeypatch, free, *overrides, cards=1):
    """The line about memory on a machine with so much room on each of its devices."""
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free, True)] * cards)
    recipe = recipes.load(recipes.find(SD35), overrides=overrides)
    return next(line for line in doctor_recipe.examine(recipe) if line.name in {"memory needed", "devices"})


def test_a_recipe_fits_or_it_is_said_with_what_it_would(monkeypatch):
    line = memory_line(monkeypatch, 79 * GIB)
    assert line.state == "ok"
    assert "train.micro up to" in line.found
    line = memory_line(monkeypatch, 24 * GIB, "train.micro=64", "train.groups=16", "train.group_size=16")
    assert line.state == "fail"
    assert line.way_out.startswith("--set train.micro=")
    again = memory_line(monkeypatch, 24 * GIB, "train.groups=16", "train.group_size=16", line.way_out.split()[1])
    assert again.state == "ok"
    line = memory_line(monkeypatch, 2 * GIB)
    assert (line.state, line.way_out.partition(":")[0]) == ("fail", "not even one row fits")
    line = memory_line(monkeypatch, 79 * GIB, "train.processes=4", cards=2)
    assert (line.state, line.way_out) == ("fail", "set train.processes=2, or model.device=cpu")


def test_text_encoders_are_counted_beside_the_base_and_a_merge_loads_neither(monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, 79 * GIB, True)])

    def lines(stage, *overrides, **given):
        tree = {"stage": stage, "model": {"pretrained": "stabilityai/stable-diffusion-3.5-medium"}, **given}
        found = doctor_recipe.examine(recipes.build(tree, overrides=overrides))
        return {line.name: line for line in found}

    shape = shape_of("sd3.5-medium")
    taken = base_weights(shape) + shape.encoders
    asked = {"eval": {"suites": ["pickscore"]}}
    assert lines("eval", **asked)["memory needed"].found.startswith(f"{doctor.gib(2 * taken)} for the base and")
    assert lines("push", run="r")["memory needed"].found.startswith(f"{doctor.gib(4 * taken)} for the base and")
    free = 2 * taken + doctor_recipe.FRAMEWORK
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free - 1, True)])
    assert lines("eval", **asked)["memory needed"].state == "fail"
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free, True)])
    assert lines("eval", **asked)["memory needed"].state == "ok"
    for told in (lines("merge", adapters=["runs/a"]), lines("eval", "eval.import_scores=there", **asked)):
        assert not {"memory needed", "devices", "base"} & told.keys()
    small = memory_line(monkeypatch, 12 * GIB, "train.micro=1", "train.gradient_checkpointing=true")
    assert (small.state, small.way_out.partition(":")[0]) == ("fail", "not even one row fits")


def test_what_a_recipe_lacks_is_named(monkeypatch):
    from flowopd_cli.reports import track

    find = track.importlib.util.find_spec
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name, *rest: find(name) if name != "wandb" else None)
    recipe = recipes.load(recipes.find("toy/teacher-ocr"), overrides=["train.track=wandb"])
    lines = {line.name: line for line in doctor_recipe._sound(recipe)}
    assert (lines["recipe"].state, lines["recipe"].way_out) == ("fail", "pip install 'flowopd[track-wandb]'")


def test_rewards_prompts_and_base_of_a_recipe(monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    monkeypatch.setattr(machine, "absent", lambda extra: ["rapidocr"] if extra == "ocr" else [])
    found = list(doctor_recipe.examine(recipes.load(recipes.find("sd35m/eval-all"))))
    lines = {line.name: line for line in found}
    assert (lines["reward ocr"].state, lines["reward ocr"].way_out) == ("fail", "pip install 'flowopd[ocr]'")
    assert (lines["reward deqa"].state, lines["reward deqa"].way_out) == ("warn", "flowopd rewards serve deqa")
    assert lines["base"].state in {"warn", "fail"}
    recipe = recipes.load(recipes.find("toy/teacher-ocr"), overrides=["rewards.0.name=remote:http://127.0.0.1:18085"])
    assert doctor_recipe._reward(recipe.rewards[0].name).state == "warn"
    recipe = recipes.load(recipes.find("sd35m/teacher-ocr"))
    assert [line.way_out for line in doctor_recipe._prompts(recipe)] == ["flowopd prompts fetch ocr-train"]


def test_the_command_on_this_machine(flowopd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = flowopd("doctor", "--recipe", "toy/teacher-ocr", "--json")
    told = json.loads(out)
    assert (code, told["ok"]) == (0, True)
    assert {line["state"] for line in told["lines"]} <= {"ok", "warn"}
    code, out, _ = flowopd("doctor", "--recipe", "toy/teacher-ocr", "--set", "rewards.0.name=toy-orc")
    assert code == 3
    assert any(line.startswith("fail") and "did you mean 'toy-ocr'?" in line for line in out.splitlines())
    assert flowopd("doctor", "--set", "a=b")[0] == 2
    assert flowopd("doctor", "--recipe", "nothing")[0] == 2
