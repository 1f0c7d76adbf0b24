"""Cold-start experience: the pictures that are kept and the rows that are made of them."""

import dataclasses

import pytest
import torch
from support.tiny import TEXTS, make_draw, make_sampler

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.train import collect, supervised
from flowopd_cli.train.routes import Teacher

TEACHERS = {"a": Teacher("other", 1.0), "b": Teacher("third", 3.0)}


def brightness(images, prompts):
    """A made-up reward: the mean of the picture."""
    total = images.flatten(1).mean(dim=1)
    return RewardResult(total, {"brightness": total}, torch.ones(len(prompts), dtype=torch.bool))


def scored(total, valid):
    """A reward of given figures, whatever the pictures are."""
    return lambda images, prompts: RewardResult(torch.tensor(total), {}, torch.tensor(valid))


def test_noised_rows_lie_between_picture_and_noise(trainee):
    clean, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    batch = supervised.noised(clean, trainee.encode(TEXTS[:2]), torch.tensor([0.25, 1.0]), noise)
    torch.testing.assert_close(batch.latents[0], 0.75 * clean[0] + 0.25 * noise[0])
    assert torch.equal(batch.latents[1], noise[1])
    assert torch.equal(batch.target_velocity, noise - clean)
    torch.testing.assert_close(batch.latents[0] - 0.25 * batch.target_velocity[0], clean[0], atol=1e-6, rtol=1e-5)


def test_the_best_of_each_group_is_kept(trainee):
    draw, sampler = make_draw("aaabbb", "001122"), make_sampler(trainee, kernel="ode")
    kept = supervised.best_of_group(trainee, sampler, draw, TEACHERS, brightness)
    assert sorted(kept.group.tolist()) == [0, 1, 1, 2]  # group 1 has a picture of either teacher
    for task, teacher in TEACHERS.items():
        rows = [i for i, p in enumerate(draw.prompts) if p.task == task]
        part = collect.Draw(tuple(draw.prompts[i] for i in rows), draw.group[rows], tuple(draw.seeds[i] for i in rows))
        guided = dataclasses.replace(sampler, guidance=teacher.guidance)
        drawn = collect.with_images(trainee, collect.rollout(trainee, guided, part, adapter=teacher.adapter))
        light = drawn.images.flatten(1).mean(dim=1)
        best = [max((r for r in range(3) if part.group[r] == g), key=lambda r: light[r]) for g in part.group.unique()]
        mine = [i for i, p in enumerate(kept.prompts) if p.task == task]
        assert [kept.prompts[i].id for i in mine] == [part.prompts[r].id for r in best]
        torch.testing.assert_close(kept.trajectory.final[mine], drawn.trajectory.final[best], atol=1e-5, rtol=1e-5)


def test_without_a_score_the_first_of_each_group_is_kept(trainee):
    kept = supervised.best_of_group(trainee, make_sampler(trainee), make_draw(), TEACHERS, None)
    assert [prompt.id for prompt in kept.prompts] == ["p0", "p2"]
    assert kept.trajectory.log_probs is None
    assert len(kept.cond) == len(kept.trajectory.latents) == 2


def test_groups_of_invalid_scores_alone_are_left_out(trainee):
    sampler, one = make_sampler(trainee), {"a": TEACHERS["a"]}
    score = scored([9.0, 9.0, 1.0, 2.0], [False, False, False, True])
    kept = supervised.best_of_group(trainee, sampler, make_draw("aaaa"), one, score)
    assert [prompt.id for prompt in kept.prompts] == ["p3"]


def test_a_task_of_invalid_scores_alone_leaves_the_other_tasks_pictures(trainee):
    def only_a(images, prompts):
        valid = torch.tensor([prompt.task == "a" for prompt in prompts])
        return RewardResult(torch.zeros(len(prompts)), {}, valid)

    kept = supervised.best_of_group(trainee, make_sampler(trainee), make_draw(), TEACHERS, only_a)
    assert [prompt.task for prompt in kept.prompts] == ["a"]


def pictures(model, latents):
    """One picture of each text."""
    texts = TEXTS[: len(latents)]
    return supervised.Pictures(latents, model.encode(texts), tuple(Prompt(text, text, "a") for text in texts))


def test_cold_start_rows_are_kept_pictures_with_their_own_prompt(model):
    latents = torch.stack([torch.full((4, 4, 4), float(i)) for i in range(3)])
    rows = supervised.sft_rows(pictures(model, latents), 64, seed=0, mean=0.0, std=1.0)
    level = rows.sigma.view(-1, 1, 1, 1)
    clean = (rows.latents - level * rows.target_velocity).mean(dim=(1, 2, 3)).round().long()
    assert set(clean.tolist()) == {0, 1, 2}
    assert torch.equal(rows.cond.embeds, model.encode([TEXTS[i] for i in clean]).embeds)
    assert [prompt.text for prompt in rows.prompts] == [TEXTS[i] for i in clean]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_cold_start_levels_are_logit_normal(model, mean, std):
    sigma = supervised.sft_rows(pictures(model, torch.zeros(1, 4, 4, 4)), 2000, seed=0, mean=mean, std=std).sigma
    logits = torch.log(sigma / (1 - sigma))
    assert float(logits.mean()) == pytest.approx(mean, abs=0.06)
    assert float(logits.std()) == pytest.approx(std, rel=0.05)


def test_a_process_without_a_group_keeps_nothing(trainee):
    draw = collect.Draw((), torch.zeros(0, dtype=torch.long), ())
    kept = supervised.best_of_group(trainee, make_sampler(trainee, kernel="ode"), draw, TEACHERS, brightness)
    assert len(kept.prompts) == len(kept.cond) == len(kept.trajectory.latents) == 0
