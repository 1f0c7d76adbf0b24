"""Stable Diffusion 3 and 3.5: any diffusers folder or Hub id. Base loaded once, frozen; encoders let go after use."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json
from flowopd_cli.models.adapters import AdapterBank
from flowopd_cli.models.attention import choose_attention
from flowopd_cli.models.devices import pick_dtype, take_device
from flowopd_cli.models.embeddings import EmbeddingStore, Row, store_folder
from flowopd_cli.models.folders import base_fingerprint, encoder_identity, locate
from flowopd_cli.models.guidance import guided
from flowopd_cli.models.parts import load_part
from flowopd_cli.models.plain import absent_t5
from flowopd_cli.models.quiet import hush
from flowopd_cli.models.shards import Turns
from flowopd_cli.models.shards import shard as cut
from flowopd_cli.models.speed import allow_tf32, checkpointed, compile_blocks
from flowopd_cli.processes import rank_and_world

if TYPE_CHECKING:  # imported where encoders are loaded: it takes seconds, and few runs need them
    from diffusers import StableDiffusion3Pipeline

ENCODE_BATCH = 16
TRAIN_TIMESTEPS = 1000


class SD3Model:
    """A :class:`~flowopd_cli.models.base.FlowModel` over SD3's transformer, text encoders and autoencoder."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        resolution: int | None,
        max_sequence_length: int,
        targets: Sequence[str],
        prompt_cache: Path | None = None,
        shard: bool = False,
    ) -> None:
        hush()
        self.folder, self.dtype, self.device = folder, dtype, device
        self.max_sequence_length = max_sequence_length
        self.transformer = self._load_transformer()
        self._turns: Turns | None = None
        if shard and rank_and_world()[1] > 1:
            cut(self.transformer, self.transformer.transformer_blocks, device)
            self._turns = Turns(self._idle)
        self.transformer.to(device).eval()
        self.adapters = AdapterBank(self.transformer, targets)
        self._scheduler = load_part(FlowMatchEulerDiscreteScheduler, folder, "scheduler")
        self._resolution = resolution
        self._encoders: StableDiffusion3Pipeline | None = None
        self._vae: AutoencoderKL | None = None
        self.prompts = EmbeddingStore(prompt_cache and self._embeddings_under(prompt_cache))
        self._fingerprint: str | None = None

    def _load_transformer(self) -> SD3Transformer2DModel:
        """The transformer's weights, read once; :class:`~flowopd_cli.models.random.RandomSD3` makes them up."""
        options = {"torch_dtype": self.dtype, "use_safetensors": True}
        return load_part(SD3Transformer2DModel, self.folder, "transformer", **options)

    @classmethod
    def load(
        cls,
        pretrained: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        resolution: int | None = None,
        max_sequence_length: int = 128,
        targets: Sequence[str] = (),
        prompt_cache: Path | None = None,
        tf32: bool = True,
        compile: str = "none",
        attention: str = "auto",
        shard: bool = False,
    ) -> SD3Model:
        """Load a folder or Hub id; for ``auto`` see :mod:`flowopd_cli.models.devices`.

        ``prompt_cache`` is a folder in which embeddings outlive the run; without one they stay in memory. For the rest
        see :mod:`~flowopd_cli.models.speed`, :mod:`~flowopd_cli.models.attention`, :mod:`~flowopd_cli.models.shards`.

        Raises:
            ArtifactError: nothing there, not an SD3 pipeline, no such device, it cannot be fetched, or attention or
                compilation cannot work as asked.
        """
        place = take_device(device)
        allow_tf32(place, tf32)
        folder = locate(pretrained, revision)
        model = cls(
            folder,
            dtype=pick_dtype(dtype, place),
            device=place,
            resolution=resolution,
            **{"max_sequence_length": max_sequence_length, "targets": targets},
            **{"prompt_cache": prompt_cache, "shard": shard},
        )
        choose_attention(model.transformer, attention)
        compile_blocks(model.transformer.transformer_blocks, compile)
        model.adapters.mixes = compile == "none"  # compiled code passes over hooks that came after it
        return model

    @property
    def fingerprint(self) -> str:
        """SHA-256 that names this base."""
        if self._fingerprint is None:
            self._fingerprint = base_fingerprint(self.folder)
        return self._fingerprint

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` at the chosen resolution, or at the transformer's own sample size.

        Raises:
            ArtifactError: the resolution is between two patches, or beyond the largest that the base has positions for.
        """
        config = self.transformer.config
        side = config.sample_size
        if self._resolution is not None:
            factor = 2 ** (len(self._vae_config()["block_out_channels"]) - 1)
            side, patch = self._resolution // factor, factor * config.patch_size
            if self._resolution % patch:
                raise ArtifactError(f"model.resolution {self._resolution} is not a multiple of {patch} pixels")
            if self._resolution > patch * config.pos_embed_max_size:
                raise ArtifactError(
                    f"model.resolution {self._resolution}: this base has positions for at most "
                    f"{patch * config.pos_embed_max_size} pixels, so lower it"
                )
        return config.in_channels, side, side

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The scheduler's grid, with its own shift unless another is given.

        Raises:
            ArtifactError: the scheduler shifts by resolution, which SD3's does not.
        """
        config = self._scheduler.config
        if config.use_dynamic_shifting and shift is None:
            raise ArtifactError(f"{self.folder}: the scheduler shifts by resolution; set sampling.shift to a number")
        return flow_sigmas(steps, config.shift if shift is None else shift)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Rows of embeddings as the pipeline's own ``encode_prompt`` makes them, on the model's device.

        A text seen before, by this run or, with a cache, by an earlier one, is read and not encoded.
        """
        wanted = list(dict.fromkeys(["", *texts]))
        known = self.prompts.find(wanted)
        new = [text for text in wanted if text not in known]
        for start in range(0, len(new), ENCODE_BATCH):
            known |= self._encoded(new[start : start + ENCODE_BATCH])
        self.prompts.flush()
        empty, rows = known[""], [known[text] for text in texts]
        return Conditioning(
            embeds=torch.stack([e for e, _ in rows]).to(self.device),
            pooled=torch.stack([p for _, p in rows]).to(self.device),
            neg_embeds=empty[0].to(self.device).expand(len(texts), -1, -1),
            neg_pooled=empty[1].to(self.device).expand(len(texts), -1),
        )

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encode what no run has yet, and let the encoders go; they are not even loaded when there is nothing new.

        What another process writes meanwhile is left out, so that processes that begin at different texts share the
        work.
        """
        new = self.prompts.unknown(["", *texts])
        for start in range(0, len(new), ENCODE_BATCH):
            if part := self.prompts.unknown(new[start : start + ENCODE_BATCH]):
                self._encoded(part)
        self.prompts.flush()
        self.release_encoders()

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> dict[str, Row]:
        """Encode at most ``ENCODE_BATCH`` texts, filled up to as many: a row must not depend on its company."""
        embeds, _, pooled, _ = self._pipeline().encode_prompt(
            [*texts, *[""] * (ENCODE_BATCH - len(texts))],
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        parts = zip(texts, embeds.to("cpu", self.dtype), pooled.to("cpu", self.dtype), strict=False)
        rows = {text: (e.clone(), p.clone()) for text, e, p in parts}
        self.prompts.add(rows)
        return rows

    def release_encoders(self) -> None:
        """Let the text encoders go; a text not seen before would load them again."""
        self._encoders = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint_gradients(self) -> None:
        """Keep only the blocks' inputs for the backward, and compute the rest again: less memory, a third slower."""
        self.transformer.enable_gradient_checkpointing(checkpointed(self.adapters))

    def velocity(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        *,
        guidance: float | Sequence[float],
        adapters: Sequence[str | None] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        """``v_neg + guidance (v_pos - v_neg)`` in one batch; rows of guidance 1 have no negative half in it.

        ``guidance`` may be a number for each row, and ``adapters`` a name for each row: a mixed batch, for which
        gradients are off, in place of the adapter in use.
        """
        return guided(self._forward, latents, sigma, cond, guidance, adapters)

    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        embeds: Float[Tensor, "b L D"],
        pooled: Float[Tensor, "b P"] | None,
        adapters: Sequence[str | None] | None,
    ) -> Float[Tensor, "b C H W"]:
        """The transformer once, in float32 at the end; ``adapters`` as in :meth:`velocity`."""
        if self._turns is not None:
            self._turns.take()
        with self.adapters.mix(adapters):
            return self.transformer(
                hidden_states=latents.to(self.dtype),
                timestep=sigma * TRAIN_TIMESTEPS,
                encoder_hidden_states=embeds,
                pooled_projections=pooled,
                return_dict=False,
            )[0].float()

    def _idle(self, gradients: bool) -> None:
        """A forward of nothing, with ``gradients`` of nothing through the policy, in step with other processes."""
        config = self.transformer.config
        x = torch.zeros(1, config.in_channels, config.patch_size, config.patch_size, device=self.device)
        embeds = torch.zeros(1, 1, config.joint_attention_dim, device=self.device, dtype=self.dtype)
        pooled = torch.zeros(1, config.pooled_projection_dim, device=self.device, dtype=self.dtype)
        with self.adapters.use("policy" if gradients else None):
            velocity = self._forward(x, x.new_ones(1), embeds, pooled, None)
            if gradients:
                (0 * velocity.sum()).backward()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1], float32; the autoencoder is loaded when first asked for and works in float32."""
        if self._vae is None:
            options = {"torch_dtype": torch.float32, "use_safetensors": True}
            self._vae = load_part(AutoencoderKL, self.folder, "vae", **options)
            self._vae.to(self.device).eval().requires_grad_(False)
        config = self._vae.config
        scaled = latents.float() / config.scaling_factor + (config.shift_factor or 0.0)
        return (self._vae.decode(scaled, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def _pipeline(self) -> StableDiffusion3Pipeline:
        """The pipeline's text half: encoders and tokenizers, with the transformer that is already loaded."""
        if self._encoders is None:
            from diffusers import StableDiffusion3Pipeline

            own = {"transformer": self.transformer, "vae": None, "torch_dtype": self.dtype, "use_safetensors": True}
            self._encoders = load_part(StableDiffusion3Pipeline, self.folder, **own, **absent_t5(self.folder))
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                encoder = getattr(self._encoders, name)
                if encoder is not None:
                    encoder.to(self.device).eval().requires_grad_(False)
        return self._encoders

    def _embeddings_under(self, root: Path) -> Path:
        """A folder for embeddings that depend on what these do: encoders, length, precision, versions."""
        versions = [diffusers.__version__, transformers.__version__]
        own = {"length": self.max_sequence_length, "dtype": str(self.dtype), "device": self.device.type}
        return store_folder(root, encoder_identity(self.folder) | own | {"versions": versions})

    def _vae_config(self) -> dict:
        config = read_json(self.folder / "vae" / "config.json", "configuration of an autoencoder")
        if not isinstance(config.get("block_out_channels"), list):
            raise ArtifactError(f"{self.folder}: the configuration of its autoencoder has no block_out_channels")
        return config
