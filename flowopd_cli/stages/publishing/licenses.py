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
from flowopd_cli.system.files import is_file
from flowopd_cli.system.paths import is_hub_id

KNOWN = {"toy": {"license": "apache-2.0"}}
UNKNOWN = {"license": "unknown"}
LARGEST_CARD = 256 << 10  # bytes
_NAME, _LINK = re.compile(r"[\w.+-]{1,100}", re.ASCII), re.compile(r"https://[\w.~/%+-]{1,300}", re.ASCII)
FORMS = {"license": _NAME, "license_name": _NAME, "license_link": _LINK}


def known_license(base: str) -> Mapping[str, str]:
    """The license of a base that the package or its family knows, empty for any other."""
    family_name = family_of(base)
    return KNOWN.get(base) or (family(family_name).licenses.get(base, {}) if family_name else {})


def inherited_license(base: str, folder: Path | None, revision: str | None = None) -> Mapping[str, str]:
    """``license`` of a base and, if it has them, ``license_name`` and ``license_link``.

    An unknown base's license is read from its card in ``folder``, else from the Hub's. Empty without either.
    """
    if known := known_license(base):
        return known
    if folder is not None and is_file(folder / CARD) and (terms := _terms(base, folder / CARD)):
        return terms
    with suppress(Exception):  # offline, gated, gone
        return _terms(base, Path(hf_hub_download(base, CARD, revision=revision))) if is_hub_id(base) else {}
    return {}


def _terms(base: str, card: Path) -> Mapping[str, str]:
    data: dict[str, Any] = {}
    with suppress(Exception):  # the metadata of a damaged card is unknown
        data = metadata_load(card) or {} if card.stat().st_size <= LARGEST_CARD else {}
    terms = {key: value for key in FORMS if isinstance(value := data.get(key), str)}
    link = terms.get("license_link", "")
    if is_hub_id(base) and _NAME.fullmatch(link):
        terms["license_link"] = f"https://huggingface.co/{base}/blob/main/{link}"
    terms = {key: value for key, value in terms.items() if FORMS[key].fullmatch(value)}
    return terms if "license" in terms else {}
