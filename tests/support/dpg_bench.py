"""A file in the form of ``dpg_bench.csv``, and a worker of DPG-Bench over a stand-in for modelscope's mPLUG."""

import csv
import json
import sys

from support.workers import ROOT, started

COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency"),
    *("category_broad", "category_detailed", "tuple", "question_natural_language"),
)
# Answers "yes" to "dark" and "bright" by the picture's mean, "no" to the rest.
MPLUG = """
import types

import torch

WORDS = ["no", "yes"]


class Tokenizer:
    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return WORDS[int(tokens[0])]


class Vision(torch.nn.Module):
    def forward(self, images, skip_last_layer):
        return images.flatten(1).mean(dim=1)[:, None, None]


class MPlug(torch.nn.Module):
    config, tokenizer = types.SimpleNamespace(image_res=8), Tokenizer()

    def __init__(self):
        super().__init__()
        self.visual_encoder = torch.nn.Module()
        self.visual_encoder.visual = Vision()

    @classmethod
    def from_pretrained(cls, folder, task):
        assert task == "visual-question-answering"
        print("what mPLUG prints when it is loaded")
        return cls()

    def forward(self, images, texts, train):
        assert not train and not self.training and len(images) == len(texts)
        bright = self.visual_encoder.visual(images, skip_last_layer=True)[:, 0, 0] > 0
        asked = [(bool(b), "bright" in text, "dark" in text) for b, text in zip(bright, texts)]
        return [[torch.tensor([int(b if light else dark and not b)])] for b, light, dark in asked], None
"""
TRANSFORMERS = """
__version__ = "stand-in"


class Texts(list):
    def to(self, device):
        return self


class BertTokenizer:
    @classmethod
    def from_pretrained(cls, folder):
        return cls()

    def __call__(self, texts, **options):
        assert options == {"return_tensors": "pt", "padding": "max_length", "truncation": True, "max_length": 25}
        assert all(text == text.lower() for text in texts)
        return Texts(texts)
"""
PACKAGES = {
    "transformers.py": TRANSFORMERS,
    "modelscope/__init__.py": '__version__ = "stand-in"\n',
    "modelscope/hub/__init__.py": "",
    "modelscope/hub/snapshot_download.py": "def snapshot_download(model, revision):\n    raise OSError('offline')\n",
    "modelscope/models/__init__.py": "",
    "modelscope/models/multi_modal/__init__.py": "",
    "modelscope/models/multi_modal/mplug.py": MPLUG,
}


def row(item, number, dependency, category, question, text=None):
    """A row of the file."""
    values = (item, text or f"a picture called {item}", "", number, dependency, "", "", f"{category} (x)", question)
    return dict(zip(COLUMNS, map(str, values), strict=True))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def some_rows(names):
    """Rows of items with four questions, after a first row that is skipped."""
    yield row("skipped", 1, 0, "entity - whole", "Is it there?")
    for name in names:
        yield row(name, 1, 0, "entity - whole", "Is it Bright?")
        yield row(name, 2, 1, "attribute - color", "Is the bright thing bright?")
        yield row(name, 3, "1,2", "attribute - color", "Is the bright thing dark?")
        yield row(name, 4, 0, "global -", "Is it dark?")


def serving(folder, **options):
    """The worker's script as a process over the stand-in, for ``with``."""
    for name, text in PACKAGES.items():
        path = folder / "stand_in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    model = folder / "mplug"
    model.mkdir(exist_ok=True)
    (model / "pytorch_model.bin").write_bytes(b"weights")
    script = ROOT / "flowopd_cli" / "rewards" / "remote" / "workers" / "dpg_bench.py"
    flags = json.dumps({"options": {"model": str(model), "device": "cpu", **options}})
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); del sys.argv[0]; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    argv = [sys.executable, "-c", code, str(folder / "stand_in"), str(script), flags]
    return started(folder=folder, argv=argv, start_seconds=120)  # it imports torch
