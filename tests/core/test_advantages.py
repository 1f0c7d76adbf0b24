"""Group-relative credit by hand, and what invalid scores may not do."""

from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.advantages import flat_groups, group_advantages, summed_advantages

REWARDS = torch.tensor([1.0, 3.0, 10.0, 20.0], dtype=torch.float64)
GROUP = torch.tensor([7, 7, 2, 2])
rewards = st.lists(st.floats(-5, 5), min_size=6, max_size=6)


def test_deviation_of_each_group():
    got = group_advantages(REWARDS, GROUP, std="group", eps=0.0)
    assert got.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])


def test_deviation_of_all_samples():
    got = group_advantages(REWARDS, GROUP, std="global", eps=0.0)
    deviation = (sum((r - 8.5) ** 2 for r in (1, 3, 10, 20)) / 4) ** 0.5
    assert got.tolist() == pytest.approx([value / deviation for value in (-1, 1, -5, 5)])


def mixed_draw():
    """Eight groups of 24: four of scores in [0, 1], four of a score that hardly varies, as PickScore's over 26."""
    random = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 2, (4, 24), generator=random).double()
    narrow = 0.83 + 0.02 * torch.randn(4, 1, generator=random) + 0.01 * torch.randn(4, 24, generator=random)
    group = torch.arange(8).repeat_interleave(24)
    return torch.cat([wide.flatten(), narrow.double().flatten()]), group, (group > 3).long()


def rms(values):
    return float(values.square().mean().sqrt())


def test_the_global_deviation_is_that_of_the_same_task():
    rewards, group, task = mixed_draw()
    got = group_advantages(rewards, group, task=task, eps=0.0)
    for rows in (task == 0, task == 1):
        assert torch.equal(got[rows], group_advantages(rewards[rows], group[rows], eps=0.0))
        values = rewards[rows].view(4, 24).tolist()
        spread = pstdev(value for row in values for value in row)
        expected = [(value - fmean(row)) / spread for row in values for value in row]
        assert got[rows].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_narrow_reward_does_not_vanish_beside_a_wide_one():
    rewards, group, task = mixed_draw()
    together, apart = (group_advantages(rewards, group, task=t)[task == 1] for t in (None, task))
    assert rms(together) < 0.05
    assert rms(apart) > 0.4


def test_one_task_is_as_no_task_to_the_bit_and_invalid_rows_stay_out_of_its_deviation():
    rewards, group, task = mixed_draw()
    one = torch.full_like(group, 5)
    for std in ("group", "global"):
        assert torch.equal(
            group_advantages(rewards, group, task=one, std=std), group_advantages(rewards, group, std=std)
        )
    valid = torch.arange(len(rewards)) % 5 > 0
    broken = torch.where(valid, rewards, 1e9)
    got = group_advantages(broken, group, valid, task=task)
    expected = group_advantages(rewards[valid], group[valid], task=task[valid])
    torch.testing.assert_close(got[valid], expected, atol=1e-12, rtol=0)
    assert (got[~valid] == 0).all()


def test_each_reward_is_normalized_alone_by_hand():
    """Two binary rewards, the second of which varies less: four sums of two values become four advantages."""
    first, second = [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    group = torch.zeros(4, dtype=torch.long)
    got = summed_advantages([torch.tensor(r).double() for r in (first, second)], [0.5, -2.0], group, eps=0.0)
    small = 0.1875**0.5  # of one success in four
    expected = [0.5 * (a - 0.5) / 0.5 - 2 * (b - 0.25) / small for a, b in zip(first, second, strict=True)]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


def test_rewards_that_cancel_in_their_sum_still_teach():
    scores, group = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])], torch.tensor([3, 3, 5])
    assert group_advantages(scores[0] + scores[1], group).tolist() == [0, 0, 0]
    got = summed_advantages(scores, [1.0, 3.0], group, std="group", eps=0.0)
    assert got.tolist() == pytest.approx([-2.0, 2.0, 0.0])


@pytest.mark.parametrize("std", ["group", "global"])
def test_absent_scores_of_a_reward_are_left_out_of_it_alone(std):
    """A reward of one task, and one of all that failed once: each as if drawn without the pictures it lacks."""
    nan, group, task = torch.nan, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    own = torch.tensor([1.0, 2.0, 4.0, nan, nan, nan]).double()
    common = torch.tensor([0.1, nan, 0.5, 0.2, 0.4, 0.9]).double()
    got = summed_advantages([own, common], [1.0, 0.5], group, task=task, std=std)
    scored = torch.tensor([0, 2, 3, 4, 5])
    expected = torch.zeros(6).double()
    expected[:3] += group_advantages(own[:3], group[:3], std=std)
    expected[scored] += 0.5 * group_advantages(common[scored], group[scored], task=task[scored], std=std)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_epsilon_is_added_to_the_deviation():
    got = group_advantages(REWARDS, GROUP, std="group", eps=1.0)
    assert got.tolist() == pytest.approx([-0.5, 0.5, -5 / 6, 5 / 6])


@pytest.mark.parametrize("std", ["group", "global"])
def test_invalid_rows_get_zero_and_leave_the_others_alone(std):
    with_broken = torch.cat([REWARDS, torch.tensor([torch.nan, 1e9]).double()])
    group, valid = torch.tensor([7, 7, 2, 2, 7, 2]), torch.tensor([True] * 4 + [False] * 2)
    got = group_advantages(with_broken, group, valid, std=std)
    assert torch.equal(got[:4], group_advantages(REWARDS, GROUP, std=std))
    assert got[4:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("std", ["group", "global"])
def test_no_valid_row_means_no_credit(std):
    got = group_advantages(REWARDS, GROUP, torch.zeros(4, dtype=torch.bool), std=std)
    assert got.tolist() == [0.0] * 4


@given(rewards, st.floats(-3, 3), st.permutations(range(6)))
def test_shifts_and_the_order_of_samples_change_nothing(values, shift, order):
    reward, group = torch.tensor(values).double(), torch.tensor([0, 0, 0, 1, 1, 1])
    got = group_advantages(reward, group, std="global", eps=0.01)
    rows = torch.tensor(order)
    torch.testing.assert_close(group_advantages(reward[rows] + shift, group[rows], eps=0.01), got[rows])
    torch.testing.assert_close(got.view(2, 3).sum(dim=1), torch.zeros(2).double())


def test_flat_groups_are_named():
    rewards, group = torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 5.0]), torch.tensor([7, 7, 2, 2, 4, 4])
    assert flat_groups(rewards, group) == [7]
    assert flat_groups(rewards, group, torch.tensor([True, True, True, True, True, False])) == [4, 7]


@pytest.mark.parametrize("value", [0.7, 0.9, 1 / 3, 21.3])
@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("std", ["group", "global"])
def test_equal_rewards_are_flat_and_teach_nothing_however_their_sum_is_rounded(value, size, std):
    rewards, group = torch.full((size,), value), torch.zeros(size, dtype=torch.long)
    assert flat_groups(rewards, group) == [0]
    assert group_advantages(rewards, group, std=std).tolist() == [0.0] * size
    beside = torch.cat([rewards, rewards + torch.arange(size)])
    advantages = group_advantages(beside, torch.arange(2).repeat_interleave(size), std=std)
    assert advantages[:size].tolist() == [0.0] * size
    assert advantages[size:].abs().min() > 0


@pytest.mark.parametrize("std", ["group", "global"])
def test_close_rewards_far_from_zero_are_not_rounded(std):
    values = [[21.25 + 2**-18 * k for k in (0, 1, 1, 3, 4, 7)], [20.5 - 2**-18 * k for k in (5, 0, 2, 2, 9, 1)]]
    rewards, group = torch.tensor(values).flatten(), torch.arange(2).repeat_interleave(6)
    assert rewards.double().tolist() == [value for row in values for value in row]  # float32 holds them exactly
    spreads = [pstdev(row if std == "group" else values[0] + values[1]) for row in values]
    expected = [(v - fmean(row)) / (s + 1e-4) for row, s in zip(values, spreads, strict=True) for v in row]
    assert group_advantages(rewards, group, std=std).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
