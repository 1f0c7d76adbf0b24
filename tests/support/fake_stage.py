"""A stage as a program that trains nothing: ``fake_stage.py STAGE --recipe FILE --out RUN`` or ``… --resume RUN``.

It notes its call in ``calls`` of the folder of runs, or of ``$FAKE_NOTES``, and obeys the file ``orders`` there, a
mapping from a text in the recipe to ``fail``, ``hang`` or ``die``. An evaluation's figures are a function of the name
of the adapter's run.
"""

import hashlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

words = sys.argv[2:]
resumed = "--resume" in words
run = Path(words[words.index("--resume" if resumed else "--out") + 1])
notes = Path(os.environ.get("FAKE_NOTES", run.parent))
if not resumed:
    (run / "eval").mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(Path(words[words.index("--recipe") + 1]).read_text())
recipe = (run / "recipe.yaml").read_text()
manifest = {"run_id": run.name, "stage": sys.argv[1], "status": "running", "recipe_sha": "0", "code_version": "0"}
manifest |= {"created": "2026-01-01T00:00:00+00:00", "environment": {"python": "3", "platform": "x", "packages": {}}}
with (notes / "calls").open("a") as calls:
    calls.write(f"{'resume' if resumed else 'start'} {run.name} {time.time()}\n")


def close(status):
    (run / ".manifest").write_text(json.dumps({**manifest, "status": status}))
    (run / ".manifest").replace(run / "manifest.json")  # readers see the old one or the new one


close("interrupted")
orders = json.loads((notes / "orders").read_text()) if (notes / "orders").exists() else {}
for text, order in orders.items():
    if text in recipe:
        if order == "fail":
            close("failed")
            sys.exit("flowopd: error: it was told to fail")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        time.sleep(60 if order == "hang" else float(order))
if sys.argv[1] == "eval":
    adapter = re.search(r"^adapter: (.*)", recipe, re.M)[1].rpartition("/")[2]
    for suite in re.findall(r"^  - toy-(\w+)$", recipe, re.M):
        mean = int(hashlib.sha256(f"{adapter}{suite}".encode()).hexdigest()[:6], 16) / 16**6
        result = {"suite": suite, "version": "1", "mean": mean, "stderr": 0.1, "n": 4}
        (run / "eval" / f"{suite}.json").write_text(json.dumps(result))
close("done")
with (notes / "ends").open("a") as ends:
    ends.write(f"{run.name} {time.time()}\n")
