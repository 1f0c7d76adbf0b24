"""What can be said of a base without loading it: its family, and what follows from its shape by counting.

No torch here: these are the figures of ``--dry-run`` and the shapes of ``flowopd bench``. A family describes itself by
a :class:`Family`, a row of ``registry.FAMILIES``. The tests compare every count with diffusers' own modules, and the
activations with what autograd really keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from flowopd_cli.errors import ArtifactError
from flowopd_cli.registry import BASES, FAMILIES
from flowopd_cli.system.json_files import read_json

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FULL = 4  # bytes of a float32 number: adapters, optimizer, latents
TIME_CHANNELS = 256
MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Linear:
    """A linear module: its name, its sizes, whose tokens go through it (``image``, ``text``, both: ``joint``, or one
    ``row``), and a name for its input where other modules have the same.
    """

    name: str
    inputs: int
    outputs: int
    tokens: str
    source: str = ""

    @property
    def weights(self) -> int:
        """With the bias."""
        return self.outputs * (self.inputs + 1)


@dataclass(frozen=True)
class Rows:
    """What goes through the transformer at once: rows, tokens of a picture and of a text, bytes of a number."""

    rows: int
    image: int
    text: int
    bytes: int

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * (self.image + self.text)

    def of(self, kind: str) -> int:
        """The tokens of all rows that go through a :class:`Linear` of this kind."""
        return self.rows * {"image": self.image, "text": self.text, "joint": self.image + self.text, "row": 1}[kind]


class Shape(ABC):
    """A transformer's sizes: a frozen dataclass of the names of its ``config.json``.

    Beside them ``pixels`` is the side of a latent pixel in the picture, and ``encoders`` counts the text encoders'
    weights, 0 if not known.
    """

    NOT_OF_CONFIG: ClassVar[tuple[str, ...]] = ("pixels", "encoders")
    SCHEDULER: ClassVar[Mapping[str, Any]] = {}  # arguments of the family's usual scheduler
    TRANSIENT: ClassVar[int]  # numbers a token and channel that one block holds at a time beside what is kept

    num_attention_heads: int
    attention_head_dim: int
    joint_attention_dim: int
    pooled_projection_dim: int
    pixels: int
    encoders: int

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def config(self) -> dict[str, Any]:
        """The arguments of diffusers' class of the transformer."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.NOT_OF_CONFIG}  # type: ignore[arg-type]

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Blocks of every kind."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents that the autoencoder knows."""

    @property
    @abstractmethod
    def own_side(self) -> int:
        """Latent pixels along a side where no resolution is chosen."""

    def side(self, resolution: int | None) -> int:
        """Latent pixels along a side of a picture."""
        return self.own_side if resolution is None else resolution // self.pixels

    @abstractmethod
    def image_tokens(self, resolution: int | None) -> int:
        """Tokens of a picture."""

    @abstractmethod
    def text_tokens(self, max_sequence_length: int) -> int:
        """Tokens of a prompt."""

    @abstractmethod
    def linears(self) -> Iterator[Linear]:
        """Every linear module of the transformer."""

    @abstractmethod
    def other_weights(self) -> int:
        """Numbers that the transformer holds outside its linear modules."""

    @abstractmethod
    def kept(self, batch: Rows) -> int:
        """Bytes that autograd keeps of a pass with gradients, the inputs of adapters left out."""

    @abstractmethod
    def attention_operations(self, image: int, text: int) -> int:
        """Floating-point operations of one row's attention, projections left out."""


@dataclass(frozen=True)
class Family:
    """What a model family says of itself.

    ``transformer`` is diffusers' class of it, by which a folder's family is known; ``classifier_free`` what guidance is
    to it (:class:`~flowopd_cli.models.base.FlowModel`); ``shapes`` are its shapes by name, ``known`` the Hub ids that
    have one of them, ``licenses`` the Hub's metadata of an id's license; ``read`` makes the shape of a folder from it
    and its transformer's configuration.
    """

    transformer: str = ""
    classifier_free: bool = True
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    read: Callable[[Path, Mapping[str, Any]], Shape] | None = None

    def halves(self, guidance: float) -> int:
        """Forwards of one velocity: two with classifier-free guidance, whose negative half is skipped at guidance 1."""
        return 2 if self.classifier_free and guidance != 1 else 1


def family(name: str) -> Family:
    """The family of a recipe's ``model.family``; one that says nothing of itself is taken to be classifier-free."""
    return FAMILIES.load(name) if name in FAMILIES.names() else Family()


def family_of(pretrained: str) -> str | None:
    """The family that a base is of: a named shape, a known Hub id or a local folder; ``None`` where it is neither."""
    transformer = _config(_folder(pretrained)).get("_class_name")
    for name in FAMILIES.names():
        told = FAMILIES.load(name)
        if pretrained in told.shapes or pretrained in told.known or told.transformer == transformer:
            return name
    return None


def model_fields(pretrained: str) -> dict[str, str]:
    """A base and, where it can be told, its family: fields of a recipe's ``model`` section."""
    named = family_of(pretrained)
    return {"pretrained": pretrained} | ({"family": named} if named else {})


def shape_of(pretrained: str) -> Shape | None:
    """The shape of a base, found as its family is; ``None`` where that or the shape cannot be told."""
    name = family_of(pretrained)
    told = family(name) if name else Family()
    named = told.shapes.get(told.known.get(pretrained, pretrained))
    if named is not None or told.read is None:
        return named
    folder = _folder(pretrained)
    try:
        return _sound(told.read(folder, _config(folder)))
    except (ArtifactError, ValueError, TypeError, KeyError):
        return None


def _sound(shape: Shape) -> Shape:
    """The shape, whose numbers somebody may have damaged.

    Raises:
        ValueError: one of them is no size.
    """
    sizes = [getattr(shape, f.name) for f in fields(shape) if f.type == "int" and f.name != "encoders"]  # type: ignore[arg-type]
    if not all(type(size) is int and size > 0 for size in sizes) or shape.blocks > MOST_BLOCKS:
        raise ValueError("no sizes of a transformer")
    return shape


def named_shapes() -> dict[str, Shape]:
    """Every family's shapes by their names."""
    return {name: shape for told in map(family, FAMILIES.names()) for name, shape in told.shapes.items()}


def pixels_of(folder: Path) -> int:
    """The side of a latent pixel in the picture, as a pipeline's autoencoder says.

    Raises:
        ArtifactError: there is no such autoencoder.
    """
    config = read_json(folder / "vae" / "config.json", "configuration of an autoencoder")
    if not isinstance(config.get("block_out_channels"), list):
        raise ArtifactError(f"{folder}: the configuration of its autoencoder has no block_out_channels")
    return 2 ** (len(config["block_out_channels"]) - 1)


def _folder(pretrained: str) -> Path:
    return Path(str(BASES.load(pretrained)()) if pretrained in BASES.names() else pretrained)


def _config(folder: Path) -> dict[str, Any]:
    """A local folder's configuration of the transformer; empty where there is no sound one."""
    try:
        return read_json(folder / "transformer" / "config.json", "configuration of a transformer")
    except ArtifactError:
        return {}


def embedding(inputs: int, width: int, name: str) -> Iterator[Linear]:
    """The two linear modules by which diffusers embeds a number or a vector of a row."""
    yield Linear(f"time_text_embed.{name}_embedder.linear_1", inputs, width, "row")
    yield Linear(f"time_text_embed.{name}_embedder.linear_2", width, width, "row")


def attention(head: str, width: int, tokens: str, projections: tuple[str, ...], out: str | None) -> Iterator[Linear]:
    """The projections of an attention, which share their input, and the one behind it."""
    yield from (Linear(f"{head}.{name}", width, width, tokens, f"{head}/{tokens}") for name in projections)
    if out is not None:
        yield Linear(f"{head}.{out}", width, width, tokens)


def feed_forward(head: str, width: int, tokens: str) -> Iterator[Linear]:
    """The two linear modules of a feed-forward of four times the width."""
    yield Linear(f"{head}.net.0.proj", width, 4 * width, tokens)
    yield Linear(f"{head}.net.2", 4 * width, width, tokens)


def base_weights(shape: Shape) -> int:
    """Numbers that the frozen transformer holds, a table of positions included."""
    return sum(linear.weights for linear in shape.linears()) + shape.other_weights()


def adapted(shape: Shape, targets: Sequence[str]) -> list[Linear]:
    """The modules that an adapter with these targets sits on."""
    return [m for m in shape.linears() if any(m.name == t or m.name.endswith(f".{t}") for t in targets)]


def adapter_weights(shape: Shape, targets: Sequence[str], rank: int) -> int:
    """Numbers of one adapter."""
    return sum(rank * (module.inputs + module.outputs) for module in adapted(shape, targets))
