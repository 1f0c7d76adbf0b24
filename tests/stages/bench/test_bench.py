"""The benchmark: equal gradients of all structures, counted passes, its clock and its limits."""

import json
import sys

import pytest
import torch
from support import tiny

from flowopd_cli.cli import app as cli
from flowopd_cli.cli.commands import bench as cli_bench
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.stages.bench import clock, limits, structures, teachers
from flowopd_cli.stages.bench.measure import FLOOR, Request, run
from flowopd_cli.stages.bench.world import build
from flowopd_cli.system.progress import Silent

LITTLE, USUAL = "model.resolution=64", "model.resolution=null"


def recipe(*overrides, shape="small", base=None, **roles):
    roles = cli_bench.Roles(roles.get("teachers"), roles.get("anchor"), roles.get("guidance"))
    tree, where = cli_bench.starting_point(None, base, None if base else shape)
    settings = ("sampling.steps=3", "adapter.rank=4", *overrides)
    return cli_bench.distillation(tree, where, {}, roles, settings)


def world_of(*overrides, batch=2, **roles):
    """A world of 8 x 8 latents, unless ``model.resolution`` is given."""
    return build(recipe(LITTLE, *overrides, **roles), batch, real_prompts=False)


def gradients(world, structure):
    """The policy's gradients before the optimizer step of a structure."""
    gradients = {}

    def step():
        gradients.update({name: p.grad.clone() for name, p in world.model.adapters.trainable().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.optimizer, "step", step)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
        structure(world)()
    return gradients


def assert_equal_gradients(world):
    replay = gradients(world, structures.replay)
    assert max(float(value.abs().max()) for value in replay.values()) > 0
    for structure in (structures.fused, structures.upstream):
        for name, gradient in gradients(world, structure).items():
            scale = float(replay[name].abs().max())
            torch.testing.assert_close(gradient, replay[name], rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_every_structure_makes_the_same_gradients(guidance):
    assert_equal_gradients(world_of(f"sampling.guidance={guidance}", guidance=4.5))


def forwards(world, structure, model=None):
    """Rows that go through a transformer, the student's by default; those with gradients apart."""
    rows = {True: 0, False: 0}

    def count(module, inputs, named):
        rows[torch.is_grad_enabled()] += len(named["hidden_states"])

    hook = (model or world.model).transformer.register_forward_pre_hook(count, with_kwargs=True)
    structure(world)()
    hook.remove()
    return rows[True], rows[False]


def test_passes_of_each_structure():
    """Two pictures, three steps of which two are trained; student without guidance, teachers and anchor with."""
    world = world_of("sampling.guidance=1", guidance=4.5)
    assert forwards(world, structures.fused) == (2 * 2, 2 * 2 * 2 * 2)  # student; halves of teacher and anchor
    assert forwards(world, structures.replay) == (2 * 2, 2 * 2 * 2 * 2 + 2 * 3)  # and the rollout
    assert forwards(world, structures.upstream) == (2 * 2 * 2, 2 * 2 * 2 * 2 + 2 * 2 * 3)  # and halves everywhere
    floor = [forwards(world, lambda _, action=action: action) for action in structures.floor(world).values()]
    assert floor == [(2 * 2, 0), (0, 2 * 2), (0, 2 * 2 * 2), (0, 2 * 2 * 2)]  # the second is the rollout's forward
    assert "anchor" not in structures.floor(world_of(anchor=False))


def test_an_extrapolated_target_adds_the_bases_pass_unless_the_anchor_has_it():
    """Two pictures, two trained steps."""
    beyond = ("sampling.guidance=1", "opd.extrapolate=1.5")
    for anchor, labels in (("other", 3), ("base", 2)):  # teacher, base, and an anchor that is another adapter
        world = world_of(*beyond, f"anchor.ref={anchor}")
        assert_equal_gradients(world)
        assert forwards(world, structures.fused) == (2 * 2, 2 * 2 * labels)
        assert forwards(world, structures.replay) == (2 * 2, 2 * 2 * labels + 2 * 3)
        floor = {
            name: forwards(world, lambda _, action=action: action) for name, action in structures.floor(world).items()
        }
        assert floor["teacher"][1] + floor["anchor"][1] == 2 * 2 * labels


@pytest.mark.parametrize("thin", ["anchor.every=4", "anchor.probability=0.25"])
def test_the_floor_has_the_steps_with_a_pass_of_the_anchor(thin):
    assert world_of(thin, "anchor.ref=other").anchor_share == 0.25
    assert world_of(thin, "anchor.ref=base").anchor_share == 0.25
    assert world_of(thin, "anchor.ref=base", "opd.extrapolate=1.5").anchor_share == 1  # the targets need the base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a tiny base, and of a larger one with its autoencoder and other text encoders."""
    root = tmp_path_factory.mktemp("bases")
    student, large = tiny.assemble(0), tiny.assemble(1, **tiny.LARGER)
    large.vae = student.vae
    for name, pipeline in {"student": student, "large": large}.items():
        pipeline.save_pretrained(root / name)
    return root


def test_a_teacher_with_its_own_base_costs_its_forwards_alone(bases):
    """Four pictures, two of a task with an own base, guidance 2 for it and 1 for all others; two trained steps."""
    small = ("model.resolution=null", "model.max_sequence_length=4", "sampling.guidance=1", "model.dtype=float32")
    own = f"{{base: {bases / 'large'}, ref: %s, guidance: 2}}"
    for ref, extra in (("teacher", 2), ("base", 1)):  # adapters of the student: policy, its average, teacher, anchor
        routes = (f"routing.task0={own % ref}", f"routing.task1=[{{ref: a}}, {own % ref}]")
        world = world_of(*small, *routes, batch=4, base=str(bases / "student"))
        (large,) = world.bases.values()
        assert len(large.adapters.names) == extra - 1
        assert_equal_gradients(world)
        floor = structures.floor(world)
        for model, student, labels in ((world.model, 4 * 2, (2 + 4) * 2), (large, 0, 2 * 4 * 2)):
            assert forwards(world, structures.fused, model) == (student, labels)
            passes = [forwards(world, lambda _, action=floor[role]: action, model) for role in FLOOR]
            assert tuple(map(sum, zip(*passes, strict=True))) == (student, labels)


RANDOM = "routing={task0: {ref: a}, task1: {base: flux-small, ref: base}}"


def test_figures_of_a_random_base_of_a_teacher():
    figures = run(Request(recipe("model.resolution=64", RANDOM), 2, 1, real=False), Silent())
    assert figures["settings"]["own_bases"] == ["flux-small"]
    assert figures["settings"]["teachers"] == 2
    assert figures["operations"]["passes_per_second"] > 0
    assert "a teacher on flux-small" in next(cli_bench.tables(figures))[0]


@pytest.mark.parametrize(("base", "size"), [("flux-small", 32), ("stabilityai/stable-diffusion-3.5-large", 64)])
def test_a_random_student_has_teachers_of_random_bases_with_its_latents(base, size):
    with pytest.raises(RecipeError, match=base):
        world_of(f"model.resolution={'null' if size == 32 else size}", RANDOM.replace("flux-small", base))


FLUX = ("model.resolution=64", "model.max_sequence_length=8", "sampling.guidance=3.5")


def test_embedded_guidance_needs_no_halves_in_any_structure():
    """Two pictures, three steps of which two are trained."""
    world = world_of(*FLUX, shape="flux-small", guidance=2.0)
    assert_equal_gradients(world)
    assert forwards(world, structures.fused) == (2 * 2, 2 * 2 * 2)  # student; teacher and anchor
    assert forwards(world, structures.upstream) == (2 * 2, 2 * 2 * 2 + 2 * 3)  # and the rollout
    floor = [forwards(world, lambda _, action=action: action) for action in structures.floor(world).values()]
    assert floor == [(2 * 2, 0), (0, 2 * 2), (0, 2 * 2), (0, 2 * 2)]


def test_figures_of_flux():
    figures = run(Request(recipe(*FLUX, shape="flux-small"), 1, 1, real=False), Silent())
    assert figures["settings"]["latents"] == [16, 8, 8]
    assert figures["operations"]["forward_of_one_row"] > 0
    assert figures["ratios"]["fused_to_floor"] > 0


def test_parts_add_up_to_the_iteration():
    world = world_of(USUAL)
    structures.replay(world)()
    parts = clock.parts(world, structures.replay(world), 1)
    assert all(parts[name] > 0 for name in ("rollout", "teacher", "anchor", "student", "optimizer"))
    whole = parts.pop("all")
    assert sum(parts.values()) == pytest.approx(whole, rel=1e-6)
    assert parts["rest"] < 0.5 * whole
    assert clock.parts(world, structures.fused(world), 1)["rollout"] == 0
    assert type(world.model.velocity.__self__).velocity is SD3Model.velocity  # the method is restored


def test_interleaved_rounds_begin_with_another_action():
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = clock.interleaved(actions, 4, torch.device("cpu"))
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 4)


@pytest.mark.skipif(not clock.CLEAR.exists(), reason="the system does not say")
def test_the_peak_is_that_of_the_action_alone():
    def take(mebibytes):
        return lambda: torch.zeros(mebibytes * 2**18).add_(1).sum()

    much, little = (clock.peak_bytes(take(size), torch.device("cpu")) for size in (400, 4))
    assert much - little > 300 * 2**20


def test_largest_micro_batch_is_estimated_from_saved_tensors():
    world = world_of(USUAL, "sampling.guidance=1")
    adapter = world.recipe.adapter
    options = LoadOptions(dtype="float32", max_sequence_length=16, targets=adapter.targets)
    assert limits.saved_bytes(world) == pytest.approx(
        measure("sd3", "small", options, adapter.rank).activations, rel=0.15
    )
    largest = limits.largest_micro_batch(world)
    assert largest["rows"] > 1
    assert "estimated" in largest["how"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_largest_micro_batch_on_a_gpu():
    largest = limits.largest_micro_batch(world_of(USUAL, "model.device=cuda"))
    assert largest["rows"] >= 8
    assert largest["how"] == "found by doubling"


def test_the_figures():
    figures = run(Request(recipe(LITTLE, "sampling.guidance=1", guidance=4.5), 1, 2, real=False), Silent())
    keys = ("floor_seconds", "fused_seconds", "replay_seconds", "upstream_structure_seconds", "peak_memory_bytes")
    assert all(figures[key] > 0 for key in keys)
    assert figures["floor_seconds"] == pytest.approx(sum(figures["floor"].values()))
    assert figures["images_per_second"] == pytest.approx(1 / figures["fused_seconds"])
    assert {name: len(pairs) for name, pairs in figures["samples"].items()} == dict.fromkeys(
        ("student", "forward", "teacher", "anchor", "fused", "replay", "upstream_structure"), 2
    )
    hours = 500 * 48 * 24 * figures["fused_seconds"] / 3600  # iterations x groups x their size, a picture at a time
    assert figures["hours"] == pytest.approx(hours)
    assert json.loads(json.dumps(figures)) == figures
    assert [title for title, _, _ in cli_bench.tables(figures)][1:] == ["where the seconds go", "this machine"]


def test_the_command_line(monkeypatch, capsys, tmp_path):
    figures = {"fused_seconds": 2.0, "ratios": {"fused_to_floor": 1.05}}
    requests = []
    monkeypatch.setattr(cli_bench, "measure", lambda *request: requests.append(request) or figures)
    monkeypatch.setattr(cli_bench, "tables", lambda figures: [])
    argv = ["bench", "--shape", "sd3.5-medium", "--resolution", "512", "--rank", "16", "--teachers", "3"]
    argv += ["--no-anchor", "--guidance", "1", "--teacher-guidance", "4.5", "--batch", "2", "--steps", "4"]
    for more in ([], ["--json", "--out", str(tmp_path / "b.json")]):
        monkeypatch.setattr(sys, "argv", ["flowopd", *argv, *more])
        assert cli.run() == 0
        out = capsys.readouterr().out
        assert out == ("2.000 s an iteration, 1.05 x the floor\n" if not more else json.dumps(figures) + "\n")
    assert json.loads((tmp_path / "b.json").read_text()) == figures
    built = requests[0][0]
    assert (built.model.pretrained, built.model.resolution, built.sampling.steps) == ("sd3.5-medium", 512, 4)
    assert (built.adapter.rank, built.adapter.alpha, built.anchor.beta) == (16, 16, 0)
    assert [spec.guidance for spec in built.routing.values()] == [4.5] * 3
    assert built.sampling.guidance == 1
    monkeypatch.setattr(sys, "argv", ["flowopd", *argv, "--set", "sampling.guidance=0.5"])
    assert cli.run() == 2
    assert "sampling.guidance 0.5: classifier-free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("toy/teacher-ocr", None, None), "teacher recipe"),
        ((None, None, None), "something to measure"),
        ((None, "toy", "small"), "leave out"),
        ((None, None, "smal"), "did you mean 'small'"),
        (("toy/nothing", None, None), "no recipe"),
    ],
)
def test_invalid_sources(source, message):
    with pytest.raises(RecipeError, match=message):
        cli_bench.distillation(*cli_bench.starting_point(*source), {}, cli_bench.Roles(None, None, None), ())


def test_substeps_are_refused():
    with pytest.raises(RecipeError, match=r"teacher_substeps 2: .* --set opd.teacher_substeps=1"):
        world_of("opd.teacher_substeps=2")


def test_teachers_are_compared_by_algorithm():
    """Each iteration has the forwards that its recipe is counted with, those of a slow copy included."""
    world = world_of(USUAL, "sampling.guidance=1")
    tree, where = cli_bench.starting_point(None, None, "small", "teacher")
    settings = ("sampling.steps=3", "sampling.guidance=1", "adapter.rank=4", "nft.levels=2", "grpo.beta=0.1")
    compared = cli_bench.algorithm_recipes(tree, where, {}, ["grpo", "nft"], settings)
    assert [recipe.sampling.kernel for recipe in compared.values()] == ["flow_sde", "ode"]
    figures = teachers.run(compared, 2, 1, Silent())
    assert json.loads(json.dumps(figures)) == figures
    for name, of in figures["algorithms"].items():
        assert of["images_per_second"] == pytest.approx(2 / of["seconds"])
        assert 0 < of["seconds_collect"] + of["seconds_learn"] <= of["seconds"]
        action = teachers.iteration(compared[name], world.model, 2)
        assert sum(forwards(world, lambda _, action=action: action)) == 2 * of["forwards"]
    (table,) = cli_bench.algorithm_tables(figures)
    assert [row[0] for row in table[2]] == ["grpo", "nft"]


def test_a_recipe_is_measured_without_its_adapters():
    tree, where = cli_bench.starting_point("toy/distill", None, None)
    built = cli_bench.distillation(
        tree, where, {}, cli_bench.Roles(None, None, None), ("sampling.steps=2", "routing.ocr.guidance=2")
    )
    figures = run(Request(built, 2, 1, real=True), Silent())
    assert figures["settings"]["adapters"] == 6  # policy, three teachers, anchor, average
    assert figures["settings"]["teacher_guidance"] == [1.0, 2.0]
    assert set(figures["extras"]) == {"encode", "decode"}
