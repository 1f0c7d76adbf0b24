"""Teachers on bases of their own give the fused pass, replay and autograd the same gradient, in float64."""

import pytest
import torch
from support.copies import ExactModel
from support.tiny import LARGER, TEXTS, add_adapters, assemble, gradients, hard_routes, make_draw, make_sampler

from flowopd_cli.core.sampler import SeededNoise, trained_steps
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.train import collect, fused, labels
from flowopd_cli.train.objectives import OPDSettings, opd
from flowopd_cli.train.routes import Teacher

SETTINGS = OPDSettings("pathwise", "kl", 0.5, 1e-4, 5.0)
ANCHOR = Teacher(None, 1.0)


@pytest.fixture(scope="module")
def student(pipeline_folder):
    return add_adapters(ExactModel.load(pipeline_folder, LoadOptions(device="cpu", max_sequence_length=4)))


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Another width and depth, other encoders, the same latents."""
    folder = tmp_path_factory.mktemp("larger")
    assemble(1, **LARGER).save_pretrained(folder)
    return add_adapters(ExactModel.load(folder, LoadOptions(device="cpu", max_sequence_length=4)))


@pytest.fixture
def teachers(larger):
    """Two adapters of the larger base, or the bare larger base, beside an adapter of the student's."""
    return {"a": Teacher("third", 2.0, larger), "b": Teacher(None, 1.0, larger), "c": Teacher("other", 1.0)}


DRAW = ("abcab", "01223")


def autograd(model, sampler, teachers):
    """One backward through the whole loss; every prompt is labelled by itself."""
    draw, total = make_draw(*DRAW), 0.0
    cond, objective = model.encode([p.text for p in draw.prompts]), opd(model, sampler, SETTINGS)
    noise = SeededNoise(draw.seeds, model.latent_shape)
    x = noise.initial()

    def velocity(owner, teacher, row, x, sigma):
        text = [draw.prompts[row].text]
        with owner.adapters.use(teacher.adapter), torch.no_grad():
            return owner.velocity(x[row : row + 1], sigma[:1], owner.encode(text), guidance=teacher.guidance)[0]

    for t in trained_steps(sampler).steps:
        sigma, sigma_next = sampler.levels(t, x)
        owners = [teachers[prompt.task] for prompt in draw.prompts]
        target = torch.stack([velocity(one.model or model, one, row, x, sigma) for row, one in enumerate(owners)])
        anchor = torch.stack([velocity(model, ANCHOR, row, x, sigma) for row in range(len(x))])
        batch = collect.StepBatch(x, x, sigma, sigma_next, cond, target.float(), anchor.float())
        with model.adapters.use("policy"):
            loss = objective(batch)
        total = total + loss.total
        x = sampler.advance(loss.velocity, x, t, noise)[0].float()
    with model.adapters.use("policy"):
        (total / (len(draw.prompts) * len(trained_steps(sampler).steps))).backward()
    found = {name: parameter.grad for name, parameter in model.adapters.trainable().items()}
    for parameter in model.adapters.trainable().values():
        parameter.grad = None
    return found


def fused_gradients(model, sampler, teachers):
    objective, loss, count = opd(model, sampler, SETTINGS), None, 0
    batches = fused.micro_batches(
        fused.FusedStep(model, sampler, hard_routes(teachers), ANCHOR, 2, 2), make_draw(*DRAW)
    )
    with model.adapters.use("policy"):
        while True:
            try:
                batch = batches.send(loss)
            except StopIteration:
                break
            loss = objective(batch)
            loss.total.backward()
            count += loss.count
    found = {name: parameter.grad / count for name, parameter in model.adapters.trainable().items()}
    for parameter in model.adapters.trainable().values():
        parameter.grad = None
    return found


def test_fused_replayed_and_plain_gradients_are_equal(student, larger, teachers):
    sampler = make_sampler(student, steps=4, guidance=1.0)
    expected = autograd(student, sampler, teachers)
    digests = [(model, model.adapters.digest(None)) for model in (student, larger)]
    rolled = collect.rollout(student, sampler, make_draw(*DRAW))
    rolled = labels.with_labels(student, sampler, rolled, hard_routes(teachers), ANCHOR)
    objective, steps = opd(student, sampler, SETTINGS), collect.step_batches(rolled, sampler, 1, 3, 0)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-4
    for found in (gradients(student, objective, next(steps)), fused_gradients(student, sampler, teachers)):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    assert all(model.adapters.digest(None) == before for model, before in digests)


def test_an_own_base_encodes_each_text_of_a_batch_once(student, teachers, monkeypatch):
    larger, sampler = teachers["a"].model, make_sampler(student)
    rolled, asked = collect.rollout(student, sampler, make_draw("aabb", "0012")), []
    encode = larger.encode
    monkeypatch.setattr(larger, "encode", lambda texts: asked.append(list(texts)) or encode(texts))
    labels.with_labels(student, sampler, rolled, hard_routes({"a": teachers["a"], "b": teachers["a"]}), None)
    assert asked == [[TEXTS[0], TEXTS[1], TEXTS[2]]]
