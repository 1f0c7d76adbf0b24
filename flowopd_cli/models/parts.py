"""The parts of a pipeline's folder, loaded as safetensors only, a damaged one refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flowopd_cli.errors import ArtifactError, one_line

BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)


def load_part(kind: Any, folder: Path, subfolder: str | None = None, **options: Any) -> Any:
    """``kind.from_pretrained`` of a part of a pipeline, or of the whole; no pickled weights are read.

    Raises:
        ArtifactError: it is missing, damaged or of another kind.
        torch.OutOfMemoryError: it does not fit.
    """
    where = folder if subfolder is None else folder / subfolder
    if subfolder is not None:
        options["subfolder"] = subfolder
    try:
        return kind.from_pretrained(folder, **options)
    except torch.OutOfMemoryError:
        raise
    except BROKEN as error:
        raise ArtifactError(f"{where}: cannot be loaded as {kind.__name__} ({one_line(error)[:300]})") from error
