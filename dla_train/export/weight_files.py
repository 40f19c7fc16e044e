"""The weights of an exported folder: one file, as `dla-train export` writes it, or shards and an index, as transformers
saves a large model."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dla_train.errors import RunError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_REMEDY = "Export the model again."


def read_weight_files(folder: Path, remedy: str = _REMEDY) -> dict[str, Tensor]:
    """All tensors, by their names in the files.

    Args:
        folder: where they are. remedy: what to do if they are damaged, for the message.
    Raises:
        RunError: a file is missing or damaged, or the index does not match the shards.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return _read(folder, WEIGHTS, remedy)
    places = _places(folder, remedy)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        found = _read(folder, shard, remedy)
        wanted = {name for name, place in places.items() if place == shard}
        if different := wanted ^ found.keys():
            raise damaged(folder, f"{shard} and {INDEX} do not agree on {min(different)}", remedy)
        weights |= found
    return weights


def damaged(folder: Path, problem: object, remedy: str = _REMEDY) -> RunError:
    """The error about a damaged folder."""
    return RunError(f"{folder} is damaged: {problem}. {remedy}")


def _places(folder: Path, remedy: str) -> dict[str, str]:
    """The name of each tensor's file in this folder, from the index."""
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not places or not all(isinstance(place, str) and Path(place).name == place for place in places.values()):
            raise ValueError("its weight_map does not name files of this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{INDEX} is no index of shards ({error})", remedy) from error
    return places


def _read(folder: Path, name: str, remedy: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / name)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is incomplete: {name} is missing. {remedy}") from error
    except (ValueError, SafetensorError) as error:
        raise damaged(folder, f"{name}: {error}", remedy) from error
