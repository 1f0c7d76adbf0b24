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


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no thing 'hu', did you mean 'hue'\?; known: hue, saturation"):
        Registry("thing", {"hue": "a:b", "saturation": "a:c"}).load("hu")


def test_rewards_raise_their_own_error():
    with pytest.raises(RewardError, match="did you mean 'geneval'"):
        registry.REWARDS.target("genevl")


@pytest.mark.parametrize("target", ["no_such_module_here:x", "colorsys:no_such_attribute"])
def test_a_row_that_cannot_be_loaded(target):
    with pytest.raises(RecipeError, match="cannot be loaded"):
        Registry("thing", {"broken": target}).load("broken")


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
    assert REWARDS.on_base("remote:http://a:1", "toy") == "remote:http://a:1"


@pytest.mark.parametrize("name", ["remote:", "remote:a:1", "remote:ftp://a", "remote:http://", "remote:http://a,b"])
def test_addresses_that_are_none(name):
    with pytest.raises(RewardError, match=r"write it as remote:http://HOST:PORT"):
        registry.REWARDS.check(name)


def test_a_module_of_ones_own_may_be_called_remote():
    assert registry.REWARDS.target("remote:score") == "remote:score"


def test_only_rewards_are_open_ended():
    with pytest.raises(RecipeError, match=r"no suite 'remote:http://a'"):
        registry.SUITES.target("remote:http://a")
    with pytest.raises(RecipeError, match=r"no suite 'a\.b:c'"):
        registry.SUITES.target("a.b:c")


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


def test_toy_alias_of_rewards():
    assert REWARDS.on_base("geneval", "toy") == "toy-geneval"
    assert REWARDS.on_base("toy-ocr", "toy") == "toy-ocr"
    assert REWARDS.on_base("my.module:f", "toy") == "my.module:f"
    assert REWARDS.on_base("geneval", "stabilityai/stable-diffusion-3.5-medium") == "geneval"


def test_toy_alias_of_suites():
    assert SUITES.on_base("geneval", "toy") == "toy-geneval"
    assert SUITES.on_base("toy-ocr", "toy") == "toy-ocr"
    assert SUITES.on_base("geneval", "stabilityai/stable-diffusion-3.5-medium") == "geneval"
    assert "toy" not in registry.SUITES.target("geneval")


def test_every_shipped_prompt_source_says_its_tasks():
    assert set(registry.PROMPT_TASKS) == set(registry.PROMPTS.names())
