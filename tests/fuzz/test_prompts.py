"""Prompt files of hostile bytes and hostile rows."""

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import TEXTS, both, edited, folder, guarded, mutated

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.clauses import faulty
from flowopd_cli.prompts.files import load_prompts, read_rows, repeats
from flowopd_cli.prompts.sampler import GroupSampler
from flowopd_cli.prompts.sources import read_public
from flowopd_cli.prompts.targets import LONGEST_TARGET, parse_target
from flowopd_cli.suites.compbench import LAYOUT, prompts
from flowopd_cli.suites.layouts import Place

TEXT = 'a sign that says "OPEN"\n\na cat\r\n  a "café" \u2028 here\na cat\n'.encode()
CLAUSES = [{"class": "bench", "count": 2, "color": "red"}, {"class": "cup", "count": 1, "position": ["left of", 0]}]
ROWS = [
    {"prompt": "two red benches", "tag": "counting", "include": CLAUSES, "exclude": [], "task": "geneval"},
    {"prompt": 'a sign "OPEN"', "target": "OPEN", "id": "s1"},
    {"prompt": "a cat", "id": 7, "task": "other"},
]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


def text_file(content):
    with folder() as box:
        path = box / "p.txt"
        path.write_bytes(content)
        for name in ("spatial", "complex_val_spatial", "complex_val_action", "complex", "shape"):
            (box / f"{name}_val.txt").write_bytes(content)
        for task in ("ocr", "pickscore", "drawbench"):
            with guarded(box):
                read_public(task, path)
        with guarded(box):
            found = load_prompts(str(path), task="t")
            assert all(prompt.text.strip() and "\0" not in prompt.text for prompt in found)
            GroupSampler({"t": found}, {"t": 1.0}, 3, 2, 0).draw(0)
        with guarded(box):
            for place, prompt in enumerate(prompts("shape", box)):
                inside = (box / LAYOUT.picture(Place(prompt, place, 0, 10))).resolve()
                assert inside.parent == (box / "samples").resolve()


TEXTUAL = st.one_of(
    edited(TEXT), st.lists(TEXTS, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))
)
test_text_file, test_text_file_at_length = both(given(content=TEXTUAL), text_file, 10, 1000)


def json_file(content):
    with folder() as box:
        path = box / "p.jsonl"
        path.write_bytes(content)
        with guarded(box):
            read_public("geneval", path)
        with guarded(box):
            rows = read_rows(path, "t")
            assert repeats(rows) is None or len(rows) > 1
            assert len({row.id for row in rows if row.id}) == sum(row.id is not None for row in rows)
            for row in rows:
                with suppress(PromptError):
                    target = parse_target(row.place, row.text, row.metadata)
                    assert target.strip()
                    assert len(target) <= LONGEST_TARGET
                assert faulty(row.metadata) is None or isinstance(faulty(row.metadata), str)
            load_prompts(str(path), task="t", limit=2)


WRITTEN = st.one_of(
    edited(LINES),
    mutated(ROWS)
    .map(lambda rows: rows if isinstance(rows, list) else [rows])
    .map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
)
test_json_file, test_json_file_at_length = both(given(content=WRITTEN), json_file, 15, 1500)
