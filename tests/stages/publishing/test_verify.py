"""The options of the check of a push."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import verify

TEACHER = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
QUICK = {"attention": "flash", "dtype": "bfloat16", "revision": "v1", "device": "cpu"}


@pytest.mark.parametrize("quick", [{"compile": "default"}, {"shard": True}])
def test_the_check_uses_no_option_for_speed(tmp_path, monkeypatch, quick):
    source, loaded = RunDir.create(tmp_path / "t", "teacher"), []

    def load(spec, adapters):
        loaded.append(spec)
        raise ArtifactError("seen")

    source.start(recipes.build({**TEACHER, "model": {"pretrained": "owner/base", **QUICK, **quick}}))
    monkeypatch.setattr(verify, "load_model", load)
    with pytest.raises(ArtifactError, match="seen"):
        verify.Check(source, tmp_path, recipes.build({"stage": "push", "run": str(source.path)}))
    (spec,) = loaded
    assert (spec.dtype, spec.attention, spec.compile, spec.shard) == ("float32", "auto", "none", False)
    assert (spec.pretrained, spec.revision, spec.device) == ("owner/base", "v1", "cpu")
