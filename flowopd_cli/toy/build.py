"""Train the toy base from scratch: ``python -m flowopd_cli.toy.build --out FOLDER`` (two cores, under two hours)."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from copy import deepcopy
from pathlib import Path

from flowopd_cli import toy
from flowopd_cli.toy import pipeline as toy_pipeline
from flowopd_cli.toy import prompts as toy_prompts
from flowopd_cli.toy.scenes import HABITS, Habits
from flowopd_cli.toy.train_base import FlowSettings, Log, json_log, make_pool, train_autoencoder, train_flow


def main() -> None:
    """Train autoencoder and transformer, save the pipeline as half-precision safetensors, log every loss."""
    options = parse()
    hatch = (options.hatch[0], options.hatch[1])
    habits = Habits(options.careless, options.misspelt, options.worn, hatch, options.drift, options.codes)
    log = json_log(options.log, time.monotonic, "elapsed")
    pipe = start_pipeline(options, habits, log)
    pool = make_pool(pipe, options.pool, options.seed, habits)
    log("pool", len(pool.latents), {"texts": float(len(pool.tokens))})
    settings = FlowSettings(options.flow_steps, options.seed, options.batch, options.lr, options.seconds)
    train_flow(pipe, pool, settings, log, encoders=options.beside is None)
    if options.beside is None:
        save(pipe, options.out)
    else:
        shutil.copytree(
            options.beside, options.out, ignore=shutil.ignore_patterns("transformer", "scorer"), dirs_exist_ok=True
        )
        pipe.transformer.half().save_pretrained(options.out / "transformer")
    log("done", options.flow_steps, {})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the diffusers pipeline")
    parser.add_argument("--log", type=Path, default=None, help="JSONL file for the losses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder-steps", type=int, default=2000)
    parser.add_argument("--flow-steps", type=int, default=7600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=120_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit of the flow training")
    parser.add_argument("--careless", type=float, default=HABITS.careless, help="probability of a wrong composition")
    parser.add_argument("--misspelt", type=float, default=HABITS.misspelt, help="probability of a wrong letter")
    parser.add_argument("--worn", type=float, default=HABITS.worn, help="share of worn prints")
    parser.add_argument("--hatch", type=float, nargs=2, default=HABITS.hatch, help="range of the hatch of a print")
    parser.add_argument("--drift", type=int, default=HABITS.drift, help="largest vertical offset of a code in pixels")
    parser.add_argument("--codes", type=float, default=HABITS.codes, help="share of codes in the training set")
    parser.add_argument("--autoencoder", type=Path, default=None, help="use the autoencoder of this pipeline")
    parser.add_argument(
        "--beside", type=base, default=None, help="toy or a folder: train only a transformer, for its other parts"
    )
    parser.add_argument("--layers", type=int, default=5, help="blocks of the transformer of --beside")
    parser.add_argument("--heads", type=int, default=5, help="its heads, of width 32")
    parser.add_argument("--grow", action="store_true", help="start from the transformer of --beside, at its width")
    parser.add_argument("--start", type=Path, default=None, help="train this pipeline further, not a fresh one")
    return parser.parse_args()


def base(name: str) -> Path:
    """The folder of a pipeline, or of the shipped one."""
    return toy.folder() if name == "toy" else Path(name)


def start_pipeline(options: argparse.Namespace, habits: Habits, log: Log) -> toy_pipeline.StableDiffusion3Pipeline:
    """A pipeline with a trained autoencoder: one from disk to train further, or with a fresh transformer, or a new one.

    A base beside another has its latents and prompts, so that it can teach it (``routing.TASK.base``).
    """
    if options.start is not None:
        return toy_pipeline.load(options.start)
    if options.beside is not None:
        pipe = toy_pipeline.load(options.beside)
        if options.grow:
            pipe.transformer = toy_pipeline.grow(pipe.transformer, options.layers, options.seed)
        else:
            pipe.transformer = toy_pipeline.transformer(options.layers, options.heads, options.seed)
        return pipe
    texts = [p.text for split in toy_prompts.SPLITS for p in toy_prompts.geneval(split)]
    pipe = toy_pipeline.assemble([*texts, *toy_prompts.SIGNS], options.seed)
    if options.autoencoder:
        pipe.vae = type(pipe.vae).from_pretrained(options.autoencoder / "vae")
    else:
        train_autoencoder(pipe.vae, options.autoencoder_steps, options.seed, log, habits)
        save(pipe, options.out)
    return pipe


def save(pipe: toy_pipeline.StableDiffusion3Pipeline, folder: Path) -> None:
    """Write the pipeline with transformer and autoencoder in half precision, without the build machine's folders.

    The text encoders stay in float32: diffusers takes the precision of the latents from them.
    """
    halves = {"transformer": deepcopy(pipe.transformer).half(), "vae": deepcopy(pipe.vae).half()}
    type(pipe)(**{**pipe.components, **halves}).save_pretrained(folder)
    for path in folder.rglob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
