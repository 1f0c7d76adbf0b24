"""Runs as stages leave them, without any training, with made-up metrics, samples, adapters and evaluations."""

import json
import math
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from flowopd_cli import recipe as recipes
from flowopd_cli.reports import report
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.layout import part_name
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir

ROUTES = {"geneval": {"ref": "base"}, "ocr": {"ref": "base"}}
TRAINED = {"model": {"pretrained": "toy"}, "train": {"iterations": 30}, "prompts": [{"source": "toy:all"}]}
TEACHER = {"stage": "teacher", "rewards": [{"name": "ocr"}], **TRAINED}
DISTILL = {"stage": "distill", "routing": ROUTES, **TRAINED}
EVAL = {"stage": "eval", "model": {"pretrained": "toy"}, "eval": {"suites": ["toy-ocr"]}}
BASE = Base(ref="toy", sha256="b" * 64)
SUITES = {"geneval": 0.6, "ocr": 0.5}
PAPER = {"average": 0.7, "deqa": 4.1, "geneval": 0.6, "ocr": 0.5, "pickscore": 22.0}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>$\\frac{=cmd|`x`|'


class Tags(HTMLParser):
    """The elements of a page with their attributes, and its texts."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(path, folder):
    """The report of a run, written to ``folder``."""
    return Tags(report.of_run(path, folder / "page.html").read_text(encoding="utf-8"))


def begun(path, recipe):
    """A run that has started."""
    run = RunDir.create(path, recipe["stage"])
    run.start(recipes.build(recipe))
    run.declare(Inputs(base=BASE))
    return run


def row(i, **more):
    """A row of metrics, with what every training logs."""
    clock = {"seconds_collect": 0.5, "seconds_learn": 0.25}
    return {"iteration": i, "step": i, "loss": 0.1 / i, "grad_norm": 0.01, "skipped": 0, **clock, **more}


def teacher(path, iterations=30, **more):
    """A finished teacher: thirty rows, two rows of samples, an adapter of its own."""
    run = begun(path, TEACHER | more)
    for i in range(1, iterations + 1):
        reward = 0.5 + 0.01 * i
        run.log(row(i, reward=reward, reward_std=0.1, clip_fraction=0.05, **{"reward/ocr": reward}))
    prompts = [{"text": f'a sign that says "{word}"', "seed": 7} for word in ("ABC", "DEF")]
    run.sample_prompts_file.parent.mkdir(exist_ok=True)
    run.sample_prompts_file.write_text(json.dumps(prompts))
    for at in (15, 30):
        run.write_image(f"{at:06d}", noise(2, 16, at))
    with_adapter(run)
    run.finish("done", {"reward": 0.8})
    return run


def student(path, *teachers, finish=True):
    """A distillation: KL by teacher and by step; its parents are the teachers."""
    run = begun(path, DISTILL)
    tasks = ["geneval", "ocr"]
    roles = [f"teacher_{task}" for task in tasks]
    run.declare(Inputs(parents=tuple(parent(made, role) for made, role in zip(teachers, roles, strict=False))))
    for i in range(1, 31):
        steps = {f"kl_step/{t}": math.exp(-t - i / 30) for t in range(6)}
        run.log(row(i, kl=1 / i, kl_anchor=0.1, **{f"kl/{t}": 1 / (i + n) for n, t in enumerate(tasks)}, **steps))
    if finish:
        with_adapter(run)
        run.finish("done")
    return run


def evaluation(path, made=None, means=None, fields=None, base=BASE, quantize="none", **protocol):
    """The evaluation of a run's adapter, or of the base; ``fields`` are further fields of each result.

    With several guidances a suite has a mean for each.
    """
    model = {"pretrained": "toy", "quantize": quantize}
    run = begun(path, EVAL | {"model": model, "eval": {"suites": ["toy-ocr"], **protocol}})
    policy = parent(made, "policy") if made else Parent(role="policy", ref="base")
    run.declare(Inputs(base=base, parents=(policy,)))
    for index, part in enumerate(run.recipe().eval.by_guidance):
        for suite, mean in (means or SUITES).items():
            result = {"suite": suite, "version": f"{suite}-1", "mean": mean[index] if part else mean}
            result |= {"stderr": 0.01, "n": 8, "exact": suite != "ocr", **(fields or {})}
            run.write_eval(suite, json.dumps(result), part)
        run.write_image(part_name("eval", part), noise(3, 16, len(str(path))))
    run.write_eval("prompts", json.dumps(["a red circle", "a blue square", "two stars"]))
    run.finish("done")
    return run


def evaluated(root, means, name="t"):
    """A teacher, evaluated like the base but 0.1 better at every suite."""
    made = teacher(root / name)
    evaluation(root / "e-base", None, means)
    evaluation(root / "e", made, {suite: mean + 0.1 for suite, mean in means.items()})
    return made.path


def parent(made, role):
    return Parent(role=role, ref=str(made.path), sha256=AdapterRef.parse(str(made.path)).resolve().sha256)


def with_adapter(run):
    """Files that stand for an adapter: what they hold is the run's name."""

    def fill(folder):
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(run.path.name)

    run.save_adapter(fill)


def noise(count, size, seed):
    """A row of pictures that nothing compresses."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, count * size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def policy_run(path):
    """A finished run of a policy on the base ``toy``."""
    run = begun(path, TEACHER)
    with_adapter(run)
    run.finish("done")
    return run
