"""The license that an adapter inherits from its base, in the Hub's own terms. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load

from flowopd_cli.models.files.families import family, family_of
from flowopd_cli.runs.layout import CARD
from flowopd_cli.system.paths import is_file, is_hub_id

KNOWN = {"toy": {"license": "apache-2.0"}}
UNKNOWN = {"license": "unknown"}
LARGEST_CARD = 256 << 10  # bytes
_NAME, _LINK = re.compile(r"[\w.+-]{1,100}", re.ASCII), re.compile(r"https://[\w.~/%+-]{1,300}", re.ASCII)


def known_license(base: str) -> Mapping[str, str]:
    """The license of a base that the package or its family knows, empty for another."""
    family_name = family_of(base)
    return KNOWN.get(base) or (family(family_name).licenses.get(base, {}) if family_name else {})


def inherited_license(base: str, folder: Path | None, revision: str | None = None) -> Mapping[str, str]:
    """``license`` of a base and, where it has them, ``license_name`` and ``license_link``.

    An unknown base's license is read from its card in ``folder``, else from the Hub's. Empty where neither names one.
    """
    if known := known_license(base):
        return known
    card = folder / CARD if folder is not None else None
    if card is not None and is_file(card) and (license := _in_card(base, card)):
        return license
    with suppress(Exception):  # offline, gated, gone
        return _in_card(base, Path(hf_hub_download(base, CARD, revision=revision))) if is_hub_id(base) else {}
    return {}


def _in_card(base: str, card: Path) -> Mapping[str, str]:
    data: dict[str, Any] = {}
    with suppress(Exception):  # whatever a card may hold, its license is then unknown
        data = metadata_load(card) or {} if card.stat().st_size <= LARGEST_CARD else {}
    terms = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    if is_hub_id(base) and _matches(_NAME, terms["license_link"]):
        terms["license_link"] = f"https://huggingface.co/{base}/blob/main/{terms['license_link']}"
    forms = {"license": _NAME, "license_name": _NAME, "license_link": _LINK}
    found = {key: str(value) for key, value in terms.items() if _matches(forms[key], value)}
    return found if "license" in found else {}


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
