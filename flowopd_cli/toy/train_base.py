"""The training of the toy base: an autoencoder on random scenes, then a flow-matching MMDiT on its latents."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy import prompts as toy_prompts
from flowopd_cli.toy import scenes
from flowopd_cli.toy.scenes import Habits

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
Log = Callable[[str, int, dict[str, float]], None]
TAG_WEIGHTS = {
    "single_object": 0.05,
    "two_object": 0.10,
    "counting": 0.10,
    "colors": 0.08,
    "position": 0.12,
    "color_attr": 0.15,
}


def json_log(file: Path | None, clock: Callable[[], float], name: str) -> Log:
    """A log that prints a JSON line for each call and appends it to ``file``, with the clock's seconds as ``name``."""
    start = clock()

    def log(phase: str, step: int, figures: dict[str, float]) -> None:
        row = {"phase": phase, "step": step, name: round(clock() - start, 1)}
        line = json.dumps(row | {figure: round(value, 5) for figure, value in figures.items()})
        print(line, flush=True)
        if file:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")

    return log


@dataclass(frozen=True)
class Pool:
    """Latents ``(N, 8, 8, 8)`` with the row of their prompt in ``tokens``."""

    latents: Tensor
    prompt: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class FlowSettings:
    """The settings of the flow training, which ends after ``steps`` or ``seconds``."""

    steps: int
    seed: int
    batch: int = 96
    lr: float = 2e-3
    seconds: float = math.inf


def draw_prompts(count: int, rng: np.random.Generator, codes: float) -> list[Prompt]:
    """Training prompts: a share ``codes`` of random codes outside the held-out splits, tags by ``TAG_WEIGHTS``."""
    by_tag = toy_prompts.train_by_tag()
    held_out = {c for name in ("validation", "test") for c in toy_prompts.codes()[name]}
    weights = np.array([*TAG_WEIGHTS.values()])
    shares = [*(weights / weights.sum() * (1 - codes)), codes]
    tags = rng.choice([*TAG_WEIGHTS, "ocr"], size=count, p=shares)
    return [
        _code_prompt(rng, held_out) if tag == "ocr" else by_tag[tag][rng.integers(len(by_tag[tag]))] for tag in tags
    ]


def _code_prompt(rng: np.random.Generator, held_out: set[str]) -> Prompt:
    glyphs = list(toy_prompts.GLYPHS)
    while (code := "".join(rng.choice(glyphs, toy_prompts.CODE_LENGTH))) in held_out:
        continue
    sign = toy_prompts.SIGNS[rng.integers(len(toy_prompts.SIGNS))]
    return Prompt("", f'{sign} "{code}"', "ocr", {"target": code})


def pictures(prompts: list[Prompt], rng: np.random.Generator, habits: Habits) -> Tensor:
    """Pictures in [-1, 1], ``(N, 3, 32, 32)``."""
    stack = np.stack([scenes.sample(p, rng, habits) for p in prompts])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()


def train_autoencoder(vae: Any, steps: int, seed: int, log: Log, habits: Habits, batch: int = 48) -> None:
    """L1 + MSE reconstruction under latent noise, a weak KL; then the latents are scaled to unit variance."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    data = pictures(draw_prompts(24_000, rng, habits.codes), rng, habits)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=1e-4)
    vae.train().to(memory_format=torch.channels_last)
    for step in range(steps):
        set_lr(optimizer, 2e-3 * cosine(step, steps, warmup=50))
        x = data[torch.from_numpy(rng.integers(len(data), size=batch))].to(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noisy = posterior.sample() + 0.1 * torch.randn_like(posterior.mean)
        y = vae.decode(noisy).sample
        loss = F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log("autoencoder", step, {"loss": loss.item(), "l1": F.l1_loss(y, x).item()})
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(data[:2000]).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


@torch.no_grad()
def make_pool(pipeline: Any, count: int, seed: int, habits: Habits) -> Pool:
    """Draw and encode the training set once."""
    rng = np.random.default_rng(seed + 1)
    config = pipeline.vae.config
    latents: list[Tensor] = []
    rows: list[int] = []
    index = {"": 0}
    for start in range(0, count, 1000):
        prompts = draw_prompts(min(1000, count - start), rng, habits.codes)
        rows += [index.setdefault(prompt.text, len(index)) for prompt in prompts]
        mean = pipeline.vae.encode(pictures(prompts, rng, habits)).latent_dist.mean
        latents.append((mean - config.shift_factor) * config.scaling_factor)
    tokens = pipeline.tokenizer(list(index), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Pool(torch.cat(latents), torch.tensor(rows), tokens)


def condition(pipeline: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """``encode_prompt`` without T5 but with gradients: embeds ``(b, L + 1, D)`` and pooled ``(b, P)``."""
    one = pipeline.text_encoder(ids, output_hidden_states=True)
    two = pipeline.text_encoder_2(ids, output_hidden_states=True)
    embeds = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    zeros = embeds.new_zeros(len(ids), 1, embeds.shape[-1])
    return torch.cat([embeds, zeros], dim=1), torch.cat([one.text_embeds, two.text_embeds], dim=-1)


def train_flow(pipeline: Any, pool: Pool, settings: FlowSettings, log: Log, *, encoders: bool = True) -> None:
    """Flow matching at shifted times, 10 % empty captions, Muon for matrices and AdamW for the rest.

    The pipeline gets the moving average of the weights; without ``encoders`` only the transformer is trained.
    """
    torch.manual_seed(settings.seed)
    texts = torch.nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2]).eval().requires_grad_(False)
    modules = torch.nn.ModuleList([pipeline.transformer, *(texts if encoders else ())])
    modules.train().requires_grad_(True)
    trained = optimizers(modules, settings.lr)
    averaged = [p.detach().clone() for p in modules.parameters()]
    start, step, progress = time.monotonic(), 0, 0.0
    while step < settings.steps and progress < 1:
        progress = max(step / settings.steps, (time.monotonic() - start) / settings.seconds)
        factor = cosine(progress, 1.0, warmup=0.01)
        rows = torch.randint(len(pool.latents), (settings.batch,))
        loss = _flow_loss(pipeline, pool, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in trained:
            set_lr(optimizer, factor * optimizer.defaults["lr"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(averaged, [p.detach() for p in modules.parameters()], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if step % 100 == 0:
            log("flow", step, {"loss": loss.item(), "seconds": time.monotonic() - start})
        step += 1
    with torch.no_grad():
        for parameter, mean in zip(modules.parameters(), averaged, strict=True):
            parameter.copy_(mean)
    modules.eval().requires_grad_(False)


def _flow_loss(pipeline: Any, pool: Pool, rows: Tensor) -> Tensor:
    x0 = pool.latents[rows]
    prompt = torch.where(torch.rand(len(rows)) < 0.1, 0, pool.prompt[rows])
    embeds, pooled = condition(pipeline, pool.tokens[prompt])
    uniform = torch.rand(len(rows))
    sigma = 2 * uniform / (1 + uniform)
    noise = torch.randn_like(x0)
    mixed = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
    velocity = pipeline.transformer(
        hidden_states=mixed,
        timestep=1000 * sigma,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return F.mse_loss(velocity, noise - x0)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum, at the update sizes of AdamW, as ``torch.optim.Muon`` with ``match_rms_adamw``.

    In float32: the bfloat16 of PyTorch's own is many times slower on CPUs without instructions for it.
    """

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update each matrix by its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))
                matrix.mul_(1 - group["lr"] * WEIGHT_DECAY)
                matrix.sub_(update, alpha=0.2 * group["lr"] * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix ``(m, n)`` near the nearest orthogonal one: five steps of Newton-Schulz (Keller Jordan 2024)."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(modules: torch.nn.Module, lr: float, hidden: str = "transformer_blocks") -> list[torch.optim.Optimizer]:
    """Muon for the matrices whose names contain ``hidden``, AdamW for all other parameters."""
    matrices, others = [], []
    for name, parameter in modules.named_parameters():
        (matrices if parameter.ndim == 2 and hidden in name else others).append(parameter)
    return [
        Muon(matrices, {"lr": lr}),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def cosine(step: float, total: float, *, warmup: float) -> float:
    """Linear warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1e-3 * total) / (warmup + 1e-3 * total)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
