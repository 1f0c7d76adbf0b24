"""The rows of ``--dry-run`` about memory."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.memory import figures, footprint
from flowopd_cli.errors import RecipeError

GIB = 2**30


def distill(**sections):
    data = {"stage": "distill", "prompts": [{"source": "toy:geneval"}], "routing": {"geneval": {"ref": "runs/t"}}}
    return recipes.build({**data, **sections})


def test_the_figures_of_a_dry_run():
    rows = figures(distill())
    assert rows["memory: base"] == f"{(2_243_171_520 + 384**2 * 1536) * 2 / GIB:.2f} GiB"
    assert rows["memory: text encoders, before training"] == "10.39 GiB"
    one = footprint(distill()).adapter * 4 / GIB
    held = (2_243_171_520 + 384**2 * 1536 + 5_580_620_800) * 2 / GIB + 3 * one
    assert rows["memory in all, while prompts are encoded"] == f"{held:.2f} GiB"
    assert rows["memory: adapters"] == f"{3 * one:.2f} GiB"  # policy, average, one teacher; the anchor is the base
    more = figures(distill(routing={task: {"ref": f"runs/{task}"} for task in "abcd"}, anchor={"ref": "runs/q"}))
    assert more["memory: adapters"] == f"{7 * one:.2f} GiB"


@pytest.mark.parametrize(("updates", "rows"), [(1, 64), (2, 384)])
def test_the_fused_schedule_learns_the_rows_of_one_step(updates, rows):
    train = {"micro": 384, "groups": 64, "group_size": 1, "updates": updates}
    counted = figures(distill(train=train, model={"pretrained": "small"}))["memory counted for"]
    assert counted.endswith(f"{rows} rows learning at once")


def test_the_memory_of_each_precision():
    def peaks(rows):
        return [float(rows[f"memory, model.quantize {kind}"].split()[0]) for kind in ("none", "int8", "nf4")]

    rows, coded = figures(distill()), figures(distill(model={"quantize": "nf4"}))
    none, eight, four = peaks(rows)
    weights = 2_222_456_832  # in the linear layers of the blocks; a scale of two bytes for each 64 of them
    largest = 6 * 1536 * 9 // 6 * 1536  # the modulation of a block with two attentions
    assert none - eight == pytest.approx((weights * (2 - 1 - 2 / 64) - 2 * largest) / GIB, abs=0.01)
    assert none - four == pytest.approx((weights * (2 - 0.5 - 2 / 64) - 4 * largest) / GIB, abs=0.01)
    assert peaks(coded) == [none, eight, four]
    assert rows["memory in all, without and with checkpointing"] == rows["memory, model.quantize none"]
    assert coded["memory in all, without and with checkpointing"] == coded["memory, model.quantize nf4"]
    assert coded["memory counted for"].startswith("nf4 and bfloat16 base, float32 adapters")
    evaluation = figures(recipes.build({"stage": "eval", "model": {"quantize": "int8"}}))
    base = (2_243_171_520 + 384**2 * 1536) * 2 / GIB
    assert list(evaluation) == [f"memory, model.quantize {kind}" for kind in ("none", "int8", "nf4")]
    assert evaluation["memory, model.quantize none"] == f"{base + 5_580_620_800 * 2 / GIB:.2f} GiB"
    assert figures(distill(model={"shard": True}))["memory, model.quantize nf4"] == "not sharded"
    assert figures(recipes.build({"stage": "merge", "adapters": ["a", "b"]})) == {}


def test_a_quantized_base_is_not_sharded():
    with pytest.raises(RecipeError, match=r"base in nf4 cannot be sharded: set model.quantize to none, or"):
        distill(model={"shard": True, "quantize": "nf4"})
    with pytest.raises(RecipeError, match="quantize is for a teacher with a base of its own"):
        distill(routing={"a": {"ref": "runs/a", "quantize": "nf4"}})


def test_an_unknown_base_is_named():
    rows = figures(distill(model={"pretrained": "someone/else"}))
    assert list(rows) == ["memory"]
    assert "someone/else" in rows["memory"]


def test_a_teachers_own_base_is_counted_by_itself():
    large = {"ref": "runs/l", "base": "sd3.5-large", "guidance": 1}
    parameters = 8_056_627_520 + 192**2 * 2432  # published, and positions
    alone, rows = figures(distill()), figures(distill(routing={"a": large, "b": {**large, "ref": "base"}}))
    held = float(rows["memory: teachers' own bases"].removesuffix(" GiB"))
    assert held == pytest.approx((2 * parameters + 0.2e9) / GIB, abs=0.2)  # with an adapter and prompts
    assert rows["memory: learning"] == alone["memory: learning"]
    assert rows["memory: text encoders, before training"] == alone["memory: text encoders, before training"]
    away = figures(distill(routing={"a": {**large, "offload": "cpu"}}))
    assert float(away["memory: teachers' own bases"].split()[0]) < 200  # MiB of prompts
    assert float(away["memory: sampling and labels"].split()[0]) > 2 * parameters / GIB
    small = figures(distill(routing={"a": {**large, "quantize": "nf4"}}))
    assert float(small["memory: teachers' own bases"].removesuffix(" GiB")) < 0.35 * held
    assert small["memory: base"] == alone["memory: base"]
    unknown = figures(distill(routing={"a": {"ref": "base", "base": "someone/else"}}))
    assert "someone/else" in unknown["memory"]


def test_a_full_student_counts_the_adapters_of_its_teachers():
    one, roles = footprint(distill()).adapter * 4 / GIB, {task: {"ref": f"runs/{task}"} for task in "ab"}
    rows = figures(distill(adapter={"kind": "full"}, routing=roles))
    assert rows["memory: adapters"] == f"{2 * one:.2f} GiB"
    copies = {"kind": "full", "copies": "cpu"}
    away = figures(distill(adapter=copies, routing=roles, model={"device": "cuda"}))
    assert away["memory of the host: copies"] == f"{4 * 2_243_171_520 / GIB:.2f} GiB"  # the average
    assert "memory of the host: copies" not in rows


def test_a_teacher_of_another_family_has_an_adapter_on_its_own_layers():
    rows = figures(distill(routing={"a": {"ref": "runs/a", "base": "z-image", "family": "z-image"}}))
    assert float(rows["memory: teachers' own bases"].removesuffix(" GiB")) > 11


def test_an_evaluation_of_a_full_model_holds_it_beside_the_base_at_first(tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).touch()
    dev = {"pretrained": "black-forest-labs/FLUX.1-dev", "family": "flux"}
    rows = figures(recipes.build({"stage": "eval", "model": dev, "adapter": str(tmp_path)}))
    assert rows == {"memory, model.quantize none": f"{2 * 2 * 11_901_408_320 / GIB:.2f} GiB"}
