"""The training stages on a tiny float64 model, run by ``stages/test_processes.py`` in one process and in several.

In float32 different batch sizes alone would exceed the tolerance of the tests.
"""

import json
import os
import signal
from pathlib import Path

import torch
from support.tiny import TARGETS, TEXTS, load, randomize

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.keep import keep_tasks
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import Interrupted, RewardError
from flowopd_cli.models.full_weights import WeightBank
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages import coldstart, distill
from flowopd_cli.stages import teacher as grpo
from flowopd_cli.system.progress import Silent

COMMON = {
    "seed": 3,
    "adapter": {"rank": 4, "alpha": 8, "targets": list(TARGETS)},
    "sampling": {"steps": 4, "guidance": 1.0},
    "watch": {"groups": 3, "group_size": 2},
}
TRAIN = {"iterations": 4, "group_size": 4, "updates": 3, "micro": 5, "rollout_batch": 3, "lr": 0.01, "ema_every": 1}
REWARD = {"name": "support.copies:Light", "task": "a", "options": {"upper": True}}


class Light(Reward):
    """The mean of a half of the picture, in ``levels`` if not 0; some pictures have no score."""

    def __init__(self, upper, levels=0):
        self.upper, self.levels = upper, levels
        self.info = RewardInfo("upper" if upper else "lower", "made up", 0, 1)

    def __call__(self, images, prompts):
        total = images[:, :, :2].mean((1, 2, 3)) if self.upper else images[:, :, 2:].mean((1, 2, 3))
        total = (total * self.levels).round() / self.levels if self.levels else total
        return RewardResult(total, {"half": total}, images[:, 0, 0, 0] > 0.2)


class Fails(Light):
    """Loses its worker in the second of two processes, from the second iteration on."""

    def __init__(self, upper):
        super().__init__(upper)
        self.calls = 0

    def __call__(self, images, prompts):
        self.calls += 1
        if self.calls > 1 and os.environ.get("RANK") == "1":
            raise RewardError("the worker of the second process is gone")
        return super().__call__(images, prompts)


class DoubleBank(WeightBank):
    """Adapters in float64."""

    def _inject(self, *arguments):
        super()._inject(*arguments)
        self.transformer.double()


class DoubleModel(SD3Model):
    """The tiny model in float64; its pictures are a function of each latent by itself."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dtype = torch.float64
        self.adapters = DoubleBank(self.transformer, TARGETS)

    def _load_transformer(self, *arguments):
        return super()._load_transformer(*arguments).double()

    def decode(self, latents):
        return torch.sigmoid(latents[:, :3])


class ExactModel(DoubleModel):
    """The tiny model in float64 from end to end."""

    def _forward(self, latents, sigma, cond, adapters, guidance=None):
        parts = [part.double() for part in (latents, sigma * 1000, cond.embeds, cond.pooled)]
        names = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
        with self.adapters.mix(adapters):
            return self.transformer(**dict(zip(names, parts, strict=True)), return_dict=False)[0]


class StopsRankOne(Silent):
    """Asks the second of two processes, and no other, to stop after the first iteration."""

    def step(self, row):
        if row["iteration"] == 1 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGINT)


def prepare(folder, pipeline):
    """Prompts of two tasks, and three adapters to start from and to learn from."""
    (folder / "a.txt").write_text("\n".join(TEXTS[:2]))
    (folder / "b.txt").write_text("\n".join(TEXTS[2:]))
    model = load(pipeline)
    for seed, name in enumerate(("start", "one", "two")):
        model.adapters.add(name, 4, 8.0, seed=seed, trainable=False)
        randomize(model, name, seed=10 + seed)
        model.adapters.save(name, folder / name, str(pipeline), model.fingerprint)


def recipe(stage, folder, pipeline, method=None, **train):
    """A few iterations of a stage over an uneven number of groups: twelve optimizer steps, four of a cold start."""
    model = {"pretrained": str(pipeline), "device": "cpu", "resolution": None, "max_sequence_length": 4}
    prompts = [{"source": str(folder / f"{task}.txt"), "task": task} for task in "ab"]
    teachers = {"a": {"ref": str(folder / "one"), "guidance": 3.0}, "b": {"ref": str(folder / "two")}}
    rewards = [REWARD, {**REWARD, "task": "b", "options": {"upper": False}}]
    sections = {
        "teacher": {"rewards": rewards, "grpo": {"clip": 0.2}},
        "coldstart": {"rewards": rewards, "teachers": teachers, "sft": {"samples": 12, "batch": 7}},
        "distill": {
            "rewards": rewards,
            "routing": teachers,
            "anchor": {"ref": "base", "beta": 0.1},
            "opd": {"log_rewards_every": 2},
        },
    }
    spread = {"train": {**TRAIN, "groups": 5 if stage == "coldstart" else 3, "sample_every": 0, **train}}
    start = {"adapter": {**COMMON["adapter"], "init": str(folder / "start")}}
    tree = {"stage": stage, **COMMON, **start, "model": model, "prompts": prompts, **sections[stage], **spread}
    if method is not None:
        tree |= {**method, "sampling": {**COMMON["sampling"], "kernel": "ode"}}
    return recipes.build(tree)


def train(name, built, progress=None):
    """Run a stage in a directory of its own, as the command line would: the first process alone writes."""
    path = Path(name)
    run = RunDir.create(path, built.stage) if os.environ.get("RANK", "0") == "0" else RunDir(path, writes=False)
    run_stage(Plan.of(built), run, progress or Silent())
    return run


def coarse(built):
    """The recipe with rewards in five steps."""
    rewards = (spec.model_copy(update={"options": {**spec.options, "levels": 5}}) for spec in built.rewards)
    return built.model_copy(update={"rewards": tuple(rewards)})


def kept(folder, pipeline):
    """The student of one process learns task ``b`` again, by another teacher, and keeps task ``a``."""
    built = recipe("distill", folder, pipeline, updates=1, iterations=3)
    student = str(folder / "runs" / "one" / "few-fused")
    adapter = built.adapter.model_copy(update={"init": student})
    again = {"adapter": adapter, "prompts": built.prompts[1:], "routing": {"b": built.routing["a"]}}
    return keep_tasks(built.model_copy(update=again), "student")[0]


def runs(folder, out, pipeline, *, shard=False):
    """Every stage, and distillations: in one pass, with checkpointing, of one group with sample pictures.

    With the whole base in each process also those that differ in their rows and groups only: optimizer steps of one
    row each, some of the steps, groups and pictures that are replaced, fewer groups than processes, and a task kept.
    """

    def load_double(spec, targets):
        options = LoadOptions(device="cpu", max_sequence_length=spec.max_sequence_length, shard=shard)
        return DoubleModel.load(spec.pretrained, options)

    for module in (coldstart, distill, grpo):
        module.load_model = load_double
    for stage in ("teacher", "coldstart", "distill"):
        train(out / stage, recipe(stage, folder, pipeline, iterations=2))
    nft = {"algorithm": "nft", "nft": {"beta": 0.5, "levels": 3, "slow_rate": 0.1}}
    extra = {"refill": 9, "watch_every": 2}
    train(out / "nft", recipe("teacher", folder, pipeline, method=nft, iterations=3, **extra))
    train(out / "fused", recipe("distill", folder, pipeline, updates=1, iterations=4))
    train(out / "saving", recipe("distill", folder, pipeline, updates=1, iterations=2, gradient_checkpointing=True))
    few = recipe("distill", folder, pipeline, groups=1, updates=2, sample_every=2, watch_every=3)
    train(out / "few", few.model_copy(update={"watch": few.watch.model_copy(update={"groups": 1})}))
    if shard:
        return
    awm = {"algorithm": "awm", "awm": {"levels": 3, "slow_rate": 0.1, "normalize": "each"}}
    redrawn = recipe("teacher", folder, pipeline, method=awm, iterations=3, refill=9, resample_flat=3)
    train(out / "awm", coarse(redrawn))
    whole = recipe("teacher", folder, pipeline, method=nft, iterations=3, lr=1e-3)
    train(out / "full", whole.model_copy(update={"adapter": whole.adapter.model_copy(update={"kind": "full"})}))
    train(out / "sparse", recipe("distill", folder, pipeline, iterations=2, group_size=1))
    thinned = {"iterations": 2, "updates": 1, "micro": 2, "query": {"steps": 2, "law": "beta(2, 1)"}}
    thinned = recipe("distill", folder, pipeline, **thinned)
    opd = {"extrapolate": 1.5, "teachers": "alternating", "teacher_substeps": 2}
    soft = thinned.model_dump(mode="json") | {"opd": opd}
    soft["routing"]["b"] = [{"ref": str(folder / "two"), "weight": 3}, {"ref": str(folder / "one"), "guidance": 3.0}]
    train(out / "soft", recipes.build(soft))
    train(out / "thinned", thinned.model_copy(update={"anchor": thinned.anchor.model_copy(update={"every": 2})}))
    teacher = recipe("teacher", folder, pipeline, groups=2, group_size=2, resample_flat=3, updates=2)
    guarded = {"trust": "mask", "tau": 1e-6, "ratio": "guarded", "level_weight": "equal"}
    teacher = teacher.model_copy(update={"grpo": teacher.grpo.model_copy(update=guarded)})
    train(out / "fresh", coarse(teacher))
    stop = {"metric": "iteration", "above": 1, "patience": 1}
    train(out / "ended", recipe("distill", folder, pipeline, updates=1, checkpoint_every=1, stop=stop))
    train(out / "few-fused", recipe("distill", folder, pipeline, groups=1, updates=1))
    train(out / "kept", kept(folder, pipeline))
    train(out / "one-group", recipe("coldstart", folder, pipeline, groups=1, iterations=2))


def copy(folder, out, pipeline, *, shard):
    """One of several copies."""
    folder, out, pipeline = map(Path, (folder, out, pipeline))
    runs(folder, out, pipeline, shard=shard)
    if shard:
        base = DoubleModel.load(pipeline, LoadOptions(device="cpu", max_sequence_length=4, shard=True)).transformer
        weights = list(base.parameters())
        held = [sum(weight.to_local().numel() for weight in weights), sum(weight.numel() for weight in weights)]
        (out / f"held-{os.environ['RANK']}").write_text(json.dumps(held))
        return
    try:
        train(out / "stopped", recipe("distill", folder, pipeline), StopsRankOne())
    except Interrupted:
        (out / f"stopped-{os.environ['RANK']}").touch()
