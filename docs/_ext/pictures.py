"""The picture of the README: ``python docs/_ext/pictures.py DEMO docs/images/pictures.webp``.

Rows are test prompts, evenly spread over each task and not chosen; columns are the models of a ``flowopd demo``. A row
has one prompt, one seed and the first picture of each model.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS = {
    "eval-base": "base",
    "eval-teacher-geneval": "teacher\ngeneval",
    "eval-teacher-ocr": "teacher\nocr",
    "eval-teacher-preference": "teacher\npreference",
    "eval-teacher-quality": "teacher\nquality",
    "eval-merge": "merge",
    "eval-student": "student",
}
ROWS = {"geneval": 5, "ocr": 3}
SIDE, GAP, LEFT, TOP = 96, 6, 300, 56


def drawn(run: Path, task: str) -> list[tuple[str, Path]]:
    """Prompt and first picture of every test prompt of a task, in order."""
    rows = [json.loads(line) for line in (run / "eval" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows if row["index"] == 0]
    names = {"geneval": "geneval/{:05d}/samples/00000.png", "ocr": "ocr/samples/{:05d}_000.png"}
    return [(text, run / "images" / names[task].format(i)) for i, text in enumerate(texts)]


def sheet(demo: Path) -> Image.Image:
    """The whole table."""
    size = LEFT + len(COLUMNS) * (SIDE + GAP), TOP + sum(ROWS.values()) * (SIDE + GAP)
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for column, (name, title) in enumerate(COLUMNS.items()):
        left, row = LEFT + column * (SIDE + GAP), 0
        middle = (left + SIDE // 2, TOP // 2)
        pen.multiline_text(middle, title, fill="black", font=font, anchor="mm", align="center")
        for task, count in ROWS.items():
            found = drawn(demo / name, task)
            for text, path in (found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)):
                top = TOP + row * (SIDE + GAP)
                page.paste(Image.open(path).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
                if column == 0:
                    pen.text((LEFT - 14, top + SIDE // 2), _wrapped(text), fill="black", font=font, anchor="rm")
                row += 1
    return page


def _wrapped(text: str) -> str:
    words = text.split()
    half = len(words) // 2
    return text if len(text) < 36 else f"{' '.join(words[:half])}\n{' '.join(words[half:])}"


if __name__ == "__main__":
    sheet(Path(sys.argv[1])).save(sys.argv[2], quality=90)
