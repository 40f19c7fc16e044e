"""The weights of a model's folder: one file, as `dla-train export` writes it, or shards and an index, as transformers
saves a large model."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dla_train.errors import RunError

WEIGHTS = "model.safetensors"
_REMEDY = "Export the model again."


def read_weight_files(
    folder: Path,
    remedy: str = _REMEDY,
    name: str = WEIGHTS,
    read: Callable[[Path], dict[str, Tensor]] = load_file,
) -> dict[str, Tensor]:
    """All tensors, by their names in the files.

    Args:
        folder: where they are. remedy: what to do if they are damaged, for the message. name: of the file if it is one.
        read: reads one file; raises ValueError or SafetensorError if it is damaged.
    Raises:
        RunError: a file is missing or damaged, or the index does not match the shards.
    """
    if (folder / name).is_file() or not (folder / index_of(name)).is_file():
        return _read(folder, name, remedy, read)
    places = _places(folder, index_of(name), remedy)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        found = _read(folder, shard, remedy, read)
        wanted = {tensor for tensor, place in places.items() if place == shard}
        if different := wanted ^ found.keys():
            raise damaged(folder, f"{shard} and {index_of(name)} do not agree on {min(different)}", remedy)
        weights |= found
    return weights


def has_weight_files(folder: Path, name: str) -> bool:
    """Whether there is a file of this name, or an index of its shards."""
    return (folder / name).is_file() or (folder / index_of(name)).is_file()


def index_of(name: str) -> str:
    """The name of the index of a file that was saved in shards."""
    return f"{name}.index.json"


def damaged(folder: Path, problem: object, remedy: str = _REMEDY) -> RunError:
    """The error about a damaged folder."""
    return RunError(f"{folder} is damaged: {problem}. {remedy}")


def _places(folder: Path, index: str, remedy: str) -> dict[str, str]:
    """The name of each tensor's file in this folder, from the index."""
    try:
        places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        if not places or not all(isinstance(place, str) and Path(place).name == place for place in places.values()):
            raise ValueError("its weight_map does not name files of this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{index} is no index of shards ({error})", remedy) from error
    return places


def _read(folder: Path, name: str, remedy: str, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return read(folder / name)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is incomplete: {name} is missing. {remedy}") from error
    except (ValueError, SafetensorError) as error:
        raise damaged(folder, f"{name}: {str(error).rstrip('.')}", remedy) from error
