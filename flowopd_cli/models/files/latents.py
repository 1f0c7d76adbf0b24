"""Whether two pipelines have the same latents and paths, by their files. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.pipelines import files_digest
from flowopd_cli.system.json_files import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
NORMALIZATION = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
IRRELEVANT = ("sample_size", "force_upcast")  # settings of a pipeline that do not change a latent's meaning


def check_same_latents(teacher: Path, student: Path) -> None:
    """Refuse a teacher whose velocities mean nothing at a student's latents; both are pipeline folders.

    The configurations come first; the only weights that are read are the autoencoders', to compare their digests.

    Raises :class:`ArtifactError`: another autoencoder, another normalization of latents, or a path that is not linear.
    """
    _check_linear_path(teacher)
    own, other = _autoencoder(teacher), _autoencoder(student)
    keys = {*(own.keys() & other.keys()), *NORMALIZATION} - {*IRRELEVANT}
    for key in sorted(keys):
        if own.get(key) != other.get(key):
            reason = f"{key} is {own.get(key)}, the student's {other.get(key)}"
            raise ArtifactError(f"{teacher}: its autoencoder is not the student's ({reason}): choose another base")
    if _weights_digest(teacher) != _weights_digest(student):
        raise ArtifactError(f"{teacher}: its autoencoder has other weights than the student's: choose another base")


def _check_linear_path(folder: Path) -> None:
    """Rectified flow, by the scheduler: one of flow matching, or another solver of flow predictions."""
    config = read_json(folder / "scheduler" / "scheduler_config.json", "configuration of a scheduler")
    name = str(config.get("_class_name"))
    if not name.startswith("FlowMatch") and config.get("prediction_type") != "flow_prediction":
        raise ArtifactError(
            f"{folder}: its scheduler {name[:80]} has no linear path from noise to picture, as the student's has: "
            "choose a base of flow matching"
        )


def _autoencoder(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "vae" / "config.json", "configuration of an autoencoder")
    return {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}


def _weights_digest(folder: Path) -> str:
    path = folder / "vae" / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {path.name} in its folder vae, so its autoencoder cannot be compared")
    return files_digest([path])
