"""The option of the toy's builder that makes a larger base beside another one."""

import json

import pytest
import torch
from support.tiny import TEXTS

from flowopd_cli.models.files.latents import check_same_latents
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.toy import build, folder, train_base
from flowopd_cli.toy import pipeline as toy_pipeline


def test_a_larger_base_has_the_latents_and_the_prompts_of_the_one_beside(tmp_path, monkeypatch, capsys):
    size = ["--beside", "toy", "--layers", 5, "--heads", 5]
    short = ["--flow-steps", 2, "--pool", 64, "--batch", 8, "--out", tmp_path / "large"]
    monkeypatch.setattr("sys.argv", ["build", *map(str, [*size, *short])])
    build.main()
    losses = [row["loss"] for row in map(json.loads, capsys.readouterr().out.splitlines()) if row["phase"] == "flow"]
    assert losses[0] > 0
    check_same_latents(tmp_path / "large", folder())
    student, large = (SD3Model.load(path, LoadOptions(device="cpu")) for path in (folder(), tmp_path / "large"))
    assert large.share_prompts(student)
    assert (len(large.blocks), large.transformer.config.caption_projection_dim) == (5, 160)
    assert large.latent_shape == student.latent_shape
    assert large.encode(TEXTS).embeds.equal(student.encode(TEXTS).embeds)


def test_a_base_that_grows_computes_what_the_smaller_one_does():
    small = toy_pipeline.load(folder()).transformer
    grown = toy_pipeline.grow(small, 6, seed=0)
    inputs = {
        "hidden_states": torch.randn(2, 8, 8, 8),
        "timestep": torch.tensor([100.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 15, 128),
        "pooled_projections": torch.randn(2, 128),
    }
    with torch.no_grad():
        torch.testing.assert_close(grown(**inputs).sample, small(**inputs).sample)
    assert len(grown.transformer_blocks) == 6
    with pytest.raises(ValueError, match="--layers: is 4, expected more than the 4 blocks"):
        toy_pipeline.grow(small, 4, seed=0)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_the_updates_of_matrices_are_nearly_orthogonal(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(train_base.orthogonal(torch.randn(shape)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.25
    matrix = torch.nn.Parameter(torch.randn(shape))
    before = matrix.detach().clone()
    matrix.grad = torch.randn(shape)
    train_base.Muon([matrix], {"lr": 0.01}).step()
    size = float((matrix.detach() - before).square().mean().sqrt())
    assert size == pytest.approx(0.2 * 0.01, rel=0.2), "as large as a step of AdamW in the mean"
