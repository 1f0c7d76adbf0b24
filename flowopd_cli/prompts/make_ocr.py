"""A generator of training prompts with a text to write, from small word lists; plainer than the published ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from flowopd_cli.prompts.make_geneval import pick

PLACES = (
    *("a wooden sign above a bakery door that says", "a neon sign in a rainy street that reads"),
    *("a chalkboard in a coffee house with the words", "a road sign beside a desert highway that says"),
    *("a birthday cake with icing that spells", "a book cover on a library table titled"),
    *("a shop window with painted letters that read", "a train station board displaying"),
    *("a coffee mug on an office desk printed with", "a banner across a stadium that says"),
    *("a brass plaque on a stone wall engraved with", "a t-shirt on a clothes line printed with"),
    *("a movie poster in a dark hallway titled", "a phone screen on a kitchen table showing"),
    *("a cardboard box in a warehouse labeled", "a graffiti wall under a bridge that spells"),
)
STYLES = (
    *("in bold letters", "in elegant handwriting", "in white capital letters", "in large golden letters"),
    *("in clear black print", "in bright red paint"),
)
LIGHTS = (
    *("soft morning light", "photographed at dusk", "close-up, sharp focus", "under warm lamps"),
    *("on a cloudy afternoon", "with a blurred background", "realistic photograph", "seen from a low angle"),
)
FIRSTS = (
    *("Silver", "Quiet", "Golden", "Little", "Northern", "Crystal", "Hidden", "Royal", "Gentle", "Electric", "Velvet"),
    *("Amber", "Hollow", "Lucky", "Marble", "Paper", "Thunder", "Winter", "Copper", "Crooked", "Floating", "Humble"),
    *("Jolly", "Lonely", "Misty", "Narrow", "Painted", "Rusty", "Scarlet", "Tidal", "Upper", "Wandering", "Young"),
)
SECONDS = (
    *("Harbor", "Garden", "Rocket", "Orchard", "Lantern", "Pepper", "Kingdom", "Bicycle", "Compass", "Library"),
    *("Museum", "Waterfall", "Piano", "Sparrow", "Village", "Machine", "Lemonade", "Theater", "Meadow", "Workshop"),
    *("Biscuit", "Canyon", "Dragonfly", "Engine", "Feather", "Glacier", "Kettle", "Mountain", "Noodle", "Ribbon"),
)
THIRDS = ("Club", "Company", "Festival", "Market", "Parade", "Road", "Society", "Station", "Street", "Tour")


def make(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """``count`` rows, each a function of the seed and its number; targets have one to three words, or a number."""
    for number in range(count):
        rng = random.Random(f"ocr/{seed}/{number}")
        target = _target(rng)
        prompt = f'{pick(rng, PLACES)} "{target}" {pick(rng, STYLES)}, {pick(rng, LIGHTS)}'
        yield {"prompt": prompt, "target": target, "task": "ocr", "id": f"ocr-{seed}/{number:05d}"}


def _target(rng: random.Random) -> str:
    first, second = pick(rng, FIRSTS), pick(rng, SECONDS)
    kind = int(rng.random() * 5)
    if kind == 0:
        return second
    if kind == 1:
        return f"{first} {second}"
    if kind == 2:
        return f"{second} {10 + int(rng.random() * 2016)}"
    if kind == 3:
        return f"{first} {second} {pick(rng, THIRDS)}"
    return f"The {first} {second}"
