"""``flowopd doctor``: its lines on machines of every kind."""

import json
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.doctor import checks as doctor
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor import recipe as doctor_recipe
from flowopd_cli.cli.doctor.machine import GIB, Device
from flowopd_cli.errors import RecipeError
from flowopd_cli.system.text import gib

SD35 = "sd35m/distill-1gpu"
RANGES = {
    "": {"torch": ">=2.6,<=2.13.0", "diffusers": ">=0.36,<0.43", "peft": ">=0.18,<0.22"},
    "ocr": {"rapidocr": ">=3.4", "onnxruntime": ">=1.18"},
    "paddle": {"paddleocr": ">=3.7,<3.8"},
}


@pytest.fixture
def check_machine(monkeypatch):
    """The findings by name, after the machine was changed."""

    def check_machine(devices=(), memory=(16 * GIB, 8 * GIB), versions=(), gpu=None):
        installed = machine.TESTED | dict(versions)
        monkeypatch.setattr(machine, "version", installed.get)
        monkeypatch.setattr(machine, "requirements", lambda: RANGES)
        monkeypatch.setattr(machine, "devices", lambda: list(devices))
        monkeypatch.setattr(machine, "memory", lambda: memory)
        monkeypatch.setattr(machine, "unused_gpu", lambda: gpu)
        return by_name(doctor.machine_findings())

    return check_machine


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_the_ranges_are_those_of_the_installed_package():
    ranges = machine.requirements()
    assert ranges[""]["torch"] == "<=2.13.0,>=2.6"
    assert set(ranges["ocr"]) == {"rapidocr", "onnxruntime"}
    assert not {"dev", "docs", "demo"} & ranges.keys()
    for name in machine.TESTED.keys() - {"python"}:
        assert machine.in_range(machine.TESTED[name], ranges[""][name]), name
    assert machine.in_range("2.13.0+cpu", "<=2.13.0")
    assert not machine.in_range("2.13.1", "<=2.13.0")


def test_a_check_that_breaks_does_not_stop_the_others(check_machine, monkeypatch, flowopd, tmp_path):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "huggingface_hub", None)
        absent.setitem(sys.modules, "packaging.specifiers", None)
        findings = check_machine()
    for name in ("hub token", "hub cache"):
        assert findings[name].state == "fail"
        assert "huggingface_hub" in findings[name].text
    assert "packaging" in findings["packages"].text
    assert findings["cache"].state == "ok"

    error = OSError("libcudart.so.12: cannot open\nshared object file")
    monkeypatch.setattr(machine, "devices", Mock(side_effect=error))
    code, out, err = flowopd("doctor", "--recipe", "toy/teacher-ocr", "--json")
    lines = {line["name"]: line for line in json.loads(out)["lines"]}
    assert (code, err) == (3, "")
    assert "(OSError: libcudart.so.12: cannot open shared object file)" in lines["device"]["found"]
    assert lines["device"]["way_out"] == "install the build of PyTorch that fits this machine"
    assert [lines[name]["state"] for name in ("memory needed", "recipe", "base")] == ["fail", "ok", "ok"]
    assert "reward toy-ocr" in lines


@pytest.mark.parametrize(
    ("name", "versions", "state", "text", "way_out"),
    [
        ("diffusers", {"diffusers": "0.30.0"}, "fail", "0.30.0 is outside", "pip install 'diffusers>=0.36,<0.43'"),
        (
            "diffusers",
            {"diffusers": "unknown"},
            "warn",
            "unknown cannot be compared",
            "pip install 'diffusers>=0.36,<0.43'",
        ),
        ("peft", {"peft": None}, "fail", "not installed", "pip install 'peft>=0.18,<0.22'"),
        ("torch", {"torch": "2.7.0"}, "ok", "2.7.0 (tested with 2.13.0)", ""),
        ("extra ocr", {"rapidocr": "3.4.1", "onnxruntime": "2"}, "ok", "rapidocr 3.4.1, onnxruntime 2", ""),
        ("extra paddle", {}, "warn", "paddleocr not installed", "pip install 'flowopd[paddle]'"),
    ],
)
def test_packages_are_judged_by_their_ranges(check_machine, name, versions, state, text, way_out):
    finding = check_machine(versions=versions)[name]
    assert (finding.state, finding.way_out) == (state, way_out)
    assert text in finding.text


def test_devices_and_memory(check_machine):
    findings = check_machine([Device("A", 24 * GIB, 20 * GIB, True), Device("T", 16 * GIB, 15 * GIB, False)])
    first, second = findings["device cuda:0"], findings["device cuda:1"]
    assert (first.state, first.text) == ("ok", "A, 24.0 GiB, 20.0 GiB free, bfloat16")
    assert (second.state, second.way_out) == ("warn", "set model.dtype=float16 or float32")
    assert findings["memory"].text == "16.0 GiB, 8.0 GiB available"
    assert check_machine(memory=(8 * GIB, GIB))["memory"].state == "warn"
    assert check_machine()["device"].state == "warn"
    assert check_machine(gpu="PyTorch is built without CUDA")["device"].state == "fail"


def test_the_token_is_never_printed(check_machine, monkeypatch, flowopd):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 30)
    assert check_machine()["hub token"].text == "present (HF_TOKEN)"
    _, out, err = flowopd("doctor", "--json")
    assert "sss" not in out + err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert check_machine()["hub token"].state == "warn"


def test_folders(monkeypatch, tmp_path):
    assert doctor.folder_finding("a", tmp_path / "not" / "there").state == "ok"
    for free, state in ((2 * GIB, "warn"), (1, "fail")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert doctor.folder_finding("a", tmp_path).state == state
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "may not be written to" in doctor.folder_finding("a", tmp_path).text


@pytest.mark.parametrize(
    ("folder", "limit", "used", "inactive"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts_without_droppable_pages(monkeypatch, tmp_path, folder, limit, used, inactive):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / limit).write_text("1000\n")
    (place / used).write_text("900\n")
    assert machine._limits(tmp_path) == [(1000, 900)]
    (place / "memory.stat").write_text(f"anon 300\n{inactive} 600\nactive_file 7\n")
    limits = machine._limits(tmp_path)
    assert limits == [(1000, 300)]
    (place / limit).write_text("max\n")
    assert machine._limits(tmp_path) == []
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16000, available=8000))
    monkeypatch.setattr(machine, "_limits", lambda: [*limits, (2**63, 0)])
    assert machine.memory() == (1000, 700)


@pytest.mark.parametrize("name", ["toy/teacher-ocr", "toy/distill", "toy/coldstart", SD35])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_micro_batch_is_the_last_that_fits(name, checkpointing):
    recipe = recipes.load(recipes.find(name), overrides=["train.groups=2", "train.group_size=4", "model.device=cpu"])
    peak = partial(doctor_recipe.peak, recipe, checkpointing=checkpointing)
    largest = partial(doctor_recipe.largest_micro, recipe, checkpointing=checkpointing)
    assert largest(peak(3)) >= 3
    assert peak(largest(peak(3))) <= peak(3)
    assert largest(peak(3) - 1) < 3 or peak(2) == peak(3)
    assert largest(0) == 0


def memory_finding(monkeypatch, free, *overrides, cards=1):
    """The finding about memory on a machine with so much of it free on each of its devices."""
    monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free, True)] * cards)
    findings = doctor_recipe.recipe_findings(recipes.load(recipes.find(SD35), overrides=overrides))
    return next(finding for finding in findings if finding.name in {"memory needed", "devices"})


def test_a_recipe_fits_or_the_settings_with_which_it_would_are_named(monkeypatch):
    finding = memory_finding(monkeypatch, 79 * GIB)
    assert finding.state == "ok"
    assert "train.micro up to" in finding.text
    small = ("train.groups=16", "train.group_size=16")
    finding = memory_finding(monkeypatch, 24 * GIB, "train.micro=64", *small)
    assert finding.state == "fail"
    assert finding.way_out.startswith("--set train.micro=")
    assert memory_finding(monkeypatch, 24 * GIB, *small, finding.way_out.split()[1]).state == "ok"
    for free, *overrides in ((2 * GIB,), (12 * GIB, "train.micro=1", "train.gradient_checkpointing=true")):
        finding = memory_finding(monkeypatch, free, *overrides)  # 12 GiB hold the training, but not the text encoders
        assert (finding.state, finding.way_out.partition(":")[0]) == ("fail", "not even one row fits")
    finding = memory_finding(monkeypatch, 79 * GIB, "train.processes=4", cards=2)
    assert (finding.state, finding.way_out) == ("fail", "set train.processes=2, or model.device=cpu")


FULL = ("adapter.kind=full", "train.lr=1e-5")
LESS = ("adapter.copies=cpu", "train.optimizer=adamw8bit")


@pytest.mark.parametrize("settings", [(), LESS[:1], LESS])
def test_a_full_training_that_does_not_fit_is_refused_with_the_settings_that_do(monkeypatch, settings):
    recipe, smaller = (recipes.load(recipes.find(SD35), overrides=(*FULL, *more)) for more in ((), settings))
    free = doctor_recipe.peak(smaller, 1, checkpointing=True) + doctor_recipe.FRAMEWORK
    last = (*settings, "train.gradient_checkpointing=true", "train.micro=1")
    finding = memory_finding(monkeypatch, free, *FULL)
    assert (finding.state, finding.way_out) == ("fail", " ".join(f"--set {setting}" for setting in last))
    needed = doctor_recipe.peak(recipe, recipe.train.micro, checkpointing=recipe.train.gradient_checkpointing)
    with pytest.raises(RecipeError, match=f"^adapter.kind full: memory needed: {needed / GIB:.2f} GiB at train.micro"):
        doctor_recipe.refuse_too_large(recipe)
    doctor_recipe.refuse_too_large(recipes.load(recipes.find(SD35), overrides=(*FULL, *last)))


def test_a_full_training_that_fits_nowhere_has_a_lora_as_its_way_out(monkeypatch):
    finding = memory_finding(monkeypatch, 20 * GIB, *FULL)
    assert finding.way_out == "not even one row fits: a larger device, or adapter.kind=lora"
    unknown = ("model.pretrained=someone/else", *FULL)
    doctor_recipe.refuse_too_large(recipes.load(recipes.find(SD35), overrides=unknown))
    own = ("routing.geneval.base=someone/else", "routing.geneval.family=sd3", *FULL)
    doctor_recipe.refuse_too_large(recipes.load(recipes.find(SD35), overrides=own))


def test_an_evaluation_and_a_push_need_the_base_with_its_text_encoders_and_a_merge_neither(monkeypatch):
    def findings(stage, free, **sections):
        monkeypatch.setattr(machine, "devices", lambda: [Device("A", 80 * GIB, free, True)])
        tree = {"stage": stage, "model": {"pretrained": "stabilityai/stable-diffusion-3.5-medium"}, **sections}
        return by_name(doctor_recipe.recipe_findings(recipes.build(tree)))

    parameters = 2_243_171_520 + 384**2 * 1536 + 5_580_620_800
    free = 2 * parameters + doctor_recipe.FRAMEWORK
    suites = {"suites": ["pickscore"]}
    enough, little = (findings("eval", room, eval=suites)["memory needed"] for room in (free, free - 1))
    assert (enough.state, little.state) == ("ok", "fail")
    assert enough.text.startswith(f"{gib(2 * parameters)} for the base and")
    assert findings("push", free, run="r")["memory needed"].text.startswith(f"{gib(4 * parameters)} for the base and")
    for result in (
        findings("merge", free, adapters=["runs/a"]),
        findings("eval", free, eval={**suites, "import_scores": "there"}),
    ):
        assert not {"memory needed", "devices", "base"} & result.keys()


def test_rewards_prompts_and_base_of_a_recipe(monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    monkeypatch.setattr(machine, "absent", lambda extra: ["rapidocr"] if extra == "ocr" else [])
    findings = by_name(doctor_recipe.recipe_findings(recipes.load(recipes.find("sd35m/eval-all"))))
    assert (findings["reward ocr"].state, findings["reward ocr"].way_out) == ("fail", "pip install 'flowopd[ocr]'")
    assert (findings["reward deqa"].state, findings["reward deqa"].way_out) == ("warn", "flowopd rewards serve deqa")
    assert findings["base"].state in {"warn", "fail"}
    remote = ["rewards.0.name=remote:http://127.0.0.1:18085"]
    findings = by_name(doctor_recipe.recipe_findings(recipes.load(recipes.find("sd35m/teacher-ocr"), overrides=remote)))
    assert findings["reward remote:http://127.0.0.1:18085"].state == "warn"
    assert findings["prompts ocr"].way_out == "flowopd prompts fetch ocr-train"


def test_an_unknown_family_is_named_and_no_package_blamed():
    recipe = recipes.load(recipes.find("toy/teacher-ocr"), overrides=["model.family=none"])
    memory = by_name(doctor_recipe.recipe_findings(recipe))["memory needed"]
    assert (memory.state, memory.way_out) == ("fail", "")
    assert memory.text.startswith("no model 'none'")


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
