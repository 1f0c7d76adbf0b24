"""Targets of an adapter against the layers of a base, and patterns that match given layers alone."""

import re

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from flowopd_cli.errors import RecipeError
from flowopd_cli.models.files.targets import anchored, match_exactly, pattern_keys, short_names, target_layers

LINEAR = (
    *("proj_out", "norm_out.linear", "blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "blocks.0.attn2.to_q"),
    *("blocks.0.ff.net.0.proj", "singles.0.attn.to_q", "singles.0.proj_out"),
)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (["attn.to_q"], ["blocks.0.attn.to_q", "singles.0.attn.to_q"]),
        (["proj_out"], ["proj_out", "singles.0.proj_out"]),
        (["singles.0.proj_out", "ff.net.0.proj"], ["blocks.0.ff.net.0.proj", "singles.0.proj_out"]),
        (["attention"], [name for name in LINEAR if "attn" in name]),
        (["attention", "norm_out.linear"], ["norm_out.linear", *(name for name in LINEAR if "attn" in name)]),
        (["all-linear"], list(LINEAR)),
    ],
)
def test_targets_match_linear_layers_by_the_end_of_their_names_or_by_a_word(targets, layers):
    assert list(target_layers(targets, LINEAR)) == layers


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["attn.to_q", "attn.to_qq"], r"'attn.to_qq' matches no linear layer of this base, did you mean 'attn.to_q'\?"),
        (["to_out"], r"'to_out' .*, did you mean 'to_out.0'\?"),
        (["all_linear"], r"did you mean 'all-linear'\?"),
        (["norm_q"], "'norm_q' matches no linear layer"),
        (["o_q"], "'o_q' matches no linear layer"),
        (["zzz"], "'zzz' matches no linear layer of this base; its layers are proj_out, norm_out.linear, attn.to_q, "),
        ([], "adapter.targets is empty"),
    ],
)
def test_a_target_without_a_linear_layer_is_refused(targets, message):
    with pytest.raises(RecipeError, match=message):
        target_layers(targets, LINEAR)


def test_short_names_leave_out_the_block():
    short = ("proj_out", "norm_out.linear", "attn.to_q", "attn.to_out.0", "attn2.to_q", "ff.net.0.proj")
    assert short_names(LINEAR) == short


@pytest.mark.parametrize("chosen", [LINEAR[:1], LINEAR[2:3], LINEAR[5:], LINEAR])
def test_an_anchored_pattern_is_to_peft_these_layers_alone(chosen):
    config = LoraConfig(target_modules=anchored(chosen))
    names = (*LINEAR, "x.proj_out", "blocks_0.attn.to_q", "proj_out.proj_out")
    assert tuple(name for name in names if check_target_module_exists(config, name)) == chosen


@pytest.mark.parametrize(
    ("targets", "layers", "exact"),
    [
        (["to_q"], [name for name in LINEAR if name.endswith("to_q")], True),
        (["to_q"], ["blocks.0.attn.to_q"], False),
        (["proj_out"], ["proj_out"], False),
        (["proj_out"], ["proj_out", "singles.0.proj_out"], True),
        ([], [], True),
    ],
)
def test_targets_are_exact_if_they_match_no_other_module(targets, layers, exact):
    assert match_exactly(targets, layers, LINEAR) is exact


def test_keys_of_patterns_are_anchored_where_another_layer_ends_like_them():
    keys = pattern_keys(LINEAR)
    assert [name for name, key in keys.items() if key != name] == ["proj_out"]
    for name, key in keys.items():
        assert [other for other in LINEAR if re.match(rf"(.*\.)?({key})$", other)] == [name]
