"""Train the toy's preference scorer: ``python -m flowopd_cli.toy.train_scorer --out FOLDER`` (one core, minutes)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor

from flowopd_cli import toy
from flowopd_cli.toy import scorer as toy_scorer
from flowopd_cli.toy.pairs import KINDS, SHARPNESS, Pairs, make_pairs
from flowopd_cli.toy.train_base import Log, cosine, json_log, optimizers, set_lr


def main() -> None:
    """Draw pairs, train by Bradley-Terry, measure on validation prompts, save in half precision, log every figure."""
    options = parse()
    log = json_log(options.log, time.process_time, "cpu_seconds")
    autoencoder = AutoencoderKL.from_pretrained(toy.folder() / "vae").float().eval().requires_grad_(False)
    pairs = make_pairs(options.pairs, "train", options.seed, autoencoder)
    held_out = make_pairs(options.validation, "validation", options.seed + 1, autoencoder)
    log("pairs", options.pairs, {"pictures": 2.0 * options.pairs, "prompts": float(len(pairs.texts))})
    scorer = train(pairs, options, log)
    toy_scorer.save(scorer, options.out)
    log("validation", options.steps, accuracies(toy_scorer.load(options.out), held_out))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the scorer")
    parser.add_argument("--log", type=Path, default=None, help="JSONL file for losses and accuracies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=16_000)
    parser.add_argument("--validation", type=int, default=3000, help="pairs of validation prompts")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--start", type=Path, default=None, help="train the scorer of this folder further")
    return parser.parse_args()


def train(pairs: Pairs, options: argparse.Namespace, log: Log) -> toy_scorer.Scorer:
    """Bradley-Terry on the judge's noisy choices, between two pictures and between two prompts of one picture."""
    torch.manual_seed(options.seed)
    words = toy_scorer.tokenizer()
    tokens = toy_scorer.tokenize(words, pairs.texts)
    choices = [torch.bernoulli(torch.sigmoid(SHARPNESS * m)) for m in (pairs.picture_margin, pairs.prompt_margin)]
    scorer = toy_scorer.load(options.start) if options.start else toy_scorer.Scorer(len(words))
    scorer.train().requires_grad_(True)
    trained = optimizers(scorer, options.lr, hidden="_block")
    for step in range(options.steps):
        rows = torch.randint(len(pairs.kind), (options.batch,))
        margins = _margins(_logits(scorer, pairs, tokens, rows))
        losses = [F.binary_cross_entropy_with_logits(m, c[rows]) for m, c in zip(margins, choices, strict=True)]
        sum(losses, torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        for optimizer in trained:
            set_lr(optimizer, options.lr * cosine(step / options.steps, 1.0, warmup=0.03))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == options.steps - 1:
            log("scorer", step, {"pictures": losses[0].item(), "prompts": losses[1].item()})
    with torch.no_grad():  # Bradley-Terry leaves the mean open
        rows = torch.arange(min(1000, len(pairs.kind)))
        scorer.get_parameter("print.2.bias").sub_(_logits(scorer, pairs, tokens, rows)[:, :, 0].mean())
    return scorer.eval()


def _logits(
    scorer: toy_scorer.Scorer, pairs: Pairs, tokens: Int[Tensor, "T L"], rows: Int[Tensor, " b"]
) -> Float[Tensor, "b 2 K"]:
    """The logits of both pictures with every prompt of their pairs."""
    cells = scorer.look(pairs.images[rows].flatten(0, 1) / 255).unflatten(0, (-1, 2))
    words = scorer.read(tokens[pairs.text[rows]].flatten(0, 1)).unflatten(0, (len(rows), -1))
    return scorer.compare(cells[:, :, None], words[:, None])


def _margins(logits: Float[Tensor, "b 2 K"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b 2 K-1"]]:
    """Differences of logits: of the two pictures, and of each picture's own prompt and the others."""
    return logits[:, 0, 0] - logits[:, 1, 0], logits[:, :, :1] - logits[:, :, 1:]


@torch.no_grad()
def accuracies(scorer: toy_scorer.Scorer, pairs: Pairs) -> dict[str, float]:
    """How often the scorer agrees with the judge, who has no noise here, by kind of comparison and by task.

    ``all`` is over pairs of pictures. Comparisons that the judge leaves open are left out.
    """
    tokens = toy_scorer.tokenize(toy_scorer.tokenizer(), pairs.texts)
    batches = torch.arange(len(pairs.kind)).split(250)
    pictures, prompts = _margins(torch.cat([_logits(scorer, pairs, tokens, rows) for rows in batches]))
    differ = pairs.picture_margin != 0
    figures = {"all": _agreement(pictures, pairs.picture_margin, differ)}
    for task, rows in (("codes", pairs.code), ("compositions", ~pairs.code)):
        for i, kind in enumerate(KINDS):
            figures[f"{kind}_{task}"] = _agreement(pictures, pairs.picture_margin, differ & rows & (pairs.kind == i))
        chosen = (pairs.prompt_margin != 0) & rows[:, None, None]
        figures[f"prompt_{task}"] = _agreement(prompts, pairs.prompt_margin, chosen)
    return figures


def _agreement(margins: Tensor, judged: Tensor, chosen: Tensor) -> float:
    return ((margins > 0) == (judged > 0))[chosen].float().mean().item()


if __name__ == "__main__":
    main()
