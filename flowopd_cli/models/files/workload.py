"""Counts of a training that determine its memory. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AtHand:
    """Adapters whose files are on this machine, by reference: the parameters of LoRAs, and full models."""

    loras: Mapping[str, int] = field(default_factory=dict)
    full: frozenset[str] = frozenset()

    def counts(self, refs: Iterable[str]) -> tuple[int, int, int]:
        """The number of adapters that are not at hand, the parameters of LoRAs that are, the number of full models."""
        refs = list(refs)
        unknown = sum(ref not in self.loras and ref not in self.full for ref in refs)
        return unknown, sum(self.loras.get(ref, 0) for ref in refs), sum(ref in self.full for ref in refs)


NOTHING = AtHand()


@dataclass(frozen=True)
class Workload:
    """Counts of one process.

    ``adapters`` are LoRAs as large as the recipe's, ``known`` the parameters of others, ``models`` frozen sets of all
    weights. ``trained`` sets of all weights are float32 on the device: a fully trained policy and its copies, of which
    ``hosted`` are in the host's memory instead. ``moments`` are the optimizer's bytes for a trained parameter.
    ``learning_rows`` and ``sampling_rows`` go through the transformer at once, the halves of guidance included.
    ``latents`` and ``prompts`` are held between collection and learning. ``shards`` processes share the base. With
    ``offload`` the base is on the device during a forward only.
    """

    adapters: int
    learning_rows: int
    sampling_rows: int
    latents: int
    prompts: int
    shards: int = 1
    offload: bool = False
    known: int = 0
    models: int = 0
    trained: int = 0
    hosted: int = 0
    moments: int = 8
