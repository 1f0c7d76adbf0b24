"""Which addresses this machine alone can reach. Standard library."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:\[\]]*)(?::\d{0,5})?")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(header: str) -> bool:
    """Whether a request's ``Host`` header, ``name[:port]``, names this machine by such an address.

    A page in a browser may have been led here under its own name, which then stands in that header.
    """
    found = _HOST.fullmatch(header.strip())
    return found is not None and is_loopback(found["name"].removeprefix("[").removesuffix("]"))
