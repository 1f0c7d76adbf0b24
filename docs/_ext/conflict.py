"""Cosines between the gradients of several objectives: ``python docs/_ext/conflict.py RUN RUN…``.

Each run is a training of one iteration of one optimizer step, from the same start. Adam's first moment is then the
gradient, up to a factor.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def gradient(run: Path) -> torch.Tensor:
    """The first moments of the only checkpoint of a run, in one vector."""
    (file,) = run.glob("checkpoints/step-*/state.safetensors")
    moments = {name: value for name, value in load_file(file).items() if name.endswith("/exp_avg")}
    return torch.cat([moments[name].flatten().double() for name in sorted(moments)])


def main(runs: list[Path]) -> None:
    """Print a table with a row and a column for each run."""
    vectors = torch.nn.functional.normalize(torch.stack([gradient(run) for run in runs]))
    print("| |", " | ".join(run.name for run in runs), "|")
    print("|---" * (len(runs) + 1) + "|")
    for run, row in zip(runs, (vectors @ vectors.T).tolist(), strict=True):
        print(f"| {run.name} |", " | ".join(f"{cosine:+.2f}" for cosine in row), "|")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
