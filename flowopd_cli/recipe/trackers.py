"""The trackers that a recipe may name. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from flowopd_cli.system.text import suggest

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def _trackers(value: Any) -> Any:
    """Names of trackers, as a list or with commas, as text with commas; ``none`` for none of them."""
    names = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    known = [str(name).strip() for name in names if name is not None and str(name).strip() not in {"", "none"}]
    for name in known:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name[:40]!r}{suggest(name, TRACKERS)}; known: none, {', '.join(TRACKERS)}")
    return ",".join(dict.fromkeys(known)) or "none"


Trackers = Annotated[str, BeforeValidator(_trackers)]
