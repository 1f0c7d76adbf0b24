"""Random Stable Diffusion 3 and FLUX pipelines of a few thousand weights, and rollouts of the former."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.toy.pipeline import TOKENS, tokenizer
from flowopd_cli.train import collect, labels
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.routes import Route, Teacher, sole

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXTS = ("a red circle", "a blue square", "two green stars", "the word now")
SEQUENCE, FLUX_SEQUENCE = 4, 6
TEXT_WIDTH = 16
BLOCKS = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
SD3 = {
    **BLOCKS,
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 2 * TEXT_WIDTH,
    "pooled_projection_dim": 2 * TEXT_WIDTH,
    "pos_embed_max_size": 4,
    "qk_norm": "rms_norm",
}
LARGER = {"num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 48}
DECODER = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
T5 = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3, "is_encoder_decoder": False}


def clip_config(words: int) -> CLIPTextConfig:
    """A CLIP text model of two layers."""
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )


def autoencoder(levels: int, scale: float, shift: float) -> AutoencoderKL:
    """Four channels of 4 x 4 latents, from pictures with twice the side for each level beyond the first."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=4 * 2 ** (levels - 1),
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def assemble(seed: int, **geometry) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline without T5; the weights are a function of ``seed``.

    ``geometry`` changes arguments of its transformer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer(TEXTS)
        return StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**{**SD3, **geometry}),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(2, 1.5305, 0.0609),
            text_encoder=CLIPTextModelWithProjection(clip_config(len(words))),
            tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(clip_config(len(words))),
            tokenizer_2=words,
            text_encoder_3=None,
            tokenizer_3=None,
        )


def assemble_flux(seed: int, *, guidance: bool = True) -> FluxPipeline:
    """A FLUX pipeline, with guidance as an input of its network or without; its T5 has a token for every letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0)]
    letters = T5Tokenizer(vocab=pieces + [(c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789\"',."], extra_ids=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer(TEXTS)
        return FluxPipeline(
            transformer=FluxTransformer2DModel(
                **BLOCKS,
                in_channels=16,
                num_single_layers=2,
                joint_attention_dim=T5["d_model"],
                pooled_projection_dim=TEXT_WIDTH,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=autoencoder(3, 0.3611, 0.1159),
            text_encoder=CLIPTextModel(clip_config(len(words))),
            tokenizer=words,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(letters), **T5)),
            tokenizer_2=letters,
        )


def load(folder: Path, **options) -> SD3Model:
    """The folder as a flow model on the CPU."""
    defaults = {"device": "cpu", "max_sequence_length": SEQUENCE, "targets": TARGETS}
    return SD3Model.load(folder, LoadOptions(**{**defaults, **options}))


def randomize(model: SD3Model, name: str, *, seed: int, scale: float = 0.2) -> None:
    """Give an adapter random factors, so that it does something."""
    generator = torch.Generator().manual_seed(seed)
    state = model.adapters.state(name)
    noise = {key: scale * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    model.adapters.load_state(name, noise)


def add_adapters(model: SD3Model) -> SD3Model:
    """The model with a trainable ``policy`` and two frozen adapters, ``other`` and ``third``, all three different."""
    for index, name in enumerate(("policy", "other", "third")):
        model.adapters.add(name, 4, 8.0, seed=index, trainable=name == "policy")
        randomize(model, name, seed=10 + index)
    return model


def make_sampler(model: SD3Model, *, steps: int = 4, kernel: str = "flow_sde", guidance: float = 1.0, window=None):
    """A sampler on the model's own grid, with eta 0.7."""
    sigmas = model.sigmas(steps)
    return Sampler(sigmas, make_kernel(kernel, 0.7, sigmas), guidance, window)


def make_draw(tasks: str = "aabb", groups: str = "0011", first_seed: int = 100) -> Draw:
    """One prompt a letter of ``tasks``, its group the digit below it in ``groups``."""
    prompts = tuple(
        Prompt(f"p{i}", TEXTS[int(g) % len(TEXTS)], t) for i, (t, g) in enumerate(zip(tasks, groups, strict=True))
    )
    seeds = tuple(range(first_seed, first_seed + len(prompts)))
    return Draw(prompts, torch.tensor([int(g) for g in groups]), seeds)


def gradients(model: SD3Model, objective, micro_batches) -> dict[str, torch.Tensor]:
    """The policy's gradient of (sum of totals) / (sum of counts), by parameter name."""
    parameters, count = model.adapters.trainable(), 0
    with model.adapters.use("policy"):
        for batch in micro_batches:
            loss = objective(batch)
            loss.total.backward()
            count += loss.count
    gradients = {name: parameter.grad / count for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return gradients


def hard_routes(teachers: dict[str, Teacher]) -> dict[str, Route]:
    """One teacher a task."""
    return {task: Route(sole(teacher)) for task, teacher in teachers.items()}


def labelled(model: SD3Model, sampler: Sampler, draw: Draw, teachers=None, *, batch: int = 64):
    """A rollout with velocities of the policy, of its teachers (``other`` for all) and of its anchor (``third``)."""
    teachers = teachers or {task: Teacher("other", 1.0) for task in "ab"}
    rolled = collect.rollout(model, sampler, draw, keep="velocities")
    return labels.with_labels(model, sampler, rolled, hard_routes(teachers), Teacher("third", 1.0), batch=batch)


def experience_of(model, *, updates=1, micro=100, tasks="aabb", groups="0011"):
    """On-policy distillation from ``other`` with ``third`` as the anchor; noise is a function of the iteration."""
    sampler = make_sampler(model)

    def experience(iteration):
        rolled = labelled(model, sampler, make_draw(tasks, groups, first_seed=1000 * iteration))
        return collect.step_batches(rolled, sampler, updates=updates, micro=micro, seed=iteration), {"made_up": 1.5}

    return experience
