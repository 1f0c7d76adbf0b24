"""The scalars of YAML 1.2 (its specification, section 10.3.2), and texts that survive being written."""

from __future__ import annotations

import math

import pytest
import yaml

from flowopd_cli.system import yaml_files

TEXTS = [
    "yes",
    "No",
    "on",
    "off",
    "y",
    "1:30",
    "190:20:30",
    "1_000",
    "0b11",
    "2001-01-01",
    "=",
    "<<",
    "tRue",
    "1e",
    "0o8",
]
VALUES = {
    "010": 10,
    "-007": -7,
    "+12": 12,
    "0o17": 15,
    "0x3A": 58,
    "1e-4": 0.0001,
    "1E3": 1000.0,
    "+12e03": 12000.0,
    "-2E+05": -200000.0,
    ".5": 0.5,
    "0.": 0.0,
    "-.INF": -math.inf,
    "true": True,
    "FALSE": False,
    "~": None,
    "Null": None,
    "": None,
    "'010'": "010",
    '"true"': "true",
}


@pytest.mark.parametrize("text", TEXTS)
def test_scalars_of_yaml_1_1_alone_are_text(text):
    assert yaml_files.parse(f"a: {text}", "x") == {"a": text}


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_scalars_of_the_core_schema(text, value):
    result = yaml_files.parse(f"a: {text}", "x")["a"]
    assert (result, type(result)) == (value, type(value))


def test_keys_are_the_text_as_written():
    assert yaml_files.parse("yes: 1\n010: 2\nnull: 3", "x") == {"yes": 1, "010": 2, "null": 3}


def test_texts_are_written_so_that_both_versions_of_yaml_read_them_back():
    tree = {"a": [*TEXTS, *VALUES, "12e4567", "0o17", "plain"], "1e3": [1e-5, 1e22, 3, True, None]}
    text = yaml_files.dump(tree)
    assert yaml_files.parse(text, "x") == tree
    assert yaml.safe_load(text) == tree


def test_a_value_is_located_by_its_path():
    text = "a:\n  b:\n  - {c: 010}\n"
    assert yaml_files.locate(text, ["a", "b", 0, "c"]) == (3, 10, "010")
    assert yaml_files.locate(text, ["a", "b", 1]) is None
    assert yaml_files.locate(text, ["a", "b", 0, "c", "d"]) is None
