"""Model cards: figures, license, usage and provenance."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from support.reported import BASE, evaluation, policy_run

from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.reported import reported
from flowopd_cli.stages.publishing import card as cards
from flowopd_cli.stages.publishing.licenses import known_license


@pytest.fixture
def source(tmp_path):
    """A trained run of the base ``toy``."""
    return policy_run(tmp_path / "student")


def card_of(source, rows=(), **fields):
    return cards.Card("t", source.manifest(), rows, "me/t", **fields)


@pytest.mark.parametrize(
    ("base", "license", "link"),
    [
        ("toy", "apache-2.0", None),
        ("stabilityai/stable-diffusion-3.5-large", "other", "stabilityai/stable-diffusion-3.5-large/blob"),
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0", None),
        ("stabilityai/sdxl-turbo", "unknown", None),
        ("toyota/model", "unknown", None),
        ("toy-of-mine", "unknown", None),
    ],
)
def test_a_license_is_named_only_where_it_is_known(source, base, license, link):
    card = card_of(source, inherited=known_license(base))
    found = cards.metadata(card, base).to_dict()
    assert found["license"] == license
    assert (link or "") in found.get("license_link", "")
    assert ("license_link" in found) == (link is not None)
    source.declare(Inputs(base=Base(ref=base, sha256=BASE.sha256)))
    text = cards.build(replace(card, manifest=source.manifest()))
    assert ("does not know the license" in text) == (license == "unknown")


def test_the_figures_of_base_and_model_are_a_table_that_the_hub_reads(source):
    parent = source.path.parent
    evaluation(parent / "e1", source, {"geneval": 0.123456, "ocr": 0.5}, {"exact": True})
    evaluation(parent / "e2", None, {"ocr": 0.25}, {"exact": True})
    text = cards.build(card_of(source, reported(source, []).rows, revision="v2", published=True))
    assert "| base | — | 0.2500 ± 0.0100 (n = 8) |" in text
    assert "Protocol: test prompts, " in text
    data = ModelCard(text).data
    assert {result.metric_type for result in data.eval_results} == {"geneval", "ocr"}
    result = next(result for result in data.eval_results if result.metric_type == "geneval")
    assert (result.metric_value, result.metric_args) == (0.1235, {"stderr": 0.01, "n": 8})
    assert (result.dataset_name, result.dataset_type) == ("GenEval (geneval-1)", "geneval")
    assert (result.dataset_split, result.dataset_args) == ("test", {"steps": 40, "guidance": 4.5, "seed": 42})
    assert result.source_url == "https://huggingface.co/me/t/blob/v2/eval/geneval.json"
    assert data.to_dict()["model-index"][0]["name"] == "t"


def test_an_approximate_figure_is_named_so(source):
    evaluation(source.path.parent / "e1", source, {"ocr": 0.5}, {"version": "toy-ocr-1"})
    result = ModelCard(cards.build(card_of(source, reported(source, []).rows))).data.eval_results[0]
    assert result.metric_name == "ocr (approximate scorer)"
    assert result.dataset_name == "ocr (toy-ocr-1)", "not a benchmark"
    assert result.source_url is None, "not yet published"


def test_the_guidance_is_in_code_metadata_and_one_sentence(source):
    card = card_of(source, sampling={"num_inference_steps": 40, "guidance_scale": 1.5}, guidance_note="1.5 is <best>.")
    text = cards.build(card)
    assert "num_inference_steps=40, guidance_scale=1.5)" in text
    assert "1.5 is &#60;best&#62;. diffusers stores no default for it, so pass `guidance_scale`." in text
    parameters = {"num_inference_steps": 40, "guidance_scale": 1.5}
    assert ModelCard(text).data.to_dict()["inference"] == {"parameters": parameters}
    assert "inference" not in cards.metadata(card_of(source), "toy").to_dict()


def test_a_base_on_the_hub_is_the_cards_base_and_a_local_one_is_not(source):
    card = card_of(source)
    found = cards.metadata(card, "owner/base").to_dict()
    assert (found["base_model"], found["base_model_relation"]) == ("owner/base", "adapter")
    assert "base_model" not in cards.metadata(card, "my-base").to_dict()


def test_the_lines_of_use_load_the_base_at_its_revision(source):
    card = card_of(source, absent=("text_encoder_3",), base_revision="0123abc")
    assert "revision" not in cards.build(card), "the toy is no repository"
    source.declare(Inputs(base=Base(ref="owner/base", sha256=BASE.sha256)))
    card = replace(card, manifest=source.manifest())
    assert 'from_pretrained("owner/base", revision="0123abc", text_encoder_3=None)' in cards.build(card)
    assert 'from_pretrained("owner/base", text_encoder_3=None)' in cards.build(replace(card, base_revision=None))


def test_a_license_is_named_with_its_source(source):
    inherited = {"license": "other", "license_name": "theirs", "license_link": "https://h.co/L"}
    card = card_of(source, inherited=inherited)
    assert cards.metadata(card, "owner/base").to_dict().items() >= inherited.items()
    assert "## License\n\n[theirs](https://h.co/L), inherited from `toy`." in cards.build(card)
    text = cards.build(replace(card, license="mit"))
    assert ModelCard(text).data.license == "mit"
    assert "`mit`, as its author chose. The license of `toy` holds beside it." in text


def test_a_card_has_every_digest_and_the_pictures_with_their_prompts(source):
    source.declare(Inputs(parents=(Parent(role="anchor", ref="t", sha256="a" * 64),)))
    gallery = [("a sign: 'x'\u2028", "samples/eval-0.png")]
    text = cards.build(card_of(source, gallery=gallery, picture="samples/eval.png"))
    assert f"| base | `toy` | `{BASE.sha256}` |" in text
    assert f"| anchor | `t` | `{'a' * 64}` |" in text
    assert "base of its own" not in text
    assert ModelCard(text).data.widget == [{"text": gallery[0][0], "output": {"url": gallery[0][1]}}]


def test_a_card_names_the_bits_of_a_quantized_base(source):
    assert "full precision" not in cards.build(card_of(source))
    source.declare(Inputs(base=BASE.model_copy(update={"quantize": "nf4"})))
    text = cards.build(card_of(source))
    assert "| base in nf4 | `toy` |" in text
    assert "- It was trained on `toy` in nf4; what full precision changes was not measured." in text
    evaluation(source.path.parent / "e", source)
    assert "- It was trained on `toy` in nf4." in cards.build(card_of(source, reported(source, ()).rows))


def test_a_card_names_the_own_base_of_a_teacher(source):
    own = Base(ref="owner/large", sha256="b" * 64)
    source.declare(Inputs(parents=(Parent(role="teacher_ocr", ref="base", base=own),)))
    text = cards.build(card_of(source))
    assert f"| base of teacher_ocr | `owner/large` | `{'b' * 64}` |" in text
    assert "- Its teacher_ocr has a base of its own, `owner/large`, whose license may restrict" in text
