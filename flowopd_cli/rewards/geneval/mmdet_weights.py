"""The GenEval detector's network, loaded from mmdet's checkpoint or from a folder of ``transformers``.

mmdet is not needed, and no pickle is trusted: a checkpoint is read with ``weights_only=True``, the numpy and mmcv
objects of its training log replaced by empty stand-ins, and cached as safetensors.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flowopd_cli.errors import ArtifactError, FlowOPDError
from flowopd_cli.prompts.clauses import COCO_CLASSES
from flowopd_cli.rewards.geneval.mmdet_keys import INDEX_TABLE, UNUSED_NORM, Architecture, convert, modern
from flowopd_cli.rewards.preference.clip import read, refuse_incomplete
from flowopd_cli.rewards.weights import (
    check_tensors,
    download,
    load_tensors,
    refuse_unpinned,
    split_digest,
    split_revision,
)
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
    """The module, a name that identifies its weights, and whether these are GenEval's own."""

    module: Any
    name: str
    official: bool


def load_network(weights: str | None, *, architecture: Architecture = Architecture()) -> Network:
    """A detector's network in evaluation mode, on the CPU, in float32.

    ``weights`` is ``None`` (GenEval's own, downloaded once), a checkpoint of mmdet (``.pth#sha256=digest``, or its
    tensors as ``.safetensors``) of the given ``architecture``, or a folder or Hub id (``repository@revision``) of
    ``transformers``.

    Raises :class:`ArtifactError`: it is missing, or its tensors are not exactly those of the network.
    """
    source, digest = (str(fetch()), None) if weights is None else split_digest(weights)
    path = Path(source)
    if path.is_file():
        return _from_checkpoint(path, architecture, digest)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        raise ArtifactError(f"{path}: no such weights file")
    return _from_pretrained(source)


def fetch() -> Path:
    """GenEval's checkpoint from the first release that answers with the right file."""
    reasons: list[str] = []
    for url, prefix in zip(RELEASES, OFFICIAL, strict=True):
        try:
            return download(url, sha256=prefix)
        except ArtifactError as error:
            reasons.append(str(error))
    raise ArtifactError("; ".join(reasons))


def _from_checkpoint(path: Path, architecture: Architecture, pinned: str | None) -> Network:
    digest = sha256_file(path)
    prefix, module = digest[:8], build(architecture)
    cached = cache_dir() / "converted" / f"mask2former-{digest[:16]}-{FORMAT}.safetensors"
    if path.suffix == ".safetensors":
        fill(module, convert(load_tensors(path)), str(path))
    elif cached.is_file():
        fill(module, load_tensors(cached), str(cached))
    else:
        refuse_unpinned(path, prefix if prefix in OFFICIAL else pinned)
        converted = convert(read_checkpoint(path))
        fill(module, converted, str(path))
        with suppress(OSError, FlowOPDError):  # the cache only saves time
            atomic_write(cached, save({name: tensor.contiguous() for name, tensor in converted.items()}))
    return Network(module.eval(), f"mmdet-mask2former-{prefix}", prefix in OFFICIAL)


def _from_pretrained(source: str) -> Network:
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    module, info = read(network_class(), source, **options)
    missing = {name for name in info["missing_keys"] if UNUSED_NORM not in modern(name)}
    unused = re.compile(rf"criterion\..*|.*{INDEX_TABLE}.*")
    unexpected = {name for name in info["unexpected_keys"] if not unused.fullmatch(name)}
    refuse_incomplete(source, {**info, "missing_keys": missing, "unexpected_keys": unexpected})
    if module.config.num_labels != len(COCO_CLASSES):
        raise ArtifactError(f"{source}: knows {module.config.num_labels} classes, not COCO's {len(COCO_CLASSES)}")
    name, revision = split_revision(source)
    pinned = f"@{revision[:8]}" if revision else ""
    return Network(module.eval(), f"transformers-mask2former:{Path(name).name}{pinned}", False)


@lru_cache(maxsize=1)
def network_class() -> Any:
    """The body of ``transformers`` with its class head, without the training loss, which needs scipy.

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
    """The network of these sizes, without initial weights."""
    import transformers
    from transformers.initialization import no_init_weights

    a = architecture
    library: Any = transformers  # the signatures lack fields of the base class
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = library.SwinConfig(
        embed_dim=a.embed, depths=list(a.depths), num_heads=list(a.heads), window_size=a.window, out_features=stages
    )
    config = library.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=len(COCO_CLASSES),
        num_queries=a.queries,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), a.width),
        num_attention_heads=a.attention_heads,
        encoder_layers=a.pixel_layers,
        encoder_feedforward_dim=a.pixel_feedforward,
        decoder_layers=a.query_layers + 1,
        dim_feedforward=a.query_feedforward,
    )
    with no_init_weights():
        return network_class()(config)


def fill(module: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy exactly the network's tensors, by the names of ``transformers`` 5.23, into it."""
    state = {modern(name): tensor for name, tensor in module.state_dict().items() if INDEX_TABLE not in name}
    target = {name: tensor for name, tensor in state.items() if UNUSED_NORM not in name}
    check_tensors(source, target, tensors)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name] if name in target else torch.zeros(()))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of mmdet.

    Its training log (``meta``, ``message_hub``) may hold objects of numpy, mmcv and mmengine. None of them is created:
    an empty stand-in replaces each.

    Raises :class:`ArtifactError`: the file is not a checkpoint, or refers to any other code.
    """
    stand_ins: list[str] = []
    while True:
        try:
            with torch.serialization.safe_globals([(_StandIn, name) for name in stand_ins]):
                tree = torch.load(path, map_location="cpu", weights_only=True)
            break
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            match = UNKNOWN_GLOBAL.search(str(error))
            if match is None:
                raise ArtifactError(f"{path}: not a checkpoint: damaged, or not made of tensors") from error
            name = match[1]
            if name.split(".")[0] not in STAND_IN_MODULES or name in stand_ins or len(stand_ins) == STAND_INS_MAX:
                raise ArtifactError(f"{path}: refers to {name}, which no file of weights needs; not loaded") from error
            stand_ins.append(name)
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


class _StandIn:
    """Replaces an object that is not created: accepts any arguments and state."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass
