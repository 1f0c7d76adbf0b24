"""The license that an adapter inherits from its base, in the Hub's own terms. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.models.files.shapes import family, family_of
from flowopd_cli.runs.layout import CARD
from flowopd_cli.system import yaml_files as safe_yaml
from flowopd_cli.system.paths import is_file, is_hub_id

KNOWN = {"toy": {"license": "apache-2.0"}}
UNKNOWN = {"license": "unknown"}
LARGEST = 256 << 10  # bytes of a card that are looked at
_HEAD = re.compile(r"---\r?\n(.*?)\r?\n---\s*(\n|$)", re.DOTALL)
_NAME, _LINK = re.compile(r"[\w.+-]{1,100}", re.ASCII), re.compile(r"https://[\w.~/%+-]{1,300}", re.ASCII)


def known_license(base: str) -> Mapping[str, str]:
    """The Hub's metadata of the license of a base that comes with the program or its family names; else empty."""
    named = family_of(base)
    return KNOWN.get(base) or (family(named).licenses.get(base, {}) if named else {})


def inherited_license(base: str, folder: Path | None, revision: str | None = None) -> Mapping[str, str]:
    """The Hub's metadata of a base's license: ``license`` and, where it has them, ``license_name`` and
    ``license_link``. Of a base that is not known here the card says it: the one in ``folder``, else the Hub's.
    Empty where neither can be read or names none.
    """
    return known_license(base) or _in_card(base, folder) or (_on_hub(base, revision) if is_hub_id(base) else {})


def _in_card(base: str, folder: Path | None) -> Mapping[str, str]:
    if folder is None or not is_file(folder / CARD):
        return {}
    with suppress(OSError, RecipeError), (folder / CARD).open("rb") as handle:
        return _in_head(base, handle.read(LARGEST).decode("utf-8", "replace"))
    return {}


def _on_hub(base: str, revision: str | None) -> Mapping[str, str]:
    from huggingface_hub import hf_hub_download

    with suppress(Exception):  # offline, gated, gone: then the license is not known
        return _in_card(base, Path(hf_hub_download(base, CARD, revision=revision)).parent)
    return {}


def _in_head(base: str, text: str) -> Mapping[str, str]:
    """What the metadata of a card say, as far as it is a name and a link."""
    found = _HEAD.match(text.removeprefix("\ufeff"))
    head: Any = safe_yaml.parse(found[1], CARD) if found else None
    if not isinstance(head, dict) or not _is(_NAME, head.get("license")):
        return {}
    data = {"license": head["license"]}
    if _is(_NAME, head.get("license_name")):
        data["license_name"] = head["license_name"]
    link = head.get("license_link")
    if _is(_NAME, link) and is_hub_id(base):
        link = f"https://huggingface.co/{base}/blob/main/{link}"
    return data | ({"license_link": link} if _is(_LINK, link) else {})


def _is(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
