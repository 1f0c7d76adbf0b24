"""The base class of families over a diffusers pipeline: loads and freezes it, guides velocities, decodes latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.attention import PROCESSORS, choose_attention
from flowopd_cli.models.files.pipelines import base_fingerprint, check_scheduler, locate, pixels_per_latent
from flowopd_cli.models.full_weights import WeightBank
from flowopd_cli.models.grids import check_grid, even_grid, shift_of
from flowopd_cli.models.guidance import ClassifierFree, extrapolated
from flowopd_cli.models.loading import (
    LoadOptions,
    load_part,
    pick_dtype,
    quiet_libraries,
    require_diffusers,
    take_device,
)
from flowopd_cli.models.quantization import quantize
from flowopd_cli.models.sharding import Turns, shard
from flowopd_cli.models.speed import allow_tf32, checkpointed, compile_blocks
from flowopd_cli.models.texts import Embed, PipelineTexts
from flowopd_cli.system.distributed import GROUP

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULTS = LoadOptions()


@dataclass(frozen=True)
class Modules:
    """Modules that replace those of a folder; ``embed`` replaces the text encoders."""

    transformer: Any = None
    vae: Any = None
    embed: Embed | None = None


FROM_FOLDER = Modules()


class PipelineModel(PipelineTexts):
    """The family-independent part of a :class:`~flowopd_cli.models.base.LoadedModel`.

    A family sets the classes of its parts and its lists of blocks, which are compiled one by one, and defines
    ``_forward`` and ``_embed``. The other members have defaults, which are those of most families:

    ``patch``: latent pixels along a side of one token; ``default_side``: latent pixels along a side without a
    resolution; ``masked``: attention takes a mask of the text's tokens; ``flat_modules``: beginnings of the names of
    modules that are given the tokens of all rows in one dimension; ``plain_options``: arguments without which the
    pipeline's call draws another picture; ``processors``: attention processors in place of those of diffusers that
    ignore backends; ``first_diffusers``: the first version of diffusers whose pipeline draws the same pictures.
    """

    transformer_class: ClassVar[Any]
    autoencoder_class: ClassVar[Any] = AutoencoderKL
    scheduler_class: ClassVar[Any] = FlowMatchEulerDiscreteScheduler
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    flat_modules: ClassVar[tuple[str, ...]] = ()
    masked: ClassVar[bool] = False
    first_diffusers: ClassVar[str] = "0.36"
    patch: ClassVar[int] = 2
    default_side: ClassVar[int] = 128
    plain_options: ClassVar[Mapping[str, Any]] = {}
    processors: ClassVar[Mapping[type, type]] = PROCESSORS

    def __init__(
        self, folder: Path, device: torch.device, options: LoadOptions, modules: Modules = FROM_FOLDER
    ) -> None:
        quiet_libraries()
        check_scheduler(folder, self.scheduler_class.__name__)
        dtype = pick_dtype(options.dtype, device)
        transformer = modules.transformer or self._load_transformer(folder, dtype)
        super().__init__(folder, transformer, options, device, dtype, modules.embed)
        if options.quantize != "none":
            quantize(self.blocks, options.quantize, torch.device("cpu") if options.offload else device)
        self._turns: Turns | None = None
        if options.shard and GROUP.size > 1:
            shard(self.transformer, self.blocks, device)
            self._turns = Turns(self._idle, GROUP)
        self._offload = options.offload
        self._guidance_limit, self._guidance_until = options.guidance_limit, options.guidance_until
        self.transformer.to("cpu" if options.offload else device).eval()
        files = None if modules.transformer else folder / "transformer"
        self.adapters = WeightBank(self.transformer, options.targets, self.flat_modules, self.idle_modules, files)
        self._fingerprint = ""
        self._scheduler = load_part(self.scheduler_class, folder, "scheduler")
        self._resolution = options.resolution
        self._pixels = pixels_per_latent(folder) if options.resolution else 1
        self._vae = modules.vae
        choose_attention(self.transformer, options.attention, masked=self.masked, processors=self.processors)
        compile_blocks(self.blocks, options.compile)
        self.adapters.hooks_work = options.compile == "none"  # compiled code skips hooks that are registered later

    @classmethod
    def load(cls, pretrained: str | Path, options: LoadOptions = DEFAULTS) -> Self:
        """Load a folder or Hub id.

        Raises :class:`ArtifactError`: it cannot be fetched or is of another family; an option does not work here; or
        diffusers is too old for the family.
        """
        require_diffusers(cls.pipeline_name, cls.first_diffusers)
        device = take_device(options.device)
        allow_tf32(device, options.tf32)
        return cls(locate(pretrained, options.revision, cls.transformer_class.__name__), device, options)

    def _load_transformer(self, folder: Path, dtype: torch.dtype) -> Any:
        return load_part(self.transformer_class, folder, "transformer", dtype)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one latent at the chosen resolution, or at the pipeline's own.

        Raises :class:`ArtifactError`: the resolution is between two patches.
        """
        side = self._side(self.default_side, self.patch)
        return self.transformer.config.in_channels, side, side

    @property
    def picture_tokens(self) -> int:
        """Tokens of one picture."""
        _, height, width = self.latent_shape
        return height * width // self.patch**2

    @property
    def idle_modules(self) -> tuple[str, ...]:
        """Beginnings of the names of modules that no velocity depends on, whose weights are not trained."""
        return ()

    @property
    def takes_guidance(self) -> bool:
        """Whether a velocity may have another guidance than 1; not so for most distilled bases."""
        return True

    def sigmas(self, steps: int, shift: float | None = None) -> Float[Tensor, " T1"]:
        """The pipeline's grid: even steps, shifted by ``shift`` or the scheduler's rule for this resolution.

        Raises :class:`ArtifactError`: the scheduler makes another grid.
        """
        if shift is not None:
            return even_grid(steps, shift)
        check_grid(self._scheduler.config, self.folder)
        return even_grid(steps, self._shift(steps), self._scheduler.config.shift_terminal)

    def _shift(self, steps: int) -> float:
        """The scheduler's shift of a grid of ``steps`` at this resolution."""
        return shift_of(self._scheduler.config, self.picture_tokens)

    def velocity(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        *,
        guidance: float | Sequence[float],
        adapters: Sequence[str | None] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        """See :meth:`flowopd_cli.models.base.FlowModel.velocity`; both halves are in one batch.

        Raises :class:`ArtifactError`: the base takes no guidance, and a row has another than 1.
        """
        scales = list(guidance) if isinstance(guidance, Sequence) else [guidance] * len(latents)
        if not self.takes_guidance and any(scale != 1 for scale in scales):
            raise ArtifactError(
                f"{self.folder}: this base takes no guidance: set sampling.guidance, eval.guidance and "
                "push.verify_guidance to 1, if the recipe has them, and leave out those of teachers and anchor"
            )
        cond = self._converted(cond)
        if self._guidance_until is not None and any(scale != 1 for scale in scales):
            passed = [1 - level > self._guidance_until for level in sigma.tolist()]
            scales = [1.0 if late else scale for late, scale in zip(passed, scales, strict=True)]
        if self.classifier_free:
            guided = ClassifierFree(self._forward, self._combined)
            return guided.velocity(latents, sigma, cond, scales, adapters)
        return self._forward(latents, sigma, cond, adapters, sigma.new_tensor(scales))

    @abstractmethod
    def _forward(
        self,
        latents: Float[Tensor, "b C H W"],
        sigma: Float[Tensor, " b"],
        cond: Conditioning,
        adapters: Sequence[str | None] | None,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b C H W"]:
        """Velocity by one call of :meth:`_transform`, which takes the network's own convention.

        ``cond`` has this model's precision and no rows of the empty prompt. ``guidance`` is given where it is an input
        of the network.
        """

    def _combined(
        self, negative: Float[Tensor, "b C H W"], positive: Float[Tensor, "b C H W"], scale: Float[Tensor, "b 1 1 1"]
    ) -> Float[Tensor, "b C H W"]:
        """The velocity with classifier-free guidance from those of the empty prompt and of the prompt."""
        guided = extrapolated(negative, positive, scale)
        if self._guidance_limit is None:
            return guided
        norm, longest = (torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True) for v in (guided, positive))
        return guided * (self._guidance_limit * longest / norm.clamp(min=1e-12)).clamp(max=1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, in the order in which tokens pass them."""
        return [block for name in self.block_lists for block in getattr(self.transformer, name)]

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

    def _transform(self, adapters: Sequence[str | None] | None, **inputs: Any) -> Tensor:
        """One forward, its result in float32; row i through ``adapters[i]``, or all through the one in use."""
        if self._turns is not None:
            self._turns.take()
        inputs["return_dict"] = False
        with self.adapters.mix(adapters):
            if self._offload:
                output = functional_call(self.transformer, self._copied(), (), inputs)[0]
            else:
                output = self.transformer(**inputs)[0]
        return (output if isinstance(output, Tensor) else torch.stack(output)).float()

    def _copied(self) -> dict[str, Tensor]:
        """The weights of an offloaded transformer on the model's device, for one forward."""
        weights = chain(self.transformer.named_parameters(), self.transformer.named_buffers())
        return {name: tensor.to(self.device) for name, tensor in weights}

    def _idle(self, gradients: bool) -> None:
        """An empty forward, with ``gradients`` an empty backward through the policy, in step with other processes."""
        x = torch.zeros(1, self.latent_shape[0], 2, 2, device=self.device)
        with self.adapters.use("policy" if gradients else None):
            velocity = self.velocity(x, x.new_ones(1), self.blank(1), guidance=1.0)
            if gradients:
                (0 * velocity.sum()).backward()

    def checkpoint_gradients(self) -> None:
        """Save only the blocks' inputs for the backward and recompute the rest: less memory, a third slower."""
        self.transformer.enable_gradient_checkpointing(checkpointed(self.adapters))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [0, 1], float32; the autoencoder is loaded on first use and works in float32."""
        if self._vae is None:
            self._vae = load_part(self.autoencoder_class, self.folder, "vae", torch.float32)
            self._vae.to(self.device).eval().requires_grad_(False)
        return (self._decoded(latents.float()) / 2 + 0.5).clamp(0, 1)

    def _decoded(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [-1, 1] by the autoencoder from normalized latents."""
        config = self._vae.config
        scaled = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self._vae.decode(scaled, return_dict=False)[0]

    def packed(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b ..."]:
        """Latents in the layout in which the family's own pipeline takes them."""
        return latents

    @classmethod
    def prepare_plain(cls, pipeline: Any) -> None:
        """Give a plain pipeline this family's grid and steps, where its own scheduler has others."""
