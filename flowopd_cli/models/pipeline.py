"""The base class of families over a diffusers pipeline: loads and freezes it, encodes texts, decodes latents."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapters import AdapterBank
from flowopd_cli.models.attention import choose_attention
from flowopd_cli.models.embeddings import EmbeddingStore, Row, store_folder
from flowopd_cli.models.files.pipelines import (
    absent_parts,
    base_fingerprint,
    encoder_identity,
    locate,
    pixels_per_latent,
)
from flowopd_cli.models.loading import LoadOptions, load_part, pick_dtype, quiet_libraries, take_device
from flowopd_cli.models.sharding import Turns, shard
from flowopd_cli.models.speed import allow_tf32, checkpointed, compile_blocks
from flowopd_cli.models.tokens import Excess, truncated
from flowopd_cli.system.distributed import GROUP

if TYPE_CHECKING:
    from typing_extensions import Self

ENCODE_BATCH = 16
TEXTS = ("encoder_hidden_states", "pooled_projections")
DEFAULTS = LoadOptions()


@dataclass(frozen=True)
class Modules:
    """Modules that replace those of a folder; ``embed`` replaces the text encoders."""

    transformer: Any = None
    vae: Any = None
    embed: Callable[[list[str]], tuple[Tensor, Tensor]] | None = None


FROM_FOLDER = Modules()


class PipelineModel(ABC):
    """The family-independent part of a :class:`~flowopd_cli.models.base.LoadedModel`.

    A family sets its transformer class, its pipeline class and its lists of blocks, which are compiled one by one.
    """

    transformer_class: ClassVar[Any]
    pipeline_name: ClassVar[str]
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    classifier_free = True

    def __init__(
        self, folder: Path, device: torch.device, options: LoadOptions, modules: Modules = FROM_FOLDER
    ) -> None:
        quiet_libraries()
        self.folder, self.device, self.dtype = folder, device, pick_dtype(options.dtype, device)
        self.max_sequence_length = options.max_sequence_length
        self.transformer: Any = modules.transformer or self._load_transformer()
        self._embed_instead = modules.embed
        self._turns: Turns | None = None
        if options.shard and GROUP.size > 1:
            shard(self.transformer, self.blocks, device)
            self._turns = Turns(self._idle, GROUP)
        self._offload = options.offload
        self.transformer.to("cpu" if options.offload else device).eval()
        self.adapters = AdapterBank(self.transformer, options.targets)
        self._fingerprint = ""
        self._scheduler = load_part(FlowMatchEulerDiscreteScheduler, folder, "scheduler")
        self._resolution = options.resolution
        self._pixels = pixels_per_latent(folder) if options.resolution else 1
        self._encoders: Any = None  # the pipeline's text half
        self._vae = modules.vae
        self.prompts = EmbeddingStore(options.prompt_cache and self._embeddings_folder(options.prompt_cache))
        choose_attention(self.transformer, options.attention)
        compile_blocks(self.blocks, options.compile)
        self.adapters.mixes = options.compile == "none"  # compiled code skips hooks that are registered later

    @classmethod
    def load(cls, pretrained: str | Path, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder or Hub id.

        Raises :class:`ArtifactError`: it cannot be fetched or is of another family; or an option does not work here.
        """
        device = take_device(options.device)
        allow_tf32(device, options.tf32)
        return cls(locate(pretrained, options.revision, cls.transformer_class.__name__), device, options)

    def _load_transformer(self) -> Any:
        return load_part(self.transformer_class, self.folder, "transformer", self.dtype)

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one latent."""

    @abstractmethod
    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The family's grid; see :class:`~flowopd_cli.models.base.LoadedModel`."""

    @abstractmethod
    def velocity(self, *arguments: Any, **options: Any) -> Float[Tensor, "b C H W"]:
        """See :meth:`flowopd_cli.models.base.FlowModel.velocity`."""

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, in the order in which tokens pass them."""
        return [block for name in self.block_lists for block in getattr(self.transformer, name)]

    @property
    def text_tokens(self) -> int:
        """Tokens of an encoded prompt."""
        return self.max_sequence_length

    @property
    def fingerprint(self) -> str:
        """SHA-256 that names this base."""
        self._fingerprint = self._fingerprint or base_fingerprint(self.folder)
        return self._fingerprint

    def _side(self, default: int, patch: int) -> int:
        """Latent pixels along a side: ``default`` without a resolution; a token covers ``patch`` of them."""
        if self._resolution is None:
            return default
        unit = patch * self._pixels
        if self._resolution % unit:
            raise ArtifactError(f"model.resolution {self._resolution} is not a multiple of {unit} pixels")
        return self._resolution // self._pixels

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Rows of embeddings as the pipeline's own ``encode_prompt`` makes them, on the model's device."""
        distinct = self._distinct(texts)
        rows = self.prompts.find(distinct)
        unknown = [text for text in distinct if text not in rows]
        for start in range(0, len(unknown), ENCODE_BATCH):
            rows |= self._encoded(unknown[start : start + ENCODE_BATCH])
        self.prompts.flush()
        parts = zip(*(rows[text] for text in texts), strict=True)
        embeds, pooled = (torch.stack(part).to(self.device) for part in parts)
        if not self.classifier_free:
            return Conditioning(embeds, pooled)
        negative, negative_pooled = (part.to(self.device) for part in rows[""])
        return Conditioning(
            embeds, pooled, neg_embeds=negative.expand_as(embeds), neg_pooled=negative_pooled.expand_as(pooled)
        )

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encode texts that are not in the cache, then release the encoders; without new texts they are not loaded.

        Texts that another process has encoded meanwhile are skipped.
        """
        new = self.prompts.unknown(self._distinct(texts))
        for start in range(0, len(new), ENCODE_BATCH):
            if part := self.prompts.unknown(new[start : start + ENCODE_BATCH]):
                self._encoded(part)
        self.prompts.flush()
        self.release_encoders()

    def truncated(self, texts: Sequence[str]) -> dict[str, Excess]:
        """The texts that are longer than every text encoder reads."""
        return {} if self._embed_instead else truncated(self.folder, self.max_sequence_length, texts)

    def _distinct(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts, and the empty one if guidance needs it."""
        return list(dict.fromkeys([*([""] if self.classifier_free else []), *texts]))

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> dict[str, Row]:
        """Encode at most ``ENCODE_BATCH`` texts, padded to that many: a row must not depend on the batch."""
        embeds, pooled = (self._embed_instead or self._embed)([*texts, *[""] * (ENCODE_BATCH - len(texts))])
        parts = zip(texts, embeds.to("cpu", self.dtype), pooled.to("cpu", self.dtype), strict=False)
        rows = {text: (e.clone(), p.clone()) for text, e, p in parts}
        self.prompts.add(rows)
        return rows

    @abstractmethod
    def _embed(self, texts: list[str]) -> tuple[Float[Tensor, "b L D"], Float[Tensor, "b P"]]:
        """A sequence and a vector for each text, from the family's encoders."""

    def share_prompts(self, other: object) -> bool:
        """Take prompts from another model's store if its encoders and lengths are equal; whether they are.

        They have that model's precision; a forward converts them.
        """
        if not isinstance(other, PipelineModel):
            return False
        mine, others = (
            (model.pipeline_name, model.max_sequence_length, encoder_identity(model.folder)) for model in (self, other)
        )
        if mine == others:
            self.prompts = other.prompts
        return mine == others

    def release_encoders(self) -> None:
        """Release the text encoders; a new text loads them again."""
        self._encoders = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _transform(self, adapters: Sequence[str | None] | None, **inputs: Any) -> Tensor:
        """One forward, its result in float32; row i through ``adapters[i]``, or all through the one in use."""
        if self._turns is not None:
            self._turns.take()
        texts = {name: inputs[name].to(self.dtype) for name in TEXTS if inputs.get(name) is not None}
        inputs |= {**texts, "return_dict": False}  # another model may have encoded them
        with self.adapters.mix(adapters):
            if self._offload:
                return functional_call(self.transformer, self._copied(), (), inputs)[0].float()
            return self.transformer(**inputs)[0].float()

    def _copied(self) -> dict[str, Tensor]:
        """The weights of an offloaded transformer on the model's device, for one forward."""
        weights = chain(self.transformer.named_parameters(), self.transformer.named_buffers())
        return {name: tensor.to(self.device) for name, tensor in weights}

    def _idle(self, gradients: bool) -> None:
        """An empty forward, with ``gradients`` an empty backward through the policy, in step with other processes."""
        config = self.transformer.config
        x = torch.zeros(1, self.latent_shape[0], 2, 2, device=self.device)
        embeds = torch.zeros(1, 1, config.joint_attention_dim, device=self.device, dtype=self.dtype)
        pooled = torch.zeros(1, config.pooled_projection_dim, device=self.device, dtype=self.dtype)
        with self.adapters.use("policy" if gradients else None):
            velocity = self.velocity(x, x.new_ones(1), Conditioning(embeds, pooled), guidance=1.0)
            if gradients:
                (0 * velocity.sum()).backward()

    def checkpoint_gradients(self) -> None:
        """Save only the blocks' inputs for the backward and recompute the rest: less memory, a third slower."""
        self.transformer.enable_gradient_checkpointing(checkpointed(self.adapters))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1], float32; the autoencoder is loaded on first use and works in float32."""
        if self._vae is None:
            self._vae = load_part(AutoencoderKL, self.folder, "vae", torch.float32)
            self._vae.to(self.device).eval().requires_grad_(False)
        config = self._vae.config
        scaled = latents.float() / config.scaling_factor + (config.shift_factor or 0.0)
        return (self._vae.decode(scaled, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b ..."]:
        """Latents in the layout in which the family's own pipeline takes them."""
        return latents

    def _pipeline(self) -> Any:
        """The pipeline's text half: encoders and tokenizers, with the transformer that is already loaded."""
        if self._encoders is None:
            kind = getattr(diffusers, self.pipeline_name)  # its import takes seconds, and few runs need encoders
            parts = {"transformer": self.transformer, "vae": None, **absent_parts(self.folder)}
            self._encoders = load_part(kind, self.folder, dtype=self.dtype, **parts)
            for name, encoder in self._encoders.components.items():
                if name.startswith("text_encoder") and encoder is not None:
                    encoder.to(self.device).eval().requires_grad_(False)
        return self._encoders

    def _embeddings_folder(self, root: Path) -> Path:
        """A folder named by all that the embeddings depend on: encoders, length, precision, versions."""
        versions = [diffusers.__version__, transformers.__version__]
        options = {"length": self.max_sequence_length, "dtype": str(self.dtype), "device": self.device.type}
        return store_folder(root, encoder_identity(self.folder) | options | {"versions": versions})
