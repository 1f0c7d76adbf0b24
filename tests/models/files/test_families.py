"""What is known of a family without loading one of its bases."""

from flowopd_cli.models.files.families import family, family_of, model_fields


def test_the_family_of_a_base():
    assert family_of("toy") == family_of("stabilityai/stable-diffusion-3.5-large") == family_of("small") == "sd3"
    assert family_of("black-forest-labs/FLUX.1-schnell") == "flux"
    assert family_of("someone/else") is None
    assert model_fields("someone/else") == {"pretrained": "someone/else"}
    assert model_fields("toy") == {"pretrained": "toy", "family": "sd3"}


def test_a_family_that_is_not_registered_is_taken_to_be_classifier_free():
    assert [family("my-own").halves(guidance) for guidance in (0.0, 1.0, 4.5)] == [2, 1, 2]
