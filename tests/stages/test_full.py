"""Full fine-tuning through every command on a tiny base, beside LoRAs of the same base."""

import hashlib
import json

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from support.tiny import TEXTS, load

from flowopd_cli.cli.plan.memory import training_needs
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.models.files.full_weights import WEIGHTS
from flowopd_cli.models.full_files import write_folder
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.model import Roles, load_model
from flowopd_cli.system.files import files_below
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.loop import make_optimizer

SMALL = {
    "model.resolution": "null",
    "model.max_sequence_length": 4,
    "model.dtype": "float32",
    "model.device": "cpu",
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "sampling.steps": 3,
    "sampling.guidance": 1.0,
    "train.iterations": 3,
    "train.groups": 2,
    "train.group_size": 2,
    "train.updates": 1,
    "train.lr": 1e-3,
    "train.checkpoint_every": 1,
    "train.sample_every": 0,
    "train.ema_every": 1,
}
FULL = {"adapter.kind": "full"}
REWARD = ("--set", "rewards=[{name: jpeg_compressibility}]", "--algorithm", "awm")


def flags(*sections):
    named = {key: value for section in (SMALL, *sections) for key, value in section.items()}
    return [word for key, value in named.items() for word in ("--set", f"{key}={value}")]


def digest(folder):
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_below(folder).items()}


def weights(run):
    """The weights of a full model, or the base's."""
    (file,) = (run.adapter_dir if isinstance(run, RunDir) else run).glob("*.safetensors")
    return load_file(file)


class World:
    """Two full teachers, a LoRA and the prompts, in one folder with the base."""

    def __init__(self, root, base, call):
        self.root, self.base, self.call = root, base, call
        rows = [{"prompt": text, "task": task} for text in TEXTS for task in ("one", "two")]
        (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        self.teacher("one", FULL)
        self.teacher("two", FULL, {"seed": 1})
        self.teacher("lora", {"train.lr": 1e-2})

    def start(self, *sections):
        prompts = f"prompts=[{{source: {self.root / 'prompts.jsonl'}}}]"
        return ["--base", self.base, "--set", prompts, *flags(*sections)]

    def teacher(self, name, *sections):
        self.call("teacher", *self.start({"sampling.kernel": "ode"}, *sections), *REWARD, "--out", self.root / name)
        return self.run(name)

    def distill(self, name, *words, **settings):
        roles = [str(word).format(root=self.root) for word in words]
        more = {key.replace("__", "."): value for key, value in settings.items()}
        self.call("distill", *roles, *self.start({"sampling.guidance": 1.5}, more), "--out", self.root / name)
        return self.run(name)

    def run(self, name):
        return RunDir.open(self.root / name, writes=False)


@pytest.fixture
def call(flowopd):
    """Run a command that has to succeed; returns its result."""

    def run(*argv):
        code, out, err = flowopd(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {"root": tmp_path_factory.mktemp("full")}


@pytest.fixture
def world(made, pipeline_folder, call):
    """The teachers, trained once."""
    if "world" not in made:
        made["before"] = digest(pipeline_folder)
        made["world"] = World(made["root"], pipeline_folder, call)
    made["world"].call = call
    return made["world"]


def test_a_full_teacher_moves_all_weights_and_logs_as_a_lora_does(world, made, pipeline_folder):
    base, trained = weights(pipeline_folder / "transformer"), weights(world.run("one"))
    moved = [name for name, value in base.items() if not torch.equal(trained[name], value)]
    assert base.keys() - moved == {"pos_embed.pos_embed"}  # the only buffer
    full, lora = (world.run(name).rows() for name in ("one", "lora"))
    assert [row.keys() for row in full] == [row.keys() for row in lora]
    assert full[0]["reward"] == lora[0]["reward"]  # both draw with the base's velocity at first
    assert full[0]["distance_base"] == 0 < full[2]["distance_base"]
    assert digest(pipeline_folder) == made["before"]


def test_a_saved_full_model_is_drawn_by_plain_diffusers(world, pipeline_folder):
    plain = SD3Transformer2DModel.from_pretrained(world.run("one").adapter_dir)
    model = load(pipeline_folder)
    model.adapters.load("teacher", world.run("one").adapter_dir)
    latents, sigma, cond = torch.randn(2, *model.latent_shape), torch.tensor([0.3, 0.8]), model.encode(TEXTS[:2])
    with model.adapters.use("teacher"), torch.no_grad():
        ours = model.velocity(latents, sigma, cond, guidance=1.0)
    inputs = {"encoder_hidden_states": cond.embeds, "pooled_projections": cond.pooled, "timestep": 1000 * sigma}
    with torch.no_grad():
        assert torch.equal(plain(hidden_states=latents, **inputs).sample, ours)


def test_a_resumed_full_training_ends_as_an_undisturbed_one(world, call):
    world.teacher("parts", FULL, {"train.iterations": 2, "adapter.copies": "cpu"})
    again = ("--set", "train.iterations=3", "--set", "adapter.copies=device")
    call("teacher", "--resume", world.root / "parts", *again)
    whole, parts = world.run("one"), world.run("parts")
    assert (whole.adapter_dir / WEIGHTS).read_bytes() == (parts.adapter_dir / WEIGHTS).read_bytes()
    states = [load_file(run.checkpoints.path(3) / "state.safetensors") for run in (whole, parts)]
    assert {name.partition("/")[0] for name in states[0]} == {"policy", "policy_ema", "policy_slow", "optimizer"}
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert parts.checkpoints.steps() == [2, 3]


def test_a_full_student_learns_from_full_teachers_and_loras_of_its_base(world):
    before = {name: digest(world.run(name).adapter_dir) for name in ("one", "two", "lora")}
    roles = ("--init", "{root}/one", "--teacher", "one={root}/two", "--teacher", "two={root}/lora")
    run = world.distill("student", *roles, anchor__ref="base", anchor__beta=0.1, train__iterations=4)
    assert run.recipe().adapter.kind == "full"  # as the model that it starts from
    rows = run.rows()
    assert min(row["kl/one"] for row in rows) > 0 < rows[0]["kl_anchor"]
    assert rows[-1]["kl"] < rows[0]["kl"]
    assert {parent.role for parent in run.manifest().parents} == {"init", "teacher_one", "teacher_two", "anchor"}
    assert before == {name: digest(world.run(name).adapter_dir) for name in before}


def test_a_full_teacher_teaches_a_lora_and_one_with_a_base_of_its_own_a_full_student(world):
    roles = ("--teacher", "one={root}/one", "--teacher", "two={root}/lora")
    rows = world.distill("pupil", *roles, anchor__beta=0, train__lr=1e-2).rows()
    assert rows[-1]["kl"] < rows[0]["kl"]
    assert "lora_A" in next(iter(weights(world.run("pupil"))))
    own = ("--teacher", "one={root}/one,base=" + str(world.base), "--teacher", "two={root}/two")
    distant = world.distill("distant", *own, anchor__beta=0, adapter__kind="full", model__dtype="bfloat16")
    assert distant.rows()[-1]["kl"] < distant.rows()[0]["kl"]
    assert {value.dtype for value in weights(distant).values()} == {torch.float32}


def test_the_memory_that_is_counted_is_that_of_the_tensors(world):
    roles = ("--init", "{root}/one", "--teacher", "one={root}/two", "--teacher", "two={root}/lora")
    settings = {"anchor__ref": world.root / "lora", "model__dtype": "bfloat16", "adapter__copies": "cpu"}
    recipe = world.distill("counted", *roles, anchor__beta=0.1, train__iterations=1, **settings).recipe()
    counted = training_needs(recipe).holding
    model = load_model(recipe.model, recipe.adapter.targets)
    loaded = Roles(model, Adapters())
    loaded.add_policy(recipe.adapter, 0)
    loaded.add_teachers(recipe.teachers, 1.0, recipe.model)
    loaded.add_anchor(recipe.anchor, 1.0)
    TrainState.fresh(model)
    bank = model.adapters
    held = {name: sum(tensor.nbytes for tensor in bank.state(name).values()) for name in bank.names}
    assert counted["adapters"] == held["teacher_one"] + held["teacher_two"] + held["anchor"]
    assert counted["trained weights and copies"] == held["policy"] + held["policy_ema"]
    base = {name: value for name, value in model.transformer.state_dict().items() if ".lora_" not in name}
    assert counted["base"] == sum(value.nbytes for value in base.values())
    with bank.use("policy"), bank.mix(None):
        assert counted["weights in the base's precision"] == sum(t.nbytes for t in (bank.installed or {}).values())
    parameters = bank.trainable().values()
    optimizer = make_optimizer("adamw", parameters, 1e-4, 0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert counted["optimizer"] == sum(t.nbytes for t in (*moments, *(p.grad for p in parameters)))


def test_a_lora_is_a_start_of_a_full_model_and_not_the_other_way_round(world, flowopd):
    run = world.teacher("from-lora", FULL, {"adapter.init": world.root / "lora", "train.iterations": 1})
    base, factors = weights(world.base / "transformer"), read_adapter(world.run("lora").adapter_dir)[1]
    name, pair = next(iter(factors.items()))
    start = load_file(run.checkpoints.path(1) / "state.safetensors")[f"policy_ema/{name}.weight"]
    torch.testing.assert_close(start, base[f"{name}.weight"] + pair.delta().float(), atol=2e-3, rtol=0)
    command = ["teacher", *world.start({"adapter.kind": "lora", "sampling.kernel": "ode"}), *REWARD]
    code, _, err = flowopd(*command, "--set", f"adapter.init={world.root / 'one'}", "--out", world.root / "no")
    assert code == 2
    assert "whose kind is full and cannot change" in err


def test_full_models_are_merged_by_their_differences_to_the_base(world, call):
    call("merge", world.root / "one", world.root / "two", "--weights", "0.75,0.5", "--out", world.root / "mean")
    base = weights(world.base / "transformer")
    one, two, merged = (weights(world.run(name)) for name in ("one", "two", "mean"))
    for name, value in base.items():
        start = value.double()
        expected = start + 0.75 * (one[name].double() - start) + 0.5 * (two[name].double() - start)
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-7, rtol=1e-6)
    SD3Transformer2DModel.from_pretrained(world.run("mean").adapter_dir)
    assert world.run("mean").manifest().metrics["retained_energy"] == pytest.approx(1)

    call("merge", world.root / "one", world.root / "lora", "--method", "ties", "--out", world.root / "mixed")
    name, pair = next(iter(read_adapter(world.run("lora").adapter_dir)[1].items()))
    mixed, change = weights(world.run("mixed"))[f"{name}.weight"], pair.delta()
    start = base[f"{name}.weight"].double()
    parts = [0.5 * trimmed(one[f"{name}.weight"].double() - start), 0.5 * trimmed(change)]
    sign = (parts[0] + parts[1]).sign()
    agree = [(part.sign() == sign) & (part != 0) for part in parts]
    total = sum(part * mask for part, mask in zip(parts, agree, strict=True))
    expected = start + total / (0.5 * sum(mask.double() for mask in agree)).clamp(min=0.5)
    torch.testing.assert_close(mixed.double(), expected, atol=1e-7, rtol=1e-6)


def test_a_merge_holds_what_was_learned_on_a_rounded_base_and_no_rounding(world, call):
    rate = 1e-6
    one_step = {"model.dtype": "bfloat16", "train.iterations": 1, "train.lr": rate}
    half, base = weights(world.teacher("half", FULL, one_step)), weights(world.base / "transformer")
    merged = call("merge", world.root / "half", "--weights", "2", "--out", world.root / "doubled")
    doubled = weights(world.run("doubled"))
    for name, value in base.items():
        torch.testing.assert_close(doubled[name].double(), 2 * half[name].double() - value.double(), atol=1e-7, rtol=0)
    trained = sum(value.numel() for name, value in base.items() if name != "pos_embed.pos_embed")
    longest = 2 * 1.05 * rate * trained**0.5  # of a step, AdamW moves a weight by its rate; float32 rounds the sum
    assert 0 < merged["metrics"]["update_norm"] < longest
    rounding = sum(float((value.bfloat16().double() - value.double()).square().sum()) for value in base.values()) ** 0.5
    assert 10 * longest < rounding


def trimmed(delta):
    """The larger half of the entries."""
    limit = delta.abs().flatten().sort(descending=True).values[delta.numel() // 2 - 1]
    return torch.where(delta.abs() >= limit, delta, 0.0)


@pytest.mark.parametrize("method", ["exact", "factor_average"])
def test_methods_of_factors_are_refused_for_full_models(world, flowopd, method):
    command = ("merge", world.root / "one", world.root / "two", "--method", method, "--out", world.root / method)
    code, _, err = flowopd(*command)
    assert code == 2
    assert f"method {method} merges LoRA factors" in err


def test_a_full_model_is_evaluated_and_pushed(world, call):
    counted = ("--set", "eval.limit=2", "--set", "eval.images=1", "--set", "eval.steps=2", "--set", "eval.guidance=1")
    scored = call(
        "eval", "--suite", "toy-geneval", "--adapter", world.root / "one", *counted, "--out", world.root / "e"
    )
    assert scored["suites"]["geneval"]["n"] == 2
    pushed = call("push", world.root / "one", "--dry-run", "--out", world.root / "p")
    assert pushed["metrics"].keys() == {"difference"}
    assert pushed["metrics"]["difference"] <= 2 / 255
    folder = world.run("p").hub_dir
    assert {"config.json", WEIGHTS, "README.md", "recipe.yaml"} <= files_below(folder).keys()
    assert not any(str(world.root).encode() in path.read_bytes() for path in files_below(folder).values())
    plain, ours = SD3Transformer2DModel.from_pretrained(folder), weights(world.run("one"))
    assert all(torch.equal(value, ours[name]) for name, value in plain.state_dict().items())
    card = (folder / "README.md").read_text()
    assert "SD3Transformer2DModel.from_pretrained(" in card
    assert not {"lora", "LoRA", "peft", "PEFT"} & set(card.replace("`", " ").replace("_", " ").split())
    counted += ("--base", world.base, "--set", "model.resolution=null", "--set", "model.max_sequence_length=4")
    again = call("eval", "--suite", "toy-geneval", "--adapter", folder, *counted, "--out", world.root / "again")
    assert again["suites"] == scored["suites"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "model.shard=true"), "adapter.kind full trains a whole base in each process"),
        (("--set", "model.quantize=int8"), "adapter.kind full trains the base's own weights"),
        (("--set", "train.micro=100000000"), "adapter.kind full: memory needed"),
    ],
)
def test_what_full_training_cannot_do_is_refused(world, flowopd, words, message):
    command = ["teacher", *world.start(FULL, {"sampling.kernel": "ode", "train.groups": 10**6}), *REWARD]
    code, _, err = flowopd(*command, *words, "--out", world.root / "refused")
    assert code == 2
    assert message in err
    assert not (world.root / "refused").exists()


@pytest.mark.parametrize("setting", ["model.shard=true", "model.quantize=int8"])
def test_a_full_teacher_on_a_base_in_parts_or_quantized_is_refused_before_that_is_loaded(world, flowopd, setting):
    roles = ("--teacher", f"one={world.root / 'one'}", "--teacher", f"two={world.root / 'lora'}")
    code, _, err = flowopd("distill", *roles, *world.start(), "--set", setting, "--out", world.root / "refused")
    assert code == 2
    assert f"routing.one: {world.root / 'one'} is a full model, and a sharded or quantized base takes no full" in err
    assert "set model.shard to false, and quantize to none" in err
    assert not (world.root / "refused").exists()


def test_a_merge_refuses_a_full_model_with_other_tensors(world, flowopd, tmp_path):
    tensors = weights(world.run("one"))
    for folder, more in (("more", {**tensors, "extra": torch.ones(2)}), ("less", dict(list(tensors.items())[1:]))):
        write_folder(tmp_path / folder, more, {}, None, None)
        command = ("merge", world.root / "one", tmp_path / folder, "--out", tmp_path / "merged", "--force")
        code, _, err = flowopd(*command, "--base", world.base)
        assert code == 2
        assert "was made for another base" in err
        assert "missing" in err
        assert "name its base with --base" in err


def test_fields_of_a_lora_and_a_high_learning_rate_are_remarked_on(world, flowopd):
    command = ["teacher", *world.start(FULL, {"sampling.kernel": "ode"}), *REWARD]
    code, out, err = flowopd(*command, "--dry-run")
    assert code == 0
    assert "adapter.rank: has no effect, because adapter.kind is full" in err
    assert "train.lr 0.001 is high for adapter.kind full" in err
    assert "memory: trained weights and copies" in out
