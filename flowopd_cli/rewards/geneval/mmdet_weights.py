"""The GenEval detector's network: mmdet's checkpoint, or a folder of ``transformers``, into one module.

Nothing of mmdet is needed, and no pickle is trusted: a checkpoint is read with ``weights_only=True``, the numpy and
mmcv objects of its training log replaced by empty stand-ins, and kept as safetensors after that.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.prompts.clauses import COCO_CLASSES
from flowopd_cli.rewards.geneval.mmdet_keys import INDEX_TABLE, UNREAD_NORM, Architecture, convert, modern
from flowopd_cli.rewards.preference.clip import read, refuse_incomplete, split_revision
from flowopd_cli.rewards.weights import download, load_tensors, refuse_mismatch, refuse_unpinned, split_digest
from flowopd_cli.system.files import atomic_write, sha256_file
from flowopd_cli.system.paths import cache_dir

SERVER = "https://download.openmmlab.com/mmdetection"
# The same training run as published for mmdet 3 and for mmdet 2; a file's name ends in the prefix of its sha256.
RELEASES = (
    f"{SERVER}/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco/"
    "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
    f"{SERVER}/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
)
OFFICIAL = tuple(url.removesuffix(".pth").rsplit("-", 1)[-1] for url in RELEASES)
FORMAT = 1
STAND_IN_MODULES = ("numpy", "mmcv", "mmengine")
UNKNOWN_GLOBAL = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)")
STAND_INS_MAX = 32


class Network(NamedTuple):
    """The module, a name that tells its weights apart, and whether they are the ones GenEval is defined by."""

    module: Any
    name: str
    official: bool


def load_network(weights: str | None, *, architecture: Architecture | None = None) -> Network:
    """A detector's network in evaluation mode, on the CPU, in float32.

    ``weights`` is ``None`` (GenEval's own, downloaded once), a checkpoint of mmdet (``.pth#sha256=digest``, or its
    tensors as ``.safetensors``), or a folder or Hub id (``repository@revision``) of ``transformers``; ``architecture``
    says how large a checkpoint is.

    Raises:
        ArtifactError: it is not there, or its tensors are not exactly those of the network.
    """
    place, digest = (str(fetch()), None) if weights is None else split_digest(weights)
    path = Path(place)
    if path.is_file():
        return _from_checkpoint(path, architecture or Architecture(), digest)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        raise ArtifactError(f"{path}: no such file of weights")
    return _from_pretrained(place)


def fetch() -> Path:
    """GenEval's checkpoint from the first release that answers with the right file."""
    reasons: list[str] = []
    for url, prefix in zip(RELEASES, OFFICIAL, strict=True):
        try:
            return download(url, sha256=prefix)
        except ArtifactError as error:
            reasons.append(str(error))
    raise ArtifactError("; ".join(reasons))


def _from_checkpoint(path: Path, architecture: Architecture, stated: str | None) -> Network:
    digest = sha256_file(path)
    module = build(architecture)
    cached = cache_dir() / "converted" / f"mask2former-{digest[:16]}-{FORMAT}.safetensors"
    if path.suffix == ".safetensors":
        fill(module, *convert(load_tensors(path)), str(path))
    elif cached.is_file():
        fill(module, load_tensors(cached), [], str(cached))
    else:
        refuse_unpinned(path, digest[:8] if digest[:8] in OFFICIAL else stated)
        converted, unknown = convert(read_checkpoint(path))
        fill(module, converted, unknown, str(path))
        with suppress(OSError, FlowOPDError):  # a cache that cannot be written only costs time
            atomic_write(cached, save({name: tensor.contiguous() for name, tensor in converted.items()}))
    return Network(module.eval(), f"mmdet-mask2former-{digest[:8]}", digest[:8] in OFFICIAL)


def _from_pretrained(source: str) -> Network:
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    module, info = read(network_class(), source, **options)
    missing = {name for name in info["missing_keys"] if UNREAD_NORM not in modern(name)}
    surplus = {
        name for name in info["unexpected_keys"] if not name.startswith("criterion.") and INDEX_TABLE not in name
    }
    refuse_incomplete(source, {**info, "missing_keys": missing, "unexpected_keys": surplus})
    if module.config.num_labels != len(COCO_CLASSES):
        raise ArtifactError(f"{source}: knows {module.config.num_labels} classes, not COCO's {len(COCO_CLASSES)}")
    source, revision = split_revision(source)
    pinned = f"@{revision[:8]}" if revision else ""
    return Network(module.eval(), f"transformers-mask2former:{Path(source).name}{pinned}", False)


@lru_cache(maxsize=1)
def network_class() -> Any:
    """The body of ``transformers`` with its class head, without the training loss, which wants scipy.

    Called with pixels ``(B, 3, H, W)`` it gives class logits ``(B, Q, 81)`` and mask logits ``(B, Q, H/4, W/4)``.
    """
    from transformers import Mask2FormerModel
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

    class Segmenter(Mask2FormerPreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = Mask2FormerModel(config)
            self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
            self.post_init()

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            output = self.model(pixels)
            queries = self.model.transformer_module.decoder.layernorm(output.transformer_decoder_last_hidden_state)
            return self.class_predictor(queries), output.masks_queries_logits[-1]

    return Segmenter


def build(architecture: Architecture) -> Any:
    """The network of these sizes, its weights not yet set."""
    from transformers import Mask2FormerConfig, SwinConfig
    from transformers.initialization import no_init_weights

    a = architecture
    kinds: tuple[Any, Any] = (SwinConfig, Mask2FormerConfig)  # their signatures lack fields of their base class
    swin_config, mask2former_config = kinds
    backbone = swin_config(
        embed_dim=a.embed,
        depths=list(a.depths),
        num_heads=list(a.heads),
        window_size=a.window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = mask2former_config(
        backbone_config=backbone,
        num_labels=len(COCO_CLASSES),
        num_queries=a.queries,
        feature_size=a.width,
        mask_feature_size=a.width,
        hidden_dim=a.width,
        num_attention_heads=a.attention_heads,
        encoder_layers=a.pixel_layers,
        encoder_feedforward_dim=a.pixel_feedforward,
        decoder_layers=a.query_layers + 1,
        dim_feedforward=a.query_feedforward,
    )
    with no_init_weights():
        return network_class()(config)


def fill(module: Any, tensors: Mapping[str, Tensor], unknown: Sequence[str], source: str) -> None:
    """Copy tensors (by the names of ``transformers`` 5.23) into the network.

    Raises:
        ArtifactError: one is missing, surplus (so are the ``unknown`` ones) or of another shape.
    """
    target = {modern(name): tensor for name, tensor in module.state_dict().items()}
    unread = [target.pop(name) for name in list(target) if UNREAD_NORM in name]
    target = {name: tensor for name, tensor in target.items() if INDEX_TABLE not in name}
    misshaped = [name for name in target if name in tensors and tensors[name].shape != target[name].shape]
    missing = [name for name in target if name not in tensors]
    refuse_mismatch(source, missing, [*unknown, *(name for name in tensors if name not in target)], misshaped)
    with torch.no_grad():
        for tensor in unread:
            tensor.zero_()
        for name, tensor in target.items():
            tensor.copy_(tensors[name])


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of mmdet.

    Its log of the training (``meta``, ``message_hub``) may hold objects of numpy, mmcv and mmengine. None of them is
    made: an empty stand-in takes the place of each.

    Raises:
        ArtifactError: the file is no checkpoint, or asks for any other code.
    """
    allowed: list[Any] = []
    for _ in range(STAND_INS_MAX):
        try:
            with torch.serialization.safe_globals(allowed):
                tree = torch.load(path, map_location="cpu", weights_only=True)
            break
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            match = UNKNOWN_GLOBAL.search(str(error))
            if match is None:
                raise ArtifactError(
                    f"{path}: cannot be read as a checkpoint: damaged, or not made of tensors"
                ) from error
            allowed.append((_StandIn, _admit(match[1], path, allowed)))
    else:
        raise ArtifactError(f"{path}: holds too many kinds of objects for a checkpoint of weights")
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _admit(name: str, path: Path, allowed: list[tuple[Any, str]]) -> str:
    if name.split(".")[0] not in STAND_IN_MODULES or any(name == known for _, known in allowed):
        raise ArtifactError(f"{path}: asks for {name}, which no file of weights needs; it was not loaded")
    return name


class _StandIn:
    """Takes the place of an object that is not read: swallows arguments and state."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass
