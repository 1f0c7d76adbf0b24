"""Training prompts in GenEval's words, made here: the grammar of the evaluation prompts, which are themselves left out.

Tags are drawn with the weights of Flow-GRPO's generator (arXiv 2505.05470): position 7, counting 5, color_attr 3,
colors 1, two_object 1; ``single_object`` has no training prompts, for the evaluation set holds all of them. A row is
a function of the seed and its number alone, on every version of Python.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flowopd_cli.prompts.coco import GENEVAL_CLASSES

WEIGHTS: Mapping[str, int] = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COUNTS: Mapping[int, str] = {2: "two", 3: "three", 4: "four"}
AXES: Mapping[str, str] = {"left of": "x", "right of": "x", "above": "y", "below": "y"}
WORDINGS = ("geneval", "english")
PAINTABLE = tuple(name for name in GENEVAL_CLASSES if name != "person")
PAIRED = ("skis", "scissors")
IRREGULAR: Mapping[str, str] = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "broccoli": "heads of broccoli",
}
Row = dict[str, Any]
T = TypeVar("T")


def make(count: int, seed: int, *, wording: str = "geneval") -> Iterator[Row]:
    """``count`` rows of GenEval's metadata, with ``id`` and ``task``.

    ``wording`` is that of the evaluation prompts, whose plurals are rules without exceptions (``benchs``, ``knifes``,
    ``a skis``), or correct English. Rows may repeat: ``counting`` has 160 scenes in all.
    """
    for number in range(count):
        rng = random.Random(f"geneval/{seed}/{number}")
        tag = _pick(rng, [tag for tag, weight in WEIGHTS.items() for _ in range(weight)])
        row = _scene(tag, rng)
        while held_out(row):
            row = _scene(tag, rng)
        yield {**row, "prompt": describe(row, wording), "task": "geneval", "id": f"geneval-{seed}/{number:05d}"}


def held_out(row: Mapping[str, Any]) -> bool:
    """Whether a scene is one of the evaluation prompts, or one with its two objects, colors or sides exchanged."""
    return row["tag"] == "single_object" or _digest(_kind_of_scene(row)) in _HELD_OUT


def describe(row: Mapping[str, Any], wording: str = "geneval") -> str:
    """The prompt of a scene."""
    include, english = row["include"], wording == "english"
    if row["tag"] == "counting":
        name, count = include[0]["class"], include[0]["count"]
        return f"a photo of {COUNTS[count]} {_english_plural(name) if english else plural(name)}"
    phrases = [_phrase(clause["class"], clause.get("color"), english) for clause in include]
    if row["tag"] == "position":
        return f"a photo of {phrases[1]} {include[1]['position'][0]} {phrases[0]}"
    return f"a photo of {' and '.join(phrases)}"


def plural(name: str) -> str:
    """The plural as GenEval's prompts have it."""
    return name + ("es" if name.endswith("s") else "s")


def _scene(tag: str, rng: random.Random) -> Row:
    """A scene without its prompt, its keys in the order of the evaluation file."""
    if tag == "counting":
        name, count = _pick(rng, GENEVAL_CLASSES), _pick(rng, tuple(COUNTS))
        include, more = [{"class": name, "count": count}], [{"class": name, "count": count + 1}]
        return {"tag": tag, "include": include, "exclude": more}
    names = _pair(rng, GENEVAL_CLASSES if tag in ("two_object", "position") else PAINTABLE)
    clauses: list[Row] = [{"class": name, "count": 1} for name in names]
    if tag == "colors":
        clauses = [{**clauses[0], "color": _pick(rng, COLORS)}]
    elif tag == "color_attr":
        clauses = [{**clause, "color": color} for clause, color in zip(clauses, _pair(rng, COLORS), strict=True)]
    elif tag == "position":
        # the object that the other stands by comes first, as in the evaluation file
        clauses[1]["position"] = [_pick(rng, tuple(AXES)), 0]
    return {"tag": tag, "include": clauses}


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items; ``random()`` is the only draw that Python promises not to change."""
    return items[int(rng.random() * len(items))]


def _pair(rng: random.Random, items: Sequence[T]) -> tuple[T, T]:
    first = _pick(rng, items)
    return first, _pick(rng, [item for item in items if item != first])


def _phrase(name: str, color: str | None, english: bool) -> str:
    words = f"{color} {name}" if color else name
    if english and name in PAIRED:
        return f"a pair of {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _english_plural(name: str) -> str:
    if name in PAIRED:
        return f"pairs of {name}"
    if name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


def _kind_of_scene(row: Mapping[str, Any]) -> str:
    """What a scene shares with those that differ from it by an exchange."""
    include = row["include"]
    parts = [row["tag"], *sorted(clause["class"] for clause in include)]
    if row["tag"] == "counting":
        parts.append(str(include[0]["count"]))
    parts += sorted(clause["color"] for clause in include if "color" in clause)
    parts += [AXES[clause["position"][0]] for clause in include if "position" in clause]
    return "|".join(parts)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:6]).decode()


# The evaluation prompts but ``single_object``, which has every class: 8 letters of a digest for each kind of scene.
_HELD = (
    "--Elons2-CzoV10s-c0fhm9F-cIsb-Jd-v33aT4--wRTGAja0-EEBFqY01EB93Vo0IA8MeVq0YoKt7P20tgcFkMj0ycOade-1A48l-0E1L-jWUO2"
    "1Nkce7wP1O-Pp5tF1Qkqn84u1_SVahFu1jtOL3Jz1x4J119K1zmUqRbC2-b2vLSI2Ae98ypN2Dtg97bx2LXCL1be2c-i6-9_2lrN-Rdh2oUdH7hs"
    "2sV55Jt937D9fSUG3MEtdupR3O5ezi1X3RFMwcX_3Se5ITL43n72TL213q-u7ynv40_Ua6324BZPwTEV4EFOx0ja4I_ORmOo4Umsrp3D4iQX2nZH"
    "4j8mH4Z-4oicFVG64pS6eOf34sdjP6qw4vFL0dH94vGPDSWw543RGVUj57NtiuTs59Q-HLz75kjPw4945ocz0Ea66IjKD1RJ6_aGn8lE6kcheJaQ"
    "6wwPBRn773FSlYSR74cPk1g87COkP2n77MVwHyzo7WQaF8x77YNasxDl7m48O7S-7qfBDkbH7x0X7rAn82v1dLNS888FCz2x8IUTM-7f8IVwAQrY"
    "8KnrM1fF8QzV8ZoT8iD4JNcJ8l4sEp9R9IV-KJ779SoSb0Tl9TW4jYP_9bL-gcFd9fpvi9Fy9j8ooBLr9lfDE8bC9vKHRA-YAFc6tL8oAYFpB-06"
    "Adf0zgwaAl9fOyhQB73hzoCZB7lnpklyBGhRS-x7BI95AoA6BR76ODnrBaOq2qhEBsc2FxNvC09tDw4zC28FnwUQC8lq5mchCAe9yj6JCDh-0EX2"
    "CHWtoWg1CL1TNLwlCcCR0KM6Ceq_bV1DCggTAglzCml_Q8juCqmzfLu3D2HGEvLZDCCWmIrXDe-nb4lBDebpIfR3Do0iM1M8DpeSkF1TDsuNQhes"
    "Dvl82OzFDxhhj4IVENp2le_CEVgFHWZVEhH25J0nEhcsfEY8Es--XLjREviiw6hCEwEXAwHMF941uAn-FIgNJUo9FJ1JVoBuFafKEDU7FcDLDfqR"
    "Fh5ED2bZFq2bvIYVFzr1DLUuG0W3Gcz7G0vU61r5G5sa1KbAGCweXlBRGECFvKraGLo2-gVwGMAiaAkuGN9a7ckqGZvclUbsGlvFMZACGtRL_X8P"
    "H7DK2McfHDCIa7sWHJYdONVMHMT_DJHFH_Qi8RHkHaA9dTlJHevKrrJSHqY5Gxz4I-mbAyUMI2GB6C7wI2Nl_kgcI6xbi4yII7jmq1N6I81egt85"
    "ICZ2afBmID02IPE6IZxejMBSIaQV0YGQJD_g78N9JihILsoaJqxqoQ8JJsg5Tj39JtK-yY1_K0-MPGBuKJSA_nztKiTB3VyCKyZ0p7fJKz8lDL9B"
    "LDu4XCi-LE_KzIKVLWPvYRKELmrPuxMxLp-DuRS9Lxc51TyiLyfrl-2mMBYfO9ZWMm9VCVKqMxEOD3a2NM3O36d8NSsWSEjlNU6gzJPPN_4CP8Xf"
    "NmwTv-YHNtmdyCUkOYw7mmX6OfjObfGhOwdiXVmcP00XyeD-P1ITNgPPPCFBmjEOPSpJHcZNQ4BLzheSQGDIdf2iQX_odkgBQccOsJQIQiM0GCjX"
    "Qj__QUJBR1MRHnqiR3k08XHVR6n5AHSWRWLebqwlRdxLgw2hRe9DURwpRgmgDBKSRn4GmbY2Rp9N7aHfS9qzgJoJSExvQb8KSFwO3o6QSe-Zm3dV"
    "SfPuYLquSk80LTZnSoc6Cd5TSrv1qu8eSzfq6nuMTH-oghCbTjWZBC2MTlTVSzikTnoWYu3-ToDYzWAnU6K1kxkhUSsXZkGvUa-MfCryV-Kchk26"
    "VFI8RZTvVGE_5h5kVHqaNU8cVbwxNj83Vj_uBGZfWAtWTK_QWGLWgRSXWIhU9UkUWPzMy8sSWSYF64wMWnKhgdfYWtNz9mc1WtxjJDUVX22hu-ax"
    "XFdB2EphXO4DzHzpXb2YzVr0XdyIyZ-nXlu2_QKmY0DvTsR9YCtOj7yrYMaFdaCzYQi_1FmXYTgSegEiYYMgc9jiYYgN26M2Yab7FrjeYqNZUuWw"
    "YuT5RC6qZIjpuGQaZJiBbtvlZWSyM5C_Zfva1IeUZkaRgQLAZoR46qAjZs7v4m96_3ZRm08Z_IaJL0_7_MrQ19DZ_PonRalR_Qzl6946_SmdupW7"
    "_WKj1zLO_cTmDMrP_obj9tbj_onHFNSY_pqT0bkl_u-Ajhf7a-x_ZMysa2Hdpl-da6FoHwlra80vjqxXa9L0RFEmaFBrvIJyaKTsgIJnaPF404u1"
    "aRG4-btZaSdhyz23abcAfIG_anPVi8L1atvvwJ2VaxpPr-PCbH26isCkbTWHWAFCbUVAYgz9bVH2ba2hbY6ihKjUbdM-bOyIbfe6mge5buCQCdpe"
    "byIKOW4yc4Us9tR4cF6GHgnxcWU4oQctcaspmSjlcbNEjij1cbT8Iqhrcct7M9bUcewsNwsDcvXgS2Z6d5YRzm0AdUiEBVvedns_QVO4e8eYgdcv"
    "eK7c-mpJeSDZ2apJeUJWAS3geUlZBLIIebFv_fNGecGF2aEHel6nQkJEeliTcpw9f-9VjsiZfBl2FxmQfBz3EXp4fGS8hZT3fP-EqpElfWxBD_Wv"
    "fdRwLwqfg-a4ppKgg-uU391Kgh1T6O8agl09kJNVgp9jILgxh6WjvqSwhD0bwZMwhKK5DFuGhQYSNcYYhciPdjFShdn6ttQ7hg6oOmrjhgziNyWS"
    "hq0CnvkohspO6l6hhzZnx5mJi4-9Q5tmiKlx4sJyiYlcShQAiZ3cX-x_ia57blLwif_FWebcigA5jcyVikb7lSPIimF7xLstipdlzdnxiqNIuTew"
    "it2IPksUixgkChOpj6CMOT9Vj6GYrI9DjAKJ2UBTjXFxoxq5jeE0aoKkjozQq_F_jshMD33HjtDTsBB-k5LszvMrkb46IC0skiJpMsthkl304Ije"
    "kyIQEjBbkzE8jhgUl7mWz0YAlCqXPJ0nlFqQEjcOlK5rUTARlNhbnSf6lR-KKKY4l_cnny0QlmWmGVxMlrs2dSQ5lvhgYUt8lwg4wA4GlyPXLeZ4"
    "mFcaxGmcmMgg_A5dmWyQtgj0maBUkGxqmbFQrZycn4jBjb0xnWVFZw7jnZMPXrmSn_Rmc8YdndYxPZMXnoBAbtXHnrYHYprAoPd4p6XnoacLH79v"
    "oqLOZX6LoyCgJX7wpAEKFf-jpEJiuRUlpUZEBhEMpUazj5zGpfob1J09pfrlq75QptvOJz6Rq4c57bPHqCZB2Y_vqQCWDMFTqWvB5-B4qegH4RGN"
    "qjAlrjalqq6lAeS6qz18Dx_7qzoIRGALrAz13rnyrQzlm7IurVp-AITurgfFXxuQroFOafDfsC4z5auwsPGKQkMQsTLcyO2bsVgwnqhVs_I_n_Nn"
    "sbTUjx-Nseib5n2dsqzxrOgusubtRi-qsvyg2P4tt1aK0S1KtBLRMGGjtV8KybLGtWU0Xr2gtkiDmkxuuLGCXfkpuU35TtjwubMeXZ3YubvQbSLp"
    "ucr-a7y-uhQokOSYukVSputAumpPezrIupSSDnqrv0pHLeVyvHKbbH_XvITP7osLvJCJeZhlvSprjXLjvW64ugcqvdYZQfQ7vfZwqi_6vhjzPYXi"
    "vj0sMRoUvt_ivDTPvuOyt-I5vyb9Ywdyw6WaYFQpwIYHHZgiwUsP-8WDwfH4ogUswhJVKzHmwq_uxdAIwsOtoC4kwz6JwCQLxVA6vmgIxnkOJe5r"
    "y-lgveEayDuqLCo3ycIcFncuyciVleSKyhKtBzE_yk6D2eAxyx2_VlkNzbKA5n4Nzms47Ldmzz66zXh3"
)
_HELD_OUT = frozenset(_HELD[i : i + 8] for i in range(0, len(_HELD), 8))
