"""The SD3 family against diffusers' own pipeline, on a tiny random one."""

import json
import shutil

import pytest
import torch
from support.tiny import TEXTS, assemble, load

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files import pipelines as folders
from flowopd_cli.models.files.pipelines import base_fingerprint


@pytest.fixture
def copied(pipeline_folder, tmp_path):
    """A copy of the tiny pipeline that may be edited."""
    return shutil.copytree(pipeline_folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def latents(rows, seed=0):
    return torch.randn(rows, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_guidance_extrapolates_from_the_negative_to_the_positive_velocity(model):
    x, sigma, cond = latents(2), torch.tensor([0.9, 0.4]), model.encode(TEXTS[:2])
    empty = model.encode(["", ""])
    with torch.no_grad():
        positive, negative = (model.velocity(x, sigma, c, guidance=1.0) for c in (cond, empty))
        guided = model.velocity(x, sigma, cond, guidance=4.5)
    assert not torch.allclose(positive, negative, atol=1e-3)
    torch.testing.assert_close(guided, negative + 4.5 * (positive - negative), atol=1e-5, rtol=1e-5)


def test_guidance_without_the_empty_prompt_is_refused(model):
    cond = model.encode(TEXTS[:1])
    bare = type(cond)(cond.embeds, cond.pooled)
    with pytest.raises(ValueError, match="empty prompt"):
        model.velocity(latents(1), torch.ones(1), bare, guidance=2.0)


def test_embeddings_stay_on_the_cpu_and_are_returned_on_the_models_device(model):
    model.encode_ahead(TEXTS)
    model.device = torch.device("meta")
    cond = model.encode(TEXTS)
    assert {part.device.type for row in model.prompts.find(TEXTS).values() for part in row.parts.values()} == {"cpu"}
    assert {getattr(cond, name).device.type for name in ("embeds", "pooled", "neg_embeds", "neg_pooled")} == {"meta"}


def test_another_transformer_with_the_same_encoders_shares_their_embeddings(pipeline_folder, copied, tmp_path):
    assemble(seed=1).transformer.save_pretrained(copied / "transformer")
    folders = {load(place, prompt_cache=tmp_path).prompts.folder for place in (pipeline_folder, copied)}
    assert len(folders) == 1


@pytest.mark.parametrize(("resolution", "shape"), [(None, (4, 4, 4)), (8, (4, 4, 4)), (4, (4, 2, 2))])
def test_latents_follow_the_resolution(pipeline_folder, resolution, shape):
    assert load(pipeline_folder, resolution=resolution).latent_shape == shape


def test_sigmas_use_the_schedulers_shift_by_default(model):
    assert model.sigmas(10)[1].item() == pytest.approx(0.9601, abs=1e-4)
    assert torch.equal(model.sigmas(10), model.sigmas(10, 3.0))
    assert model.sigmas(10, 1.0)[5].item() == pytest.approx(0.445, abs=1e-3)


def test_dynamic_shifting_requires_a_shift(copied):
    edit(copied / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    model = load(copied)
    with pytest.raises(ArtifactError, match="use a copy of the base"):
        model.sigmas(10)
    assert model.sigmas(10, 3.0)[1].item() == pytest.approx(0.9601, abs=1e-4)


def test_fingerprint_of_large_files_reads_both_ends(pipeline_folder, copied, monkeypatch):
    monkeypatch.setattr(folders, "WHOLE_FILE_BYTES", 4096)
    monkeypatch.setattr(folders, "EDGE_BYTES", 64)
    known = base_fingerprint(copied)
    assert known == base_fingerprint(pipeline_folder)
    weights = next((copied / "transformer").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert base_fingerprint(copied) != known


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a diffusers pipeline"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match=r"no such folder, and not a Hub id .* check --base"):
        load("nowhere")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("transformer", lambda folder: cut(folder / "diffusion_pytorch_model.safetensors")),
        ("transformer", lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink()),
        ("transformer", lambda folder: edit(folder / "config.json", num_layers="many")),
        ("scheduler", lambda folder: (folder / "scheduler_config.json").write_text("{")),
    ],
)
def test_a_damaged_part_of_a_base_is_a_one_line_error(copied, part, spoil):
    spoil(copied / part)
    with pytest.raises(ArtifactError, match=rf"{part}(: cannot be loaded as|/scheduler_config.json: )") as caught:
        load(copied)
    assert "\n" not in str(caught.value)


def test_a_base_is_never_unpickled(copied, monkeypatch):
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load(copied).transformer.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    monkeypatch.setattr(torch, "load", lambda *given, **more: pytest.fail("opened"))
    with pytest.raises(ArtifactError, match="transformer: cannot be loaded as SD3Transformer2DModel"):
        load(copied)


def test_a_hub_id_is_fetched_without_its_pickles(pipeline_folder, monkeypatch):
    requests = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **kw: requests.append((repo, kw)) or str(pipeline_folder)
    )
    assert load("owner/name", revision="abc").folder == pipeline_folder
    assert [(repo, kw["revision"]) for repo, kw in requests] == [("owner/name", "abc")] * 2
    assert not any(pattern.endswith((".bin", ".pt", "*")) for _, kw in requests for pattern in kw["allow_patterns"])


def test_a_hub_id_of_another_family_is_refused_before_its_weights_are_fetched(copied, monkeypatch):
    edit(copied / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    requests = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **kw: requests.append(kw) or str(copied))
    with pytest.raises(ArtifactError, match=r"owner/name: its transformer is FluxTransformer2DModel"):
        load("owner/name")
    assert [kw["allow_patterns"] for kw in requests] == [["transformer/config.json"]]


def test_a_failed_download_is_a_one_line_error(monkeypatch):
    def fail(repo, **kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ArtifactError, match=r"owner/name: cannot be fetched \(no network\)"):
        load("owner/name")
