"""Which bases have a student's latents, by files alone: no weights of a transformer are in these folders."""

import json
import shutil

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.latents import check_same_latents

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def student(pipeline_folder, tmp_path):
    """A pipeline that has its autoencoder and its scheduler only."""
    for part in ("vae", "scheduler"):
        shutil.copytree(pipeline_folder / part, tmp_path / "student" / part)
    return tmp_path / "student"


@pytest.fixture
def teacher(student, tmp_path):
    """A copy of it."""
    return shutil.copytree(student, tmp_path / "teacher")


def configure(folder, part, **changes):
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_copy_has_the_same_latents(teacher, student):
    configure(teacher, "vae/config.json", _name_or_path="elsewhere", _diffusers_version="0.1", sample_size=1024)
    check_same_latents(teacher, student)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scaling_factor": 0.3611}, "scaling_factor is 0.3611, the student's 1.5305"),
        ({"shift_factor": None}, "shift_factor is None, the student's 0.0609"),
        ({"latents_mean": [0.1]}, "latents_mean"),
        ({"latent_channels": 8}, "latent_channels"),
        ({"block_out_channels": [8]}, "block_out_channels"),
        ({"_class_name": "AutoencoderDC"}, "_class_name"),
    ],
)
def test_another_configuration_is_refused_before_weights_are_opened(teacher, student, changes, named):
    configure(teacher, "vae/config.json", **changes)
    for folder in (teacher, student):
        (folder / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=named) as error:
        check_same_latents(teacher, student)
    assert "\n" not in str(error.value)


def test_other_weights_are_refused(teacher, student):
    weights = load_file(teacher / WEIGHTS)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, teacher / WEIGHTS)
    with pytest.raises(ArtifactError, match="other weights than the student's"):
        check_same_latents(teacher, student)


def test_only_the_digest_of_the_weights_is_read(teacher, student):
    for folder in (teacher, student):
        (folder / WEIGHTS).write_bytes(b"no safetensors")
    check_same_latents(teacher, student)
    with pytest.raises(SafetensorError):
        load_file(teacher / WEIGHTS)


@pytest.mark.parametrize(
    ("scheduler", "linear"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, True),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, True),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "epsilon"}, False),
        ({"_class_name": "EDMEulerScheduler"}, False),
    ],
)
def test_the_path_has_to_be_linear(teacher, student, scheduler, linear):
    configure(teacher, "scheduler/scheduler_config.json", **scheduler)
    if linear:
        check_same_latents(teacher, student)
        return
    with pytest.raises(ArtifactError, match="no linear path"):
        check_same_latents(teacher, student)


@pytest.mark.parametrize("missing", ["vae/config.json", "scheduler/scheduler_config.json", WEIGHTS])
def test_what_cannot_be_compared_is_refused(teacher, student, missing):
    (teacher / missing).unlink()
    with pytest.raises(ArtifactError, match=r"teacher.*(config|safetensors)"):
        check_same_latents(teacher, student)
