"""Pictures, results of official scorers and notes beside pictures, of hostile bytes."""

import io
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from support.fuzzing import ODD, as_json, both, edited, folder, guarded, mutated

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.client import reward_info, worker_info
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.suites import geneval
from flowopd_cli.suites.compbench_import import import_category
from flowopd_cli.suites.layouts import GENEVAL, Place
from flowopd_cli.system.pictures import read_picture


def encoded(kind, **options):
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).save(sink, format=kind, **options)
    return sink.getvalue()


PICTURES = [*map(encoded, ("PNG", "JPEG", "WEBP", "GIF", "TIFF")), encoded("PNG", optimize=True)]


def picture(content):
    with folder() as box:
        path = box / "a.png"
        path.write_bytes(content)
        with guarded(box):
            assert read_picture(path).mode == "RGB"


SEEN = st.sampled_from(PICTURES).flatmap(edited)
test_picture, test_picture_at_length = both(given(content=SEEN), picture, 10, 800)

ANSWERS = [{"question_id": i, "answer": "0.5"} for i in range(4)]
VERDICT = {"tag": "colors", "metadata": "{}", "correct": True, "filename": "x", "reason": ""}


def scores(answers, average, verdicts):
    with folder() as box:
        place = box / "color" / "annotation_blip"
        place.mkdir(parents=True)
        (place / "vqa_result.json").write_bytes(answers)
        (place / "blip_vqa_score.txt").write_bytes(average)
        (box / "results.jsonl").write_bytes(verdicts)
        with guarded(box):
            import_category(box, "color")
        with guarded(box):
            geneval.read_official(box)


AVERAGES = st.one_of(edited(b"score:0.5"), st.sampled_from([b"1" * 100_000 + b"x", b"0.5", b".", b"-", b"1e"]))
VERDICTS = st.one_of(
    edited(json.dumps(VERDICT).encode() * 2), st.lists(mutated(VERDICT).map(as_json), max_size=3).map(b"\n".join)
)
SCORES = given(
    answers=st.one_of(mutated(ANSWERS).map(as_json), edited(json.dumps(ANSWERS).encode())),
    average=AVERAGES,
    verdicts=VERDICTS,
)
test_scores, test_scores_at_length = both(SCORES, scores, 10, 600)


def notes(claimed, metadata):
    with folder() as box:
        place = Place(Prompt("0", "a cat", "t"), 0, 0, 1)
        (box / "drawn.json").write_bytes(claimed)
        (box / "00000").mkdir()
        (box / "00000" / "metadata.jsonl").write_bytes(metadata)
        with guarded(box):
            PictureFolder(box).claim({"a": 1}, {"s": "d"})
        with guarded(box):
            assert isinstance(GENEVAL.noted_prompt(box, place), str | None)
            GENEVAL.find(box, place)


DRAWN = {"settings": {"a": 1}, "prompts": {"s": "d"}}
NOTES = given(
    claimed=st.one_of(mutated(DRAWN).map(as_json), edited(json.dumps(DRAWN).encode())),
    metadata=st.one_of(mutated({"prompt": "a cat"}).map(as_json), edited(b'{"prompt": "a cat"}')),
)
test_notes, test_notes_at_length = both(NOTES, notes, 10, 400)

ANSWER = {"total": [0.5, None], "scores": {"x": [1.0, 2]}, "valid": [True, False], "details": [{}, {"error": "x"}]}
INFO = {
    "protocol": 1,
    "reward": "red",
    "fingerprint": "abc",
    "limits": {"pixels": 9},
    "low": 0,
    "high": 1,
}


def answer_of_a_worker(tree, info):
    with folder() as box:
        with guarded(box):
            refusals: list[str] = []
            try:
                read = TypeAdapter(protocol.Answer).validate_python(tree).require(2)
            except ValueError as error:
                refusals.append(protocol.one_line(error))
            else:
                assert len(read.total) == len(read.valid) == len(read.details) == 2
                assert all(value is None or isinstance(value, float) for value in read.total)
            assert all("\n" not in refusal for refusal in refusals)
        with guarded(box):
            worker = worker_info("http://h:1", info)
            assert str(worker)
            assert reward_info(worker).name == info["reward"]


RESPONSES = given(tree=st.one_of(mutated(ANSWER), ODD), info=st.one_of(mutated(INFO), ODD))
test_answer_of_a_worker, test_answer_of_a_worker_at_length = both(RESPONSES, answer_of_a_worker, 10, 600)
