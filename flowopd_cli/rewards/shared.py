"""Models that several rewards use at the same time, loaded once and kept only as long as one of them lives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

Model = TypeVar("Model")
_alive: WeakValueDictionary[Any, Any] = WeakValueDictionary()
_lock = Lock()


def shared(load: Callable[..., Model], *names: str | None, **options: Any) -> Model:
    """``load(*names, **options)``, or what an earlier call with equal arguments made if somebody still holds it."""
    bound = inspect.signature(load).bind(*names, **options)
    bound.apply_defaults()
    key = (load.__module__, load.__qualname__, repr(bound.arguments))
    with _lock:
        found = _alive.get(key)
        if found is None:
            found = load(*names, **options)
            _alive[key] = found
        return found
