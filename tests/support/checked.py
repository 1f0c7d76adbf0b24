"""The type checker of the import hook: beartype, which accepts ints as floats, and plain protocols."""

import sys
from typing import TypeVar, runtime_checkable

from beartype import BeartypeConf, beartype

Target = TypeVar("Target")
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(target: Target) -> Target:
    """``target`` with its arguments and result checked; the protocols that its module names are made checkable."""
    for value in list(vars(sys.modules[target.__module__]).values()):
        if isinstance(value, type) and getattr(value, "_is_protocol", False):
            runtime_checkable(value)
    return _check(target)
