"""What a resumed run may change."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.runs import provenance
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.runs.manifest import Inputs, Parent
from flowopd_cli.runs.provenance import MAY_CHANGE, MAY_MOVE

DISTILL = {
    "stage": "distill",
    "prompts": [{"source": "toy:ocr"}],
    "routing": {"ocr": {"ref": "runs/a"}},
    "rewards": [{"name": "toy-ocr"}],
}


def changed(override):
    one, two = (recipes.build(DISTILL, overrides=o).model_dump(mode="json") for o in ((), (override,)))
    return list(provenance.changed_fields(one, two))


@pytest.mark.parametrize(
    "override",
    [
        *("train.iterations=7", "train.checkpoint_every=3", "train.keep_checkpoints=5", "train.sample_every=1"),
        *("train.keep_best={metric: loss, direction: min}", "train.keep_best.metric=loss", "train.track=tensorboard"),
        *("train.processes=2", "train.micro=1", "train.rollout_batch=2", "model.device=cpu"),
        *("opd.log_rewards_every=3", "routing.ocr.ref=elsewhere", "anchor.ref=elsewhere", "adapter.init=elsewhere"),
        *("model.pretrained=elsewhere", "prompts.0.source=elsewhere", "model.too_long=refuse"),
        "adapter.targets=attn.to_q",
    ],
)
def test_what_changes_no_result_or_has_only_moved_may_change(override):
    assert changed(override) == []


@pytest.mark.parametrize(
    "override",
    [
        *("train.weight_decay=1", "train.groups=3", "seed=1", "sampling.eta=0.1", "adapter.rank=2", "anchor.beta=1"),
        *("rewards.0.weight=2", "prompts.0.limit=1", "routing.ocr.guidance=3", "model.revision=x", "opd.clip=1"),
    ],
)
def test_anything_else_may_not(override):
    assert changed(override) == [override.partition("=")[0]]


def test_the_lists_name_fields_that_exist():
    fields = {*provenance.flat(recipes.build(DISTILL).model_dump(mode="json"))}
    stars = {key.replace("routing.ocr", "routing.*").replace("prompts.0", "prompts.*") for key in fields}
    assert stars >= MAY_CHANGE
    assert {name for name in MAY_MOVE if not name.startswith("teachers")} <= stars


def test_changed_parents_are_found_without_a_model(tmp_path):
    names = ("same", "other", "gone")
    for folder in (tmp_path / name for name in names):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
    parents = [AdapterRef.parse(str(tmp_path / name)).resolve().parent(f"teacher_{name}") for name in names]
    parents += [Parent(role="anchor", ref="base"), Parent(role="init", ref="hub:me/x", sha256="1")]
    recorded = Inputs(parents=tuple(parents))
    assert provenance.changed_parents(recorded, Adapters()) == []
    (tmp_path / "other" / "adapter_model.safetensors").write_bytes(b"others")
    (tmp_path / "gone").rename(tmp_path / "moved")
    (message,) = provenance.changed_parents(recorded, Adapters())
    assert message.startswith(f"teacher_other {tmp_path / 'other'} was ")
