"""Figures of an iteration: means by the counts that belong to them, whoever counted."""

import pytest
import torch

from flowopd_cli.core.types import Loss, PartialMeans
from flowopd_cli.train.meter import Meter, means


def loss(total, count, parts=None):
    return Loss(torch.tensor(total), count, {"kl": torch.tensor(total)}, parts=parts)


def test_a_part_is_a_mean_over_its_own_rows_in_whatever_portions_it_comes():
    one, two = Meter(), Meter()
    one.add(loss(6.0, 3, PartialMeans(("kl/a", "kl/b"), torch.tensor([[2.0, 4.0], [1.0, 2.0]]))))
    one.add(loss(4.0, 1, PartialMeans(("kl/b",), torch.tensor([[4.0], [1.0]]))))
    two.add(loss(10.0, 1, PartialMeans(("kl/a", "kl/c"), torch.tensor([[10.0, 0.0], [1.0, 0.0]]))))
    assert means([one, two]) == pytest.approx({"kl": 4.0, "kl/a": 6.0, "kl/b": 8.0 / 3})


def test_a_process_without_rows_changes_nothing():
    one = Meter()
    one.add(loss(6.0, 3))
    assert means([Meter(), one]) == {"kl": 2.0}
    assert means([Meter()]) == {}
