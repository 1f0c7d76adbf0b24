"""Warnings about watched figures that leave their baseline."""

import pytest

from flowopd_cli.train.health import HealthMonitor

BASELINE = {
    "latent_norm": 0.9,
    "brightness": 0.6,
    "saturation": 0.2,
    "high_frequency": 0.04,
    "diversity": 0.8,
    "reward/quality": 0.5,
    "kl_base": 0.0,
}


def watched(change, slope=0.01, iterations=20):
    """The warnings of a training with a rising reward whose watched figures change at iteration 10, for good."""
    rows = [{"iteration": i, "reward": 0.5 + slope * i, "reward_std": 9.0} for i in range(iterations + 1)]
    for row in rows[::5]:
        figures = BASELINE if row["iteration"] < 10 else BASELINE | change
        row |= {f"watch/{name}": value for name, value in figures.items()}
    monitor = HealthMonitor()
    return {i: texts for i, row in enumerate(rows) if (texts := monitor.observe(row))}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"latent_norm": 1.5}, "watch/latent_norm is 1.5, 1.7 times its baseline"),
        ({"latent_norm": 0.5}, "watch/latent_norm is 0.5, 0.56 times its baseline"),
        ({"brightness": 0.75}, "watch/brightness is 0.75, its baseline 0.6"),
        ({"saturation": 0.05}, "watch/saturation is 0.05, its baseline 0.2"),
        ({"high_frequency": 0.1}, "watch/high_frequency is 0.1, 2.5 times its baseline"),
        ({"diversity": 0.3}, "watch/diversity is 0.3, its baseline 0.8: the pictures of a prompt become alike"),
        ({"reward/quality": 0.35}, "watch/reward/quality has fallen to 0.35 from 0.5"),
    ],
)
def test_a_figure_that_leaves_its_baseline_is_warned_of_once_with_a_remedy(change, text):
    ((iteration, (warning,)),) = watched(change).items()
    assert iteration == 10
    assert warning.startswith(f"{text}, while the reward rises: look at samples/")
    assert "train.stop" in warning


def test_small_changes_and_a_reward_that_does_not_rise_give_no_warning():
    small = {"latent_norm": 1.1, "brightness": 0.65, "high_frequency": 0.05, "diversity": 0.6, "reward/quality": 0.45}
    assert watched(small | {"kl_base": 5.0}) == {}
    assert watched({"brightness": 0.9}, slope=-0.001) == {}
    assert watched({}) == {}
