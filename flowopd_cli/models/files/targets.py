"""Names of layers: the targets of an adapter, and patterns that match given layers and no others. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from flowopd_cli.errors import RecipeError
from flowopd_cli.system.text import suggest

# Words for many layers, with a pattern that is found in their names.
WORDS = {"all-linear": re.compile(""), "attention": re.compile(r"(^|\.)\w*(attn|attention)\w*\.")}
_BLOCK = re.compile(r".*?\.\d+\.")


def target_layers(targets: Iterable[str], linear: Sequence[str]) -> tuple[str, ...]:
    """The linear layers of a base that ``adapter.targets`` match: by a word, or by the end of a name.

    Raises :class:`RecipeError`: a target matches none of them.
    """
    matched: set[str] = set()
    for target in targets:
        word = WORDS.get(target)
        layers = [name for name in linear if (word.search(name) if word else target in _ends(name))]
        if not layers:
            known = sorted({*WORDS, *(end for name in short_names(linear) for end in _ends(name))})
            remedy = suggest(target, known) or f"; its layers are {', '.join(short_names(linear))[:800]}"
            raise RecipeError(f"adapter.targets: {target[:80]!r} matches no linear layer of this base{remedy}")
        matched.update(layers)
    if not matched:
        raise RecipeError("adapter.targets is empty: name layers by the end of their names, or use attention")
    return tuple(name for name in linear if name in matched)


def match_exactly(targets: Sequence[str], layers: Iterable[str], modules: Iterable[str]) -> bool:
    """Whether PEFT, which matches ends of names, would adapt these layers and no other of a base's modules."""
    return {name for name in modules if any(end in targets for end in _ends(name))} == set(layers)


def short_names(layers: Iterable[str]) -> tuple[str, ...]:
    """The names of layers inside their blocks, each once: ``attn.to_q`` for ``transformer_blocks.0.attn.to_q``."""
    return tuple(dict.fromkeys(_BLOCK.sub("", name, count=1) for name in layers))


def uncovered(targets: Sequence[str], layers: Iterable[str]) -> str | None:
    """The first of the layers whose name no target ends."""
    return next((name for name in layers if not any(end in targets for end in _ends(name))), None)


def anchored(layers: Iterable[str]) -> str:
    """A regular expression that matches these names whole, as PEFT's ``target_modules`` or a key of its patterns."""
    return f"^(?:{'|'.join(re.escape(name) for name in layers)})$"


def pattern_keys(layers: Iterable[str]) -> dict[str, str]:
    """Keys for PEFT's ``rank_pattern`` and ``alpha_pattern``, which match ends of names: with ``^`` where needed."""
    ends = {end for name in layers for end in _ends(name) if end != name}
    return {name: f"^{name}" if name in ends else name for name in layers}


def _ends(name: str) -> Iterator[str]:
    """The name, and what is left of it after each dot."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name
