"""Classifier-free guidance over a network of one line: what it is given, and how both halves become one."""

import pytest
import torch

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.guidance import ClassifierFree

COND = Conditioning(torch.full((2, 1, 1), 5.0), neg_embeds=torch.full((2, 1, 1), 2.0))


def forward(latents, sigma, cond, adapters):
    """The text's only number everywhere."""
    return cond.embeds.view(-1, 1, 1, 1).expand_as(latents)


def velocity(guidance, *combine, cond=COND):
    return ClassifierFree(forward, *combine).velocity(torch.zeros(2, 1, 1, 1), torch.ones(2), cond, guidance, None)


def test_a_row_extrapolates_by_its_own_guidance():
    assert velocity([1.0, 3.0]).flatten().tolist() == [5.0, 2.0 + 3.0 * (5.0 - 2.0)]


def test_a_family_may_combine_the_halves_in_another_way():
    limited = velocity([1.0, 3.0], lambda negative, positive, scale: negative + scale * 0 + positive)
    assert limited.flatten().tolist() == [5.0, 7.0]


@pytest.mark.parametrize("guidance", [3.0, [3.0, 1.0]])
def test_masks_follow_their_halves(guidance):
    masks, mask = [], torch.tensor([[True, True], [True, False]])
    cond = Conditioning(torch.ones(2, 2, 1), None, mask, torch.zeros(2, 2, 1), None, ~mask)

    def record(latents, sigma, cond, adapters):
        masks.append(cond.mask)
        return latents

    ClassifierFree(record).velocity(torch.zeros(2, 1, 1, 1), torch.ones(2), cond, guidance, None)
    guided = ~mask if guidance == 3.0 else ~mask[:1]
    assert torch.equal(masks[0], torch.cat([guided, mask]))


def test_guidance_without_the_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        velocity(2.0, cond=Conditioning(torch.ones(2, 1, 1)))
