"""Finds and checks the checkpoint that a path means, without torch, so that a wrong path is refused at once."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dla_train.checkpoints.manifest import DamagedCheckpoint
from dla_train.checkpoints.resume import newest_sound
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.config.load import LoadedRecipe
from dla_train.errors import RunError, UsageError
from dla_train.runs.folder import RunFolder
from dla_train.runs.saved_recipe import recipe_in, saved_recipe

_CHECKPOINT = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """A sound checkpoint of a run whose recipe could be read.

    Attributes:
        loaded: the run folder's recipe, resolved. checkpoint: verified, but not loaded yet. folder: of the run.
    """

    loaded: LoadedRecipe
    checkpoint: Checkpoint
    folder: RunFolder


@dataclass(frozen=True)
class FoundExport:
    """An exported model whose recipe could be read.

    Attributes:
        loaded: the recipe of the run it was made of. folder: the exported one; its weights are not loaded yet.
    """

    loaded: LoadedRecipe
    folder: RunFolder


def find_model(path: Path) -> Found | FoundExport:
    """What `path` means: an exported model, or else as `find_trained`.

    Raises:
        UsageError, RunError: see `find_trained`; also an exported model without its recipe.
    """
    require_folder(path)
    folder = RunFolder(path)
    if not folder.is_export():
        return find_trained(path)
    if not folder.recipe.is_file():
        raise UsageError(
            f"{path} is a model without the recipe that it was trained with; transformers does not copy it. Copy "
            "recipe.yaml, and tokenizer.json, from the folder that dla-train export made."
        )
    return FoundExport(recipe_in(folder), folder)


def find_trained(path: Path) -> Found:
    """The checkpoint that `path` means: the newest sound one of a run folder or its `checkpoints`, or a
    `checkpoints/step-...` itself.

    Raises:
        UsageError: there is no run, or it has no checkpoint.
        RunError: the checkpoint is damaged.
    """
    require_folder(path)
    place = Path(os.path.abspath(path))
    folder = RunFolder(_written_like(path, _run_of(place)))
    if RunFolder(path).is_export():
        raise UsageError(f"{path} is an exported model, not a run. Give the run that it was made of.")
    if not folder.is_run():
        raise UsageError(
            f"{folder} holds no run of dla-train: it has no recipe.yaml. Give a run folder such as runs/tiny."
        )
    match = _CHECKPOINT.fullmatch(place.name)
    named = Checkpoint(int(match[1]), _written_like(path, place)) if match else None
    checkpoint = _sound(named, folder)
    return Found(saved_recipe(folder), checkpoint, folder)


def require_folder(path: Path) -> None:
    """Refuse a path that is no folder.

    Raises:
        UsageError: says what to give.
    """
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}. Give a run folder such as runs/tiny, or a checkpoint in one.")


def _run_of(place: Path) -> Path:
    """The run folder that an absolute path names, directly or through a folder in it."""
    if _CHECKPOINT.fullmatch(place.name):
        return place.parent.parent
    if place.name == "checkpoints" and not RunFolder(place).is_run():
        return place.parent
    return place


def _written_like(path: Path, place: Path) -> Path:
    """The absolute path `place` in the style of the user's `path`: relative if that is relative."""
    return place if path.is_absolute() else Path(os.path.relpath(place))


def _sound(named: Checkpoint | None, folder: RunFolder) -> Checkpoint:
    """The checkpoint `named` if it is sound, or without one the newest sound one of the run."""
    if named is None:
        point = newest_sound(CheckpointStore(folder.checkpoints))
        if point is None:
            raise UsageError(f"{folder} has no checkpoint yet. Train it for longer, or give another run.")
        return point.checkpoint
    try:
        named.verify()
    except DamagedCheckpoint as error:
        raise RunError(f"the checkpoint {named.folder} is damaged: {error}. Give another one of {folder}.") from error
    return named
