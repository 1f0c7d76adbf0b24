"""The rows of ``--dry-run`` about memory."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.memory import figures, footprint

GIB = 2**30


def distill(**sections):
    data = {"stage": "distill", "prompts": [{"source": "toy:geneval"}], "routing": {"geneval": {"ref": "runs/t"}}}
    return recipes.build({**data, **sections})


def test_the_figures_of_a_dry_run():
    rows = figures(distill())
    assert rows["memory: base"] == f"{(2_243_171_520 + 384**2 * 1536) * 2 / GIB:.2f} GiB"
    assert rows["memory: text encoders, before training"] == "10.39 GiB"
    one = footprint(distill()).adapter * 4 / GIB
    assert rows["memory: adapters"] == f"{3 * one:.2f} GiB"  # policy, average, one teacher; the anchor is the base
    more = figures(distill(routing={task: {"ref": f"runs/{task}"} for task in "abcd"}, anchor={"ref": "runs/q"}))
    assert more["memory: adapters"] == f"{7 * one:.2f} GiB"


@pytest.mark.parametrize(("updates", "rows"), [(1, 64), (2, 384)])
def test_the_fused_schedule_learns_the_rows_of_one_step(updates, rows):
    train = {"micro": 384, "groups": 64, "group_size": 1, "updates": updates}
    counted = figures(distill(train=train, model={"pretrained": "small"}))["memory counted for"]
    assert counted.endswith(f"{rows} rows learning at once")


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
    unknown = figures(distill(routing={"a": {"ref": "base", "base": "someone/else"}}))
    assert "someone/else" in unknown["memory"]
