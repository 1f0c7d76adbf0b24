"""Counts of a training that determine its memory. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Counts of one process.

    ``adapters`` are LoRAs, ``models`` frozen sets of all weights. ``trained`` sets of all weights on the device are
    float32: a fully trained policy and its copies. ``moments`` are the optimizer's bytes for a trained parameter.
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
    models: int = 0
    trained: int = 0
    moments: int = 8
