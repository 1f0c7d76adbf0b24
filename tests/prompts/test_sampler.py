"""Prompt files and the sampler that deals groups."""

import json
from collections import Counter

import pytest

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.load import load_prompts
from flowopd_cli.prompts.sampler import GroupSampler


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\n  two  \n", encoding="utf-8")
    assert [(p.text, p.task) for p in load_prompts(str(path), task="ocr")] == [("one", "ocr"), ("two", "ocr")]


def test_a_row_carries_task_and_metadata(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "a cat", "task": "geneval", "tag": "single_object"}, {"prompt": "a dog", "id": "dog"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = load_prompts(str(path), task="other")
    assert (first.task, first.metadata["tag"]) == ("geneval", "single_object")
    assert (second.task, second.id) == ("other", "dog")
    assert len(load_prompts(str(path), task="other", limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.jsonl", '{"prompt": "x"', r"a\.jsonl:1: not JSON"),
        ("b.jsonl", '\n{"text": "x"}', r"b\.jsonl:2"),
        ("c.jsonl", '{"prompt": "x"}', "no task"),
        ("d.txt", "x", "task"),
        ("e.txt", "", "no prompt"),
        ("f.csv", "x", "neither"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, word):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=word):
        load_prompts(str(path))


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(PromptError, match="no such file"):
        load_prompts(str(tmp_path / "none.txt"), task="a")
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="UTF-8"):
        load_prompts(str(path), task="a")


def test_a_registered_source_is_filtered_by_task():
    assert {p.task for p in load_prompts("toy:all", split="validation")} == {"geneval", "ocr"}
    assert {p.task for p in load_prompts("toy:all", task="ocr", split="validation")} == {"ocr"}


def pool(task, count, tags=("t",)):
    return [Prompt(f"{task}{i}", f"{task}{i}", task, {"tag": tags[i % len(tags)]}) for i in range(count)]


def sampler(**changes):
    fields = {"prompts": {"a": pool("a", 20), "b": pool("b", 20)}, "weights": {"a": 3.0, "b": 1.0}}
    return GroupSampler(**{**fields, "groups": 8, "group_size": 3, "seed": 5, **changes})


def test_a_draw_depends_on_seed_and_iteration_alone():
    assert sampler().draw(4) == sampler().draw(4)
    assert sampler().draw(4) != sampler().draw(5)
    assert sampler().draw(4) != sampler(seed=6).draw(4)


def test_tasks_mix_by_their_weights():
    prompts, group, seeds = sampler().draw(0)
    assert Counter(p.task for p in prompts) == {"a": 18, "b": 6}
    assert Counter(group) == dict.fromkeys(range(8), 3)
    assert len(set(seeds)) == 24
    assert all(prompts[i].id == prompts[j].id for i in range(24) for j in range(24) if group[i] == group[j])


def test_shares_that_do_not_divide_come_out_right_on_average():
    few = sampler(groups=2)
    counts = Counter(p.task for i in range(400) for p in few.draw(i)[0])
    assert counts["a"] / sum(counts.values()) == pytest.approx(0.75, abs=0.03)


def test_tags_are_drawn_evenly():
    tagged = sampler(prompts={"a": pool("a", 30, tags=("x", "x", "y"))}, weights={"a": 1.0}, group_size=1)
    assert Counter(p.metadata["tag"] for p in tagged.draw(0)[0]) == {"x": 4, "y": 4}


def test_fewer_prompts_than_groups_repeat():
    prompts, _, _ = sampler(prompts={"a": pool("a", 2)}, weights={"a": 1.0}).draw(0)
    assert len(prompts) == 24


def test_spares_are_other_prompts_of_the_groups_task():
    drawn, group, seeds = sampler().draw(3)
    task_of = {g: prompt.task for prompt, g in zip(drawn, group, strict=True)}
    tried = [5, 0, 5, 2, 7, 1]
    spares = sampler().spares(3, tried)
    assert [prompt.task for prompt, _ in spares] == [task_of[g] for g in tried]
    ids = [prompt.id for prompt, _ in spares]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {prompt.id for prompt in drawn}
    noise = [seed for _, own in spares for seed in own]
    assert len(set(noise) | set(seeds)) == 6 * 3 + 24


def test_spares_depend_on_seed_iteration_and_the_groups_before_alone():
    assert sampler().spares(3, [5, 0, 5]) == sampler().spares(3, [5, 0, 5])
    assert sampler().spares(3, [5, 0, 5, 2])[:3] == sampler().spares(3, [5, 0, 5])
    assert sampler().spares(3, [5]) != sampler().spares(4, [5])
    assert sampler().spares(3, [5]) != sampler(seed=6).spares(3, [5])


@pytest.mark.parametrize("count", [1, 2, 9])
def test_spares_come_again_when_all_were_taken(count):
    few = sampler(prompts={"a": pool("a", count)}, weights={"a": 1.0})
    spares = [prompt.id for prompt, _ in few.spares(0, [0] * 6)]
    assert len(spares) == 6
    left = {p.id for p in pool("a", count)} - {p.id for p in few.draw(0)[0]}
    assert set(spares) == (left or {p.id for p in pool("a", count)})
