"""``flowopd doctor``: its lines on machines of every kind."""

import json
import sys
from types import SimpleNamespace

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.doctor import checks as doctor
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor import recipe as doctor_recipe
from flowopd_cli.cli.doctor.machine import GIB, Device

SD35 = "sd35m/distill-1gpu"


RANGES = {
    "": {"torch": ">=2.6,<=2.13.0", "diffusers": ">=0.36,<0.43", "peft": ">=0.18,<0.22"},
    "ocr": {"rapidocr": ">=3.4", "onnxruntime": ">=1.18"},
    "paddle": {"paddleocr": ">=3.7,<3.8"},
}


def test_the_ranges_are_those_of_the_installed_package():
    ranges = machine.requirements()
    assert ranges[""]["torch"] == "<=2.13.0,>=2.6"
    assert set(ranges["ocr"]) == {"rapidocr", "onnxruntime"}
    assert not {"dev", "docs", "demo"} & ranges.keys()
    assert machine.in_range(machine.TESTED["python"], machine.python_range())
    for name, specifier in ranges[""].items():
        assert machine.in_range(machine.TESTED[name], specifier), name


def test_versions_in_ranges():
    assert machine.in_range("2.13.0+cpu", "<=2.13.0")
    assert not machine.in_range("2.13.1", "<=2.13.0")
    assert machine.in_range("unknown", "<3") is None


def test_a_version_that_cannot_be_compared_is_a_warning(seen):
    lines = seen(versions={"diffusers": "unknown", "rapidocr": "unknown", "onnxruntime": "2"})
    assert (lines["diffusers"].state, lines["diffusers"].way_out) == ("warn", "pip install 'diffusers>=0.36,<0.43'")
    assert lines["extra ocr"].state == "ok"


def test_a_check_that_breaks_does_not_stop_the_others(seen, monkeypatch, flowopd, tmp_path):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "huggingface_hub", None)
        absent.setitem(sys.modules, "packaging.specifiers", None)
        lines = seen()
    for name in ("hub token", "hub cache"):
        assert lines[name].state == "fail"
        assert "huggingface_hub" in lines[name].found
    assert "packaging" in lines["packages"].found
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
        installed = machine.TESTED | dict(versions)
        monkeypatch.setattr(machine, "version", installed.get)
        monkeypatch.setattr(machine, "requirements", lambda: RANGES)
        monkeypatch.setattr(machine, "devices", lambda: list(devices))
        monkeypatch.setattr(machine, "memory", lambda: memory)
        monkeypatch.setattr(machine, "unused_gpu", lambda: gpu)
        return {line.name: line for line in doctor.machine_lines()}

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
    assert seen()["device"].state == "warn"
    assert seen(gpu="PyTorch is built without CUDA")["device"].state == "fail"


def test_the_token_is_told_of_and_never_printed(seen, monkeypatch, flowopd):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 30)
    assert seen()["hub token"].found == "present (HF_TOKEN)"
    _, out, err = flowopd("doctor", "--json")
    assert "sss" not in out + err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert seen()["hub token"].state == "warn"


def test_folders(monkeypatch, tmp_path):
    assert doctor.folder_line("a", tmp_path / "not" / "there").state == "ok"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GIB))
    assert doctor.folder_line("a", tmp_path).state == "warn"
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert doctor.folder_line("a", tmp_path).state == "fail"
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "may not be written to" in doctor.folder_line("a", tmp_path).found


def test_a_container_s_limit_counts(monkeypatch):
    system = SimpleNamespace(total=16 * GIB, available=8 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: system)
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
        return doctor_recipe.needs(doctor_recipe._with(recipe, micro=micro)).peak(checkpointing=checkpointing)

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
    return next(line for line in doctor_recipe.recipe_lines(recipe) if line.name in {"memory needed", "devices"})


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
        found = doctor_recipe.recipe_lines(recipes.build(tree, overrides=overrides))
        return {line.name: line for line in found}

    taken = 2_243_171_520 + 384**2 * 1536 + 5_580_620_800
    suites = {"eval": {"suites": ["pickscore"]}}
    assert lines("eval", **suites)["memory needed"].found.startswith(f"{doctor.gib(2 * taken)} for the base and")
    assert lines("push", run="r")["memory needed"].found.startswith(f"{doctor.gib(4 * taken)} for the base and")
    free = 2 * taken + doctor_recipe.FRAMEWORK
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free - 1, True)])
    assert lines("eval", **suites)["memory needed"].state == "fail"
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free, True)])
    assert lines("eval", **suites)["memory needed"].state == "ok"
    for result in (lines("merge", adapters=["runs/a"]), lines("eval", "eval.import_scores=there", **suites)):
        assert not {"memory needed", "devices", "base"} & result.keys()
    small = memory_line(monkeypatch, 12 * GIB, "train.micro=1", "train.gradient_checkpointing=true")
    assert (small.state, small.way_out.partition(":")[0]) == ("fail", "not even one row fits")


def test_what_a_recipe_lacks_is_named(monkeypatch):
    from flowopd_cli.reports import track

    find = track.importlib.util.find_spec
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name, *rest: find(name) if name != "wandb" else None)
    recipe = recipes.load(recipes.find("toy/teacher-ocr"), overrides=["train.track=wandb"])
    lines = {line.name: line for line in doctor_recipe._checks(recipe)}
    assert (lines["recipe"].state, lines["recipe"].way_out) == ("fail", "pip install 'flowopd[track-wandb]'")


def test_rewards_prompts_and_base_of_a_recipe(monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    monkeypatch.setattr(machine, "absent", lambda extra: ["rapidocr"] if extra == "ocr" else [])
    found = list(doctor_recipe.recipe_lines(recipes.load(recipes.find("sd35m/eval-all"))))
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
    result = json.loads(out)
    assert (code, result["ok"]) == (0, True)
    assert {line["state"] for line in result["lines"]} <= {"ok", "warn"}
    code, out, _ = flowopd("doctor", "--recipe", "toy/teacher-ocr", "--set", "rewards.0.name=toy-orc")
    assert code == 3
    assert any(line.startswith("fail") and "did you mean 'toy-ocr'?" in line for line in out.splitlines())
    assert flowopd("doctor", "--set", "a=b")[0] == 2
    assert flowopd("doctor", "--recipe", "nothing")[0] == 2
