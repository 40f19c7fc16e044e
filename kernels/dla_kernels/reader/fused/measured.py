"""Tile sizes that were measured to be fast, by architecture and layer shape: the shipped table, or one of the user's
own.

`measured.json` beside this file was written by `python -m dla_kernels.tune` on GPUs that we had; the environment
variable DLA_KERNELS_TILES names a file of the same form to use instead. For a layer that is not listed, the rule of
configs.py holds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SHIPPED = Path(__file__).with_name("measured.json")
VARIABLE = "DLA_KERNELS_TILES"
ALLOWED = {
    "tile": (16, 32, 64, 128), "long": (16, 32, 64, 128, 256, 512, 1024), "block_k": (16, 32, 64, 128, 256),
    "block_v": (16, 32, 64, 128, 256, 512), "warps": (1, 2, 4), "stages": (1, 2, 3, 4, 5),
    "registers": (128, 168, 255),
}  # fmt: skip
"""Values that a table may hold for the attributes of `configs.Tiles`."""
LARGEST_TILE = 64
"""The largest tile that the rule chooses, for layers whose row names none."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What sizes depend on: K, V, M, the type of q, k and v by its name in torch, and the rule (gated delta or plain)."""

    key_dim: int
    value_dim: int
    slots: int
    type: str
    delta: bool


def architecture_of(device: torch.device) -> str | None:
    """`sm_90` and the like, `gfx942` on AMD; None if the device is no GPU."""
    return None if device.type != "cuda" else _architecture(device.index)


@lru_cache(maxsize=16)
def _architecture(index: int | None) -> str:
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def measured_sizes(layer: Layer, architecture: str | None) -> dict[str, int]:
    """The attributes of `configs.Tiles` that were measured for a layer on an architecture; empty if none were."""
    if architecture is None:
        return {}
    path = os.environ.get(VARIABLE)
    return _tables(SHIPPED if not path else Path(path)).get((architecture, layer), {})


@lru_cache(maxsize=4)
def _tables(path: Path) -> dict[tuple[str, Layer], dict[str, int]]:
    return {(architecture, layer): sizes for architecture, layer, sizes, _ in read_table(path)}


def read_table(path: Path) -> list[tuple[str, Layer, dict[str, int], dict[str, Any]]]:
    """Rows of a table: architecture, layer, sizes, and what else was noted (GPU, versions, seconds).

    Raises:
        ValueError: the file cannot be read or holds what no kernel takes; names the file, the row and the value.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: the table of tile sizes cannot be read ({error}); unset {VARIABLE} or give a file that "
                         "`python -m dla_kernels.tune` wrote") from error  # fmt: skip
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f'{path}: a table of tile sizes is {{"rows": [...]}}, and this file is something else')
    rows = []
    for number, row in enumerate(content["rows"]):
        where = f"{path}, row {number}"
        try:
            layer = Layer(**row["layer"])
            sizes = dict(row["sizes"])
            architecture = str(row["architecture"])
        except (KeyError, TypeError, ValueError) as error:
            wanted = ", ".join(field.name for field in fields(Layer))
            raise ValueError(
                f"{where}: expected architecture, layer ({wanted}) and sizes, and found {row!r}"
            ) from error
        for name, value in sizes.items():
            if value not in ALLOWED.get(name, ()):
                raise ValueError(f"{where}: {name} is {value!r}; allowed are {_allowed(name)}")
        tile = sizes.get("tile", LARGEST_TILE)
        if sizes.get("long", 0) % tile:
            raise ValueError(f"{where}: long is {sizes['long']}; it must be a multiple of tile, {tile}")
        rows.append((architecture, layer, sizes, dict(row.get("measured", {}))))
    return rows


def write_table(path: Path, rows: list[tuple[str, Layer, dict[str, int], dict[str, Any]]]) -> None:
    """Write rows for `read_table`; replaces the file in one step."""
    content = {
        "rows": [
            {"architecture": architecture, "layer": asdict(layer), "sizes": sizes, "measured": measured}
            for architecture, layer, sizes, measured in rows
        ]
    }
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def _allowed(name: str) -> str:
    return ", ".join(map(str, ALLOWED[name])) if name in ALLOWED else f"the names {', '.join(ALLOWED)}"
