"""Rows of several adapters in one forward: what they say, and when they share one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import TEXTS, assemble, load

from flowopd_cli.train.labels import MIXED_TOKENS, Rows, label, parcels, row_cost, velocity_of
from flowopd_cli.train.routes import Teacher, sole

NAMES = ["other", None, "third", "other", "policy", None]


def point(model, rows=6):
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(rows, 4, 4, 4, generator=generator), torch.linspace(0.9, 0.1, rows)
    return x, sigma, model.encode([TEXTS[i % 4] for i in range(rows)])


@pytest.mark.parametrize("guidance", [[1.0] * 6, [4.5] * 6, [1.0, 2.0, 3.0, 1.0, 0.0, 2.0]])
def test_each_row_of_a_mixed_batch_is_that_of_its_own_adapter(trainee, guidance):
    x, sigma, cond = point(trainee)
    teachers = [Teacher(name, scale) for name, scale in zip(NAMES, guidance, strict=True)]
    with trainee.adapters.use("policy"):
        mixed = velocity_of(trainee, teachers, x, sigma, cond)
        assert trainee.adapters.active == "policy"
    for i, teacher in enumerate(teachers):
        row = slice(i, i + 1)
        with trainee.adapters.use(teacher.adapter), torch.no_grad():
            alone = trainee.velocity(x[row], sigma[row], cond[row], guidance=teacher.guidance)
        torch.testing.assert_close(mixed[row], alone, atol=1e-6 * max(1, teacher.guidance), rtol=1e-5)
    assert not mixed.requires_grad


def test_a_mixed_batch_is_that_of_pefts_own_adapter_names(trainee):
    x, sigma, cond = point(trainee)
    ours = velocity_of(trainee, [Teacher(name, 1.0) for name in NAMES], x, sigma, cond)
    names = [name or "__base__" for name in NAMES]
    with trainee.adapters.use("policy"), torch.no_grad():
        for layer in trainee.adapters._adapted.values():
            layer.register_forward_pre_hook(lambda m, a, k: (a, {**k, "adapter_names": names}), with_kwargs=True)
        theirs = trainee.velocity(x, sigma, cond, guidance=1.0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_layer_that_an_adapter_does_not_have_is_the_bases(pipeline_folder, make_trainee):
    model = make_trainee()
    narrow = {name: pair for name, pair in model.adapters.factors("other").items() if name.endswith("to_q")}
    model.adapters.load("narrow", narrow)
    x, sigma, cond = point(model)
    mixed = velocity_of(model, [Teacher("narrow", 1.0)] * 3 + [Teacher("third", 1.0)] * 3, x, sigma, cond)
    with model.adapters.use("narrow"), torch.no_grad():
        alone = model.velocity(x, sigma, cond, guidance=1.0)
    torch.testing.assert_close(mixed[:3], alone[:3], atol=1e-6, rtol=1e-5)


def test_no_hook_stays_behind(trainee):
    x, sigma, cond = point(trainee)
    before = velocity_of(trainee, [Teacher("other", 1.0)] * 6, x, sigma, cond)
    velocity_of(trainee, [Teacher(name, 1.0) for name in NAMES], x, sigma, cond)
    assert torch.equal(velocity_of(trainee, [Teacher("other", 1.0)] * 6, x, sigma, cond), before)
    assert not any(layer._forward_hooks for layer in trainee.adapters._adapted.values())
    with pytest.raises(Exception, match="no adapter 'nobody'"):
        velocity_of(trainee, [Teacher("nobody", 1.0), Teacher("other", 1.0)], x[:2], sigma[:2], cond[:2])


A, B, GUIDED = Teacher("a", 1.0), Teacher("b", 1.0), Teacher("c", 2.0)


@pytest.mark.parametrize(
    ("teachers", "tokens", "batch", "expected"),
    [
        ([A, B, A, B], 512, 32, [[0, 2, 1, 3]]),  # 4 x 512 tokens
        ([A, B, A, B], 513, 32, [[0, 2], [1, 3]]),
        ([A, GUIDED], 682, 32, [[0, 1]]),  # 3 x 682: a guided row has two halves
        ([A, GUIDED], 683, 32, [[0], [1]]),
        ([A, A, A, B], 1, 3, [[0, 1, 2], [3]]),
        ([A] * 5, 1, 4, [[0, 1, 2], [3, 4]]),
        ([A] * 5, 10**6, 32, [[0, 1, 2, 3, 4]]),
        ([A, B, A, GUIDED], 600, 32, [[0, 2, 1], [3]]),
    ],
)
def test_adapters_share_a_forward_while_it_is_small(teachers, tokens, batch, expected):
    assert [part.tolist() for part in parcels(teachers, tokens, batch)] == expected


@given(st.lists(st.sampled_from([A, B, GUIDED]), min_size=1, max_size=30), st.integers(1, 999), st.integers(1, 9))
def test_every_row_goes_through_once(teachers, tokens, batch):
    made = parcels(teachers, tokens, batch)
    assert sorted(row for part in made for row in part.tolist()) == list(range(len(teachers)))
    for part in made:
        who = [teachers[row] for row in part.tolist()]
        assert len(who) <= batch
        forwards = sum(1 if teacher.guidance == 1 else 2 for teacher in who)
        assert len({teacher.adapter for teacher in who}) == 1 or forwards * tokens <= MIXED_TOKENS


def test_a_model_that_cannot_mix_gets_one_forward_an_adapter(trainee):
    x, cond = torch.randn(4, *trainee.latent_shape), trainee.encode(["a cat"] * 4)
    who = [Teacher("other", 1.0), Teacher("third", 1.0)] * 2
    assert len(parcels(who, row_cost(trainee, x, cond), 32)) == 1
    trainee.adapters.hooks_work = False
    assert [part.tolist() for part in parcels(who, row_cost(trainee, x, cond), 32)] == [[0, 2], [1, 3]]


def rows_of(model, texts=TEXTS):
    x, sigma, _ = point(model, len(texts))
    return Rows.of_states(x, sigma, model.encode(texts), tuple(texts))


def alone(model, rows, teacher):
    """Every row's velocity by one teacher, in a plain forward of its own model."""
    with model.adapters.use(teacher.adapter), torch.no_grad():
        cond = model.encode(list(rows.texts))
        return model.velocity(rows.latents[:, 0], rows.sigmas, cond, guidance=teacher.guidance)


def test_a_target_is_the_weighted_sum_of_its_teachers(trainee):
    rows, teachers = rows_of(trainee), [Teacher("other", 1.0), Teacher("third", 2.0), Teacher(None, 1.0)]
    a, b, base = (alone(trainee, rows, teacher) for teacher in teachers)
    targets = [sole(teachers[0])] * 2 + [
        ((teachers[0], 1.5), (teachers[2], -0.5)),
        tuple(zip(teachers, (0.2, 0.3, 0.5), strict=True)),
    ]
    velocity, anchor = label(trainee, rows, targets, teachers[2])
    expected = torch.stack([a[0], a[1], 1.5 * a[2] - 0.5 * base[2], 0.2 * a[3] + 0.3 * b[3] + 0.5 * base[3]])
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(anchor, base, atol=1e-5, rtol=1e-4)


def test_a_teacher_of_another_base_answers_by_its_own_weights_and_encoders(trainee, tmp_path):
    assemble(seed=1).save_pretrained(tmp_path)
    larger = load(tmp_path)
    own, student = Teacher(None, 2.0, larger), Teacher("other", 1.0)
    rows = rows_of(trainee)
    targets = [sole(own), sole(student), ((own, 0.25), (student, 0.75)), sole(own)]
    velocity, _ = label(trainee, rows, targets, batch=2)
    a, b = alone(larger, rows, own), alone(trainee, rows, student)
    expected = torch.stack([a[0], b[1], 0.25 * a[2] + 0.75 * b[2], a[3]])
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(larger.encode(TEXTS).embeds, trainee.encode(TEXTS).embeds)


def test_equal_requests_of_a_row_run_once(trainee, monkeypatch):
    counts, velocity = [], trainee.velocity
    monkeypatch.setattr(
        trainee, "velocity", lambda x, *args, **options: counts.append(len(x)) or velocity(x, *args, **options)
    )
    base = Teacher(None, 1.0)
    label(trainee, rows_of(trainee), [((Teacher("other", 1.0), 1.5), (base, -0.5))] * 4, base)
    assert counts == [8]


def test_an_average_walks_each_row_by_its_own_target_and_the_anchor_by_its_own(trainee, tmp_path):
    assemble(seed=1).save_pretrained(tmp_path)
    own, student, anchor = Teacher(None, 2.0, load(tmp_path)), Teacher("other", 1.0), Teacher("third", 1.0)
    rows = rows_of(trainee)
    following = rows.sigmas * torch.tensor([0.5, 0.2, 0.9, 0.0])
    targets = [sole(own), sole(student), ((student, 1.5), (Teacher(None, 1.0), -0.5)), sole(student)]
    averaged = replace(rows, sigmas_next=following, substeps=2)
    velocity, anchored = label(trainee, averaged, targets, anchor, batch=3)
    half = (following - rows.sigmas) / 2
    for found, (first, _), moved in (
        (velocity, label(trainee, rows, targets), lambda at: label(trainee, at, targets)[0]),
        (anchored, label(trainee, rows, [sole(anchor)] * 4), lambda at: label(trainee, at, [], anchor)[1]),
    ):
        x = rows.latents[:, 0] + half.view(-1, 1, 1, 1) * first
        second = moved(Rows.of_states(x, rows.sigmas + half, rows.cond, rows.texts))
        torch.testing.assert_close(found, (first + second) / 2, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, first, rtol=1e-3)
    none, alone_anchored = label(trainee, averaged, [], anchor)
    assert len(none) == 0
    torch.testing.assert_close(alone_anchored, anchored, atol=1e-5, rtol=1e-4)
    assert label(trainee, averaged, targets)[1] is None
