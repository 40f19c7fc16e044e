"""Models with two kinds of mixers: `hybrid` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dla_train.models.config_checks import check_count
from dla_train.models.memory_config import DynamicMemory
from dla_train.models.mixer_config import MixerConfig, check_mixer, memory_of


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """Blocks whose mixer is another one than that of the rest: hybrids of linear and softmax attention, say. Which
    blocks they are is given by `every` or by `layers`.

    Attributes:
        mixer: of these blocks.
        every: the last of every so many blocks is one of them: with 4, the blocks 3, 7, 11 and so on, counted from 0.
        layers: their numbers, counted from 0.
    """

    mixer: MixerConfig
    every: int | None = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_mixer("mixer", self.mixer)
        if (self.every is None) == (self.layers is None):
            given = "neither is given" if self.every is None else "both are given"
            raise ValueError(f"every and layers say which blocks these are, and {given}; give one of them")
        if self.every is not None:
            check_count("every", self.every)
            if self.every == 1:
                raise ValueError("every is 1, which leaves no block for model.mixer; it must be at least 2")
        if not isinstance(self.layers, tuple | None):
            raise ValueError(f"layers is {self.layers!r}; it must be a list of the numbers of blocks")
        for layer in self.layers or ():
            if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
                raise ValueError(f"layers has {layer!r}; each must be the number of a block, counted from 0")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"layers is {list(self.layers)}; it must name one block or more, each once")

    def has(self, layer: int) -> bool:
        """Whether the block of this number, counted from 0, is one of these."""
        return layer in self.layers if self.layers is not None else (layer + 1) % (self.every or 1) == 0


def check_hybrid(hybrid: Any, mixer: MixerConfig, layers: int) -> None:
    """Refuse (ValueError) what does not fit a model of `layers` blocks whose others have `mixer`."""
    if not isinstance(hybrid, HybridConfig):
        raise ValueError(f"hybrid is {hybrid!r}; it must be a table with a mixer, and every or layers, or null")
    if hybrid.every is not None and hybrid.every > layers:
        raise ValueError(
            f"hybrid.every is {hybrid.every}, but layers is only {layers}, so that no block has "
            "hybrid.mixer; take a smaller number"
        )
    if hybrid.layers is not None and max(hybrid.layers) >= layers:
        raise ValueError(
            f"hybrid.layers has {max(hybrid.layers)}, but layers is {layers}: blocks are counted from 0 to {layers - 1}"
        )
    if hybrid.layers is not None and len(hybrid.layers) == layers:
        raise ValueError("hybrid.layers has every block, which leaves none for mixer; leave some out")
    ours, theirs = (memory_of(one) for one in (mixer, hybrid.mixer))
    if isinstance(ours, DynamicMemory) and isinstance(theirs, DynamicMemory):
        for name in ("calibrate_rate", "calibrate_steps", "steer"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"hybrid.mixer.memory.{name} is {getattr(theirs, name)} and mixer.memory.{name} "
                    f"{getattr(ours, name)}; all thresholds are set together, so give both the same value"
                )
