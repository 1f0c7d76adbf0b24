"""Registries: lazy loading, near names, plugins, collisions, rewards of one's own."""

import sys
from importlib.metadata import EntryPoint

import pytest

from flowopd_cli import registry
from flowopd_cli.errors import RecipeError, RewardError
from flowopd_cli.registry import REWARDS, SUITES, Registry


def plugins(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


def test_nothing_is_imported_before_load(monkeypatch):
    sys.modules.pop("colorsys", None)
    table = Registry("thing", {"hue": "colorsys:rgb_to_hsv"})
    assert table.names() == ["hue"]
    table.check("hue")
    assert "colorsys" not in sys.modules
    assert table.load("hue")(0.0, 0.0, 0.0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("table", "name", "error", "message"),
    [
        (
            Registry("thing", {"hue": "a:b", "saturation": "a:c"}),
            *("hu", RecipeError, r"no thing 'hu', did you mean 'hue'\?; known: hue, saturation"),
        ),
        (REWARDS, "genevl", RewardError, "did you mean 'geneval'"),
        (SUITES, "remote:http://a", RecipeError, "no suite 'remote:http://a'"),
        (SUITES, "a.b:c", RecipeError, r"no suite 'a\.b:c'"),
        (Registry("thing", {"broken": "no_such_module_here:x"}), "broken", RecipeError, "cannot be loaded"),
        (Registry("thing", {"broken": "colorsys:no_such_attribute"}), "broken", RecipeError, "cannot be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_that_cannot_be_loaded_are_refused(table, name, error, message):
    with pytest.raises(error, match=message):
        table.load(name)


def test_own_reward_from_the_working_directory(monkeypatch, tmp_path):
    (tmp_path / "my_reward_module.py").write_text("class Mine:\n    value = 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry.REWARDS.check("my_reward_module:Mine")
    assert registry.REWARDS.load("my_reward_module:Mine.value") == 3
    with pytest.raises(RewardError, match="no module 'my_absent_module'"):
        registry.REWARDS.check("my_absent_module:f")


def test_the_working_directory_hides_nothing_that_is_installed(monkeypatch, tmp_path):
    for name in ("colorsys", "iniconfig"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n", encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    before = list(sys.path)
    table = Registry("thing", {"hue": "colorsys:rgb_to_hsv"}, open_ended=True)
    table.check("hue")
    assert callable(table.load("hue"))
    assert sys.path == before
    assert callable(table.load("iniconfig:IniConfig"))
    assert sys.path == [*before, str(tmp_path)]


def test_code_is_what_is_not_registered():
    assert REWARDS.is_code("my.module:attr")
    assert not any(map(REWARDS.is_code, ["toy-ocr", "remote:http://a:1", "no module"]))
    assert not registry.PROMPTS.is_code("toy:ocr")


def test_rewards_at_an_address():
    registry.REWARDS.check("remote:http://127.0.0.1:1")
    made = registry.REWARDS.load("remote:http://a:1,https://b/c")
    assert made.func.__name__ == "RemoteReward"
    assert made.args == ("http://a:1,https://b/c",)


@pytest.mark.parametrize("name", ["remote:", "remote:a:1", "remote:ftp://a", "remote:http://", "remote:http://a,b"])
def test_addresses_that_are_none(name):
    with pytest.raises(RewardError, match=r"write it as remote:http://HOST:PORT"):
        registry.REWARDS.check(name)


def test_a_module_of_ones_own_may_be_called_remote():
    assert registry.REWARDS.target("remote:score") == "remote:score"


def test_entry_points_join_the_table(monkeypatch):
    plugins(monkeypatch, EntryPoint("tint", "colorsys:hsv_to_rgb", "flowopd.thing"))
    table = Registry("thing", {"hue": "colorsys:rgb_to_hsv"})
    assert table.names() == ["hue", "tint"]
    assert callable(table.load("tint"))


@pytest.mark.parametrize("names", [("hue",), ("tint", "tint")])
def test_a_name_claimed_twice_is_refused(monkeypatch, names):
    points = [EntryPoint(name, f"other{number}:x", "flowopd.thing") for number, name in enumerate(names)]
    plugins(monkeypatch, *points)
    with pytest.raises(RecipeError, match="is claimed by"):
        Registry("thing", {"hue": "colorsys:rgb_to_hsv"}).names()


def test_names_on_the_toy_base_are_those_of_the_toy():
    for table, name, base, expected in (
        (REWARDS, "geneval", "toy", "toy-geneval"),
        (REWARDS, "toy-ocr", "toy", "toy-ocr"),
        (REWARDS, "my.module:f", "toy", "my.module:f"),
        (REWARDS, "remote:http://a:1", "toy", "remote:http://a:1"),
        (REWARDS, "geneval", "stabilityai/stable-diffusion-3.5-medium", "geneval"),
        (SUITES, "geneval", "toy", "toy-geneval"),
    ):
        assert table.on_base(name, base) == expected
    assert "toy" not in SUITES.target("geneval")


def test_every_shipped_prompt_source_has_its_tasks():
    assert set(registry.PROMPT_TASKS) == set(registry.PROMPTS.names())
