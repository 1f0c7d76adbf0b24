"""Model cards: which evaluations they report, under which protocol, and which license they name."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.evaluations import evaluations
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import card as cards

SHA = "b" * 64


@pytest.fixture
def source(tmp_path):
    """A trained run of the base ``toy``."""
    run = RunDir.create(tmp_path / "student", "teacher")
    data = {"stage": "teacher", "prompts": [{"source": "toy:ocr"}], "rewards": [{"name": "toy-ocr"}]}
    run.start(recipes.build({**data, "model": {"pretrained": "toy"}}))
    run.adapter_dir.mkdir()
    (run.adapter_dir / "adapter_config.json").write_text("{}", encoding="utf-8")
    (run.adapter_dir / "adapter_model.safetensors").write_bytes(b"weights")
    run.declare(Inputs(base=Base(ref="toy", sha256=SHA)))
    run.finish("done")
    return run


def evaluate(source, name, of, mean, *, suites=("ocr",), version="1", base=SHA, judge=None, **spec):
    """An evaluation beside ``source``: of itself, or of its base."""
    run = RunDir.create(source.path.parent / name, "eval")
    run.start(recipes.build({"stage": "eval", "model": {"pretrained": "toy"}, "eval": {"suites": suites, **spec}}))
    parent = AdapterRef.parse(str(source.path) if of == "this model" else "base").resolve().parent("policy")
    run.declare(Inputs(base=Base(ref="toy", sha256=base), parents=(parent,)))
    for suite in suites:
        result = {"suite": suite, "version": f"{suite}-{version}", "mean": mean, "stderr": 0.0, "n": 8}
        run.write_eval(suite, json.dumps(result | (judge or {})))
    run.write_eval("prompts", '["a", "b"]')
    run.finish("done")
    return str(run.path)


def means(found):
    return {e.of: {suite: figures["mean"] for suite, figures in e.suites.items()} for e in found}


def test_only_whole_evaluations_on_test_prompts_of_one_protocol_meet(source):
    evaluate(source, "e1", "this model", 0.9)
    evaluate(source, "e2", "base", 0.5)
    evaluate(source, "z1", "this model", 0.1, split="validation")
    evaluate(source, "z2", "this model", 0.2, limit=3)
    evaluate(source, "z3", "base", 0.3, steps=11)
    evaluate(source, "z4", "base", 0.4, version="2")
    evaluate(source, "z5", "base", 0.6, base="c" * 64)
    evaluate(source, "z6", "base", 0.7, seed=1)
    assert means(evaluations(source, [])) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9}}


JUDGE = {"reward": "ocr", "engine": "reader-1", "weights": {"model": "sha256:1", "dtype": "float32"}}


@pytest.mark.parametrize(
    ("judge", "meet"),
    [
        (JUDGE, True),
        ({"weights": dict(reversed(JUDGE["weights"].items())), "engine": "reader-1", "reward": "ocr"}, True),
        (None, True),  # of a version that did not say
        ({**JUDGE, "reward": "other"}, False),
        ({**JUDGE, "engine": "reader-2"}, False),
        ({**JUDGE, "weights": {"model": "sha256:2", "dtype": "float32"}}, False),
        ({"engine": "official.py"}, False),
        ({"engine": ["?"], "weights": [[1]], "reward": None}, True),
    ],
)
def test_figures_of_different_judges_do_not_meet(source, judge, meet):
    ours = evaluate(source, "e1", "this model", 0.9, judge=JUDGE)
    base = evaluate(source, "e2", "base", 0.5, judge=judge)
    expected = {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9}} if meet else {"this model": {"ocr": 0.9}}
    assert means(evaluations(source, [])) == expected
    if not meet:
        with pytest.raises(ArtifactError, match=r"not evaluated alike \(.*; another judge of ocr\); repeat one"):
            evaluations(source, [ours, base])


def test_an_average_is_by_the_judges_of_its_parts(source):
    for name, of, mean, engine in (("e1", "this model", 0.9, "one"), ("e2", "base", 0.5, "two")):
        run = RunDir.open(
            evaluate(source, name, of, mean, suites=("ocr", "quality"), judge={**JUDGE, "engine": engine})
        )
        whole = {"suite": "average", "version": "average-1", "mean": mean, "stderr": None, "n": 16}
        run.write_eval("average", json.dumps({**whole, "parts": {"ocr": mean, "quality": mean}}))
    assert means(evaluations(source, [])).keys() == {"this model"}


def test_a_base_of_another_protocol_is_left_out(source):
    evaluate(source, "e1", "this model", 0.9, guidance=1.0)
    evaluate(source, "e2", "base", 0.5, guidance=2.0)
    assert means(evaluations(source, [])) == {"this model": {"ocr": 0.9}}


def test_the_fullest_evaluation_wins_and_the_base_keeps_what_it_shares(source):
    evaluate(source, "e1", "this model", 0.9, suites=("ocr", "quality"))
    evaluate(source, "e2", "this model", 0.1)
    evaluate(source, "e3", "base", 0.5)
    found = evaluations(source, [])
    assert means(found) == {"base": {"ocr": 0.5}, "this model": {"ocr": 0.9, "quality": 0.9}}
    text = cards.build(cards.Card("t", source.manifest(), found, "me/t"))
    assert "| base | 0.5000 ± 0.0000 (n = 8) | — |" in text
    assert (
        "Protocol: test prompts, as many pictures each as the suite says, 40 steps, guidance 4.5, seed 42; "
        "suites ocr ocr-1, quality quality-1."
    ) in text


def test_a_damaged_neighbour_is_passed_over_unless_it_is_named(source):
    path = source.path.parent / "damaged"
    path.mkdir()
    (path / "manifest.json").write_text("{", encoding="utf-8")
    torn = RunDir.open(evaluate(source, "torn", "this model", 0.9))
    torn.eval_file("ocr").write_text("{", encoding="utf-8")
    assert evaluations(source, []) == []
    with pytest.raises(ArtifactError, match="damaged manifest"):
        evaluations(source, [str(path)])
    with pytest.raises(ArtifactError, match="damaged result"):
        evaluations(source, [str(torn.path)])


def test_named_evaluations_must_compare(source):
    ours = evaluate(source, "e1", "this model", 0.9, split="validation")
    base = evaluate(source, "e2", "base", 0.5)
    with pytest.raises(ArtifactError, match=r"not evaluated alike \(test prompts, .* / validation prompts, "):
        evaluations(source, [ours, base])
    with pytest.raises(ArtifactError, match=r"e1 is of this model too; name one"):
        evaluations(source, [ours, evaluate(source, "e3", "this model", 0.8)])
    with pytest.raises(ArtifactError, match="not a finished evaluation of"):
        evaluations(source, [str(source.path)])
    found = evaluations(source, [ours])
    assert "Protocol: validation prompts" in cards.build(cards.Card("t", source.manifest(), found, "me/t"))


@pytest.mark.parametrize(
    ("base", "license", "link"),
    [
        ("toy", "apache-2.0", None),
        ("stabilityai/stable-diffusion-3.5-large", "other", "stabilityai/stable-diffusion-3.5-large/blob"),
        ("stabilityai/sdxl-turbo", "unknown", None),
        ("toyota/model", "unknown", None),
        ("toy-of-mine", "unknown", None),
    ],
)
def test_a_license_is_named_only_where_it_is_known(source, base, license, link):
    card = cards.Card("t", source.manifest(), [], "me/t")
    found = cards.metadata(card, base).to_dict()
    assert found["license"] == license
    assert (link or "") in found.get("license_link", "")
    assert ("license_link" in found) == (link is not None)
    source.declare(Inputs(base=Base(ref=base, sha256=SHA)))
    text = cards.build(cards.Card("t", source.manifest(), [], "me/t"))
    assert ("does not know the license" in text) == (license == "unknown")


def test_the_hub_s_own_parser_takes_the_model_index(source):
    evaluate(source, "e1", "this model", 0.123456, suites=("ocr", "quality"))
    found = evaluations(source, [])
    card = cards.Card("t", source.manifest(), found, "me/t", revision="v2", published=True)
    data = ModelCard(cards.build(card)).data
    assert {result.metric_type for result in data.eval_results} == {"ocr", "quality"}
    result = next(result for result in data.eval_results if result.metric_type == "ocr")
    assert (result.metric_value, result.metric_args) == (0.1235, {"stderr": 0.0, "n": 8})
    assert (result.dataset_name, result.dataset_type) == ("Flow-GRPO OCR prompts (ocr-1)", "ocr")
    assert (result.dataset_split, result.dataset_args) == ("test", {"steps": 40, "guidance": 4.5, "seed": 42})
    assert result.source_url == "https://huggingface.co/me/t/blob/v2/eval/ocr.json"
    assert data.to_dict()["model-index"][0]["name"] == "t"


def test_an_approximate_figure_is_called_so(source):
    path = RunDir.open(evaluate(source, "e1", "this model", 0.5)).eval_file("ocr")
    path.write_text(json.dumps({**json.loads(path.read_text()), "exact": False, "version": "toy-ocr-1"}))
    card = cards.Card("t", source.manifest(), evaluations(source, []), "me/t")
    result = ModelCard(cards.build(card)).data.eval_results[0]
    assert result.metric_name == "ocr (approximate scorer)"
    assert result.dataset_name == "ocr (toy-ocr-1)", "no name of a benchmark for what is not it"
    assert result.source_url is None, "nothing is published yet"


def test_a_base_on_the_hub_is_the_cards_base_and_a_local_one_is_not(source):
    card = cards.Card("t", source.manifest(), [], "me/t")
    found = cards.metadata(card, "owner/base").to_dict()
    assert (found["base_model"], found["base_model_relation"]) == ("owner/base", "adapter")
    assert "base_model" not in cards.metadata(card, "my-base").to_dict()


def test_the_lines_of_use_load_the_base_at_its_revision(source):
    card = cards.Card("t", source.manifest(), [], "me/t", absent=("text_encoder_3",), base_revision="0123abc")
    assert "revision" not in cards.build(card), "the toy is no repository"
    source.declare(Inputs(base=Base(ref="owner/base", sha256=SHA)))
    card = replace(card, manifest=source.manifest())
    assert 'from_pretrained("owner/base", revision="0123abc", text_encoder_3=None)' in cards.build(card)
    assert 'from_pretrained("owner/base", text_encoder_3=None)' in cards.build(replace(card, base_revision=None))


def test_a_license_is_named_with_its_source(source):
    inherited = {"license": "other", "license_name": "theirs", "license_link": "https://h.co/L"}
    card = cards.Card("t", source.manifest(), [], "me/t", inherited=inherited)
    assert cards.metadata(card, "owner/base").to_dict().items() >= inherited.items()
    assert "## License\n\n[theirs](https://h.co/L), inherited from `toy`." in cards.build(card)
    text = cards.build(replace(card, license="mit"))
    assert ModelCard(text).data.license == "mit"
    assert "`mit`, as its author chose. The license of `toy` holds beside it." in text


def test_the_lineage_has_every_digest_whole(source):
    source.declare(Inputs(parents=(Parent(role="anchor", ref="t", sha256="a" * 64),)))
    text = cards.build(cards.Card("t", source.manifest(), [], "me/t"))
    assert f"| base | `toy` | `{SHA}` |" in text
    assert f"| anchor | `t` | `{'a' * 64}` |" in text


def test_pictures_are_a_gallery_with_their_prompts(source):
    gallery = [("a sign: 'x'\u2028", "samples/eval-0.png")]
    card = cards.Card("t", source.manifest(), [], "me/t", gallery=gallery, picture="samples/eval.png")
    assert ModelCard(cards.build(card)).data.widget == [{"text": gallery[0][0], "output": {"url": gallery[0][1]}}]
    assert "widget" not in cards.metadata(cards.Card("t", source.manifest(), [], "me/t"), "toy").to_dict()
