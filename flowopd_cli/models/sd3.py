"""Stable Diffusion 3 and 3.5: any diffusers folder or Hub id. Base loaded once, frozen; encoders let go after use."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapters import AdapterBank
from flowopd_cli.models.devices import pick_dtype, take_device
from flowopd_cli.models.guidance import guided
from flowopd_cli.models.plain import absent_t5
from flowopd_cli.models.quiet import hush

ENCODE_BATCH = 64
TRAIN_TIMESTEPS = 1000
WHOLE_FILE_BYTES = 64 * 1024**2
EDGE_BYTES = 1024**2


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
    ) -> None:
        hush()
        self.folder, self.dtype, self.device = folder, dtype, device
        self.max_sequence_length = max_sequence_length
        self.transformer = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
        self.transformer.to(device).eval()
        self.adapters = AdapterBank(self.transformer, targets)
        self._scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        self._resolution = resolution
        self._encoders: StableDiffusion3Pipeline | None = None
        self._vae: AutoencoderKL | None = None
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        self._fingerprint: str | None = None

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
    ) -> SD3Model:
        """Load a folder or Hub id; for ``auto`` see :mod:`flowopd_cli.models.devices`.

        Raises:
            ArtifactError: nothing there, not an SD3 pipeline, no such device, or it cannot be fetched.
        """
        place = take_device(device)
        folder = locate(pretrained, revision)
        return cls(
            folder,
            dtype=pick_dtype(dtype, place),
            device=place,
            resolution=resolution,
            max_sequence_length=max_sequence_length,
            targets=targets,
        )

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

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Rows of embeddings as the pipeline's own ``encode_prompt`` makes them, on the model's device.

        Each distinct text is encoded once and kept in the host's memory: ``(77 + max_sequence_length) * 4096`` numbers
        for SD3's embeddings, 1.7 MB a text at 128 tokens in bfloat16.
        """
        new = [text for text in dict.fromkeys(["", *texts]) if text not in self._cache]
        for start in range(0, len(new), ENCODE_BATCH):
            part = new[start : start + ENCODE_BATCH]
            embeds, _, pooled, _ = self._pipeline().encode_prompt(
                part,
                None,
                None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
            rows = zip(part, embeds.to("cpu", self.dtype), pooled.to("cpu", self.dtype), strict=True)
            self._cache |= {text: (e.clone(), p.clone()) for text, e, p in rows}
        empty, rows = self._cache[""], [self._cache[text] for text in texts]
        return Conditioning(
            embeds=torch.stack([e for e, _ in rows]).to(self.device),
            pooled=torch.stack([p for _, p in rows]).to(self.device),
            neg_embeds=empty[0].to(self.device).expand(len(texts), -1, -1),
            neg_pooled=empty[1].to(self.device).expand(len(texts), -1),
        )

    def release_encoders(self) -> None:
        """Let the text encoders go; a text not seen before would load them again."""
        self._encoders = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
        with self.adapters.mix(adapters):
            return self.transformer(
                hidden_states=latents.to(self.dtype),
                timestep=sigma * TRAIN_TIMESTEPS,
                encoder_hidden_states=embeds,
                pooled_projections=pooled,
                return_dict=False,
            )[0].float()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1], float32; the autoencoder is loaded when first asked for and works in float32."""
        if self._vae is None:
            self._vae = AutoencoderKL.from_pretrained(self.folder, subfolder="vae", torch_dtype=torch.float32)
            self._vae.to(self.device).eval().requires_grad_(False)
        config = self._vae.config
        scaled = latents.float() / config.scaling_factor + (config.shift_factor or 0.0)
        return (self._vae.decode(scaled, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def _pipeline(self) -> StableDiffusion3Pipeline:
        """The pipeline's text half: encoders and tokenizers, with the transformer that is already loaded."""
        if self._encoders is None:
            self._encoders = StableDiffusion3Pipeline.from_pretrained(
                self.folder, transformer=self.transformer, vae=None, torch_dtype=self.dtype, **absent_t5(self.folder)
            )
            for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
                encoder = getattr(self._encoders, name)
                if encoder is not None:
                    encoder.to(self.device).eval().requires_grad_(False)
        return self._encoders

    def _vae_config(self) -> dict:
        return json.loads((self.folder / "vae" / "config.json").read_text(encoding="utf-8"))


def locate(pretrained: str | Path, revision: str | None = None) -> Path:
    """The local folder of a pipeline, fetched from the Hub when it is not a folder.

    Raises:
        ArtifactError: it is not an SD3 pipeline, or cannot be fetched.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        folder = _fetch(str(pretrained), revision)
    config = folder / "transformer" / "config.json"
    if not config.is_file():
        raise ArtifactError(f"{pretrained}: not a diffusers pipeline (no transformer/config.json in it)")
    kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if kind != "SD3Transformer2DModel":
        raise ArtifactError(f"{pretrained}: its transformer is {kind}, the family sd3 needs SD3Transformer2DModel")
    return folder


def _fetch(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if repo.count("/") != 1:
        raise ArtifactError(f"{repo}: no such folder, and not a Hub id (owner/name): check --base")
    patterns = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{repo}: cannot be fetched ({reason}); check the name, `hf auth login`, or give a local folder to --base"
        ) from error


def base_fingerprint(folder: str | Path) -> str:
    """SHA-256 over the transformer's configuration and weight files, without loading them.

    Files above 64 MiB count by their size and their first and last MiB: the header of a safetensors file, which holds
    every name, shape and offset, and real weights at both ends.
    """
    digest = hashlib.sha256()
    for path in sorted((locate(folder) / "transformer").iterdir()):
        if path.suffix not in {".json", ".safetensors"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, 2)
                digest.update(file.read())
    return digest.hexdigest()
