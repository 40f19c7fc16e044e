"""The model of a run, ready to be asked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer
from dla_train.checkpoints.manifest import DamagedCheckpoint, Manifest
from dla_train.checkpoints.resume import newest_sound
from dla_train.checkpoints.shards import assembled
from dla_train.checkpoints.state_file import read_state
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.config.catalog import RecipeFile
from dla_train.config.load import LoadedRecipe, load
from dla_train.config.recipe import Recipe
from dla_train.data.revisions import held_revisions
from dla_train.errors import RunError, UsageError
from dla_train.models import LanguageModel, ModelConfig
from dla_train.runs.folder import RunFolder

_CHECKPOINT = re.compile(r"step-(\d+)")
_PREFIX = "model."  # of the weights in the state of the LightningModule


@dataclass(frozen=True)
class Trained:
    """A model and where it comes from.

    Attributes:
        loaded: the recipe, resolved, as the run folder has it. model: on the CPU, in evaluation mode. step: of the
            checkpoint. folder: of the run. checkpoint: the one that was read. revisions: commits of the hub's data sets
            that it was trained on, by source.
    """

    loaded: LoadedRecipe
    model: LanguageModel
    step: int
    folder: RunFolder
    checkpoint: Path
    revisions: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """What `loaded` holds."""
        return self.loaded.recipe

    @property
    def tokenizer_path(self) -> Path | None:
        """Its tokenizer; None for a model whose tokens are no text."""
        return self.folder.tokenizer if self.folder.tokenizer.is_file() else None

    def tokenizer(self) -> Tokenizer:
        """What its texts were turned into tokens with.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        if self.tokenizer_path is None:
            raise UsageError(
                f"{self.folder} has no tokenizer.json: its data is no text, or the file is gone. Copy the tokenizer "
                "that it was trained with to that place, or give another run."
            )
        try:
            return load_tokenizer(self.tokenizer_path)
        except DataError as error:
            raise UsageError(str(error)) from error


@dataclass(frozen=True)
class Found:
    """A checkpoint that is sound, of a run whose recipe could be read.

    Attributes:
        loaded: the recipe, resolved, as the run folder has it. checkpoint: not read yet. folder: of the run.
    """

    loaded: LoadedRecipe
    checkpoint: Checkpoint
    folder: RunFolder


def load_trained(path: Path) -> Trained:
    """Read a run folder or its `checkpoints` (the newest sound one), or one of its `checkpoints/step-...`.

    Raises:
        UsageError: there is no run, or no checkpoint in it.
        RunError: the checkpoint is damaged, or its weights are not all finite: whatever is asked of them is no answer.
    """
    found = find_trained(path)
    model = read_model(found.checkpoint, found.loaded.recipe.model)
    _require_finite(model, found)
    identity = Manifest.read(found.checkpoint.folder).identity
    revisions = held_revisions(found.loaded.recipe, identity.recipe, identity.data)
    return Trained(found.loaded, model.eval(), found.checkpoint.step, found.folder, found.checkpoint.folder, revisions)


def find_trained(path: Path) -> Found:
    """What `load_trained` reads, found and checked.

    Raises:
        UsageError, RunError: see there.
    """
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}. Give a run folder such as runs/tiny, or a checkpoint in one.")
    place = Path(os.path.abspath(path))
    folder = RunFolder(_written_like(path, _run_of(place)))
    if RunFolder(path).is_export():
        raise UsageError(
            f"{path} is an exported model, not a run. Give the run that it was made of, or load it in Python with "
            "dla_train.load_model."
        )
    if not folder.is_run():
        raise UsageError(
            f"{folder} holds no run of dla-train: it has no recipe.yaml. Give a run folder such as runs/tiny."
        )
    match = _CHECKPOINT.fullmatch(place.name)
    named = Checkpoint(int(match[1]), _written_like(path, place)) if match else None
    checkpoint = _sound(named, folder)
    loaded = load(RecipeFile(_run_of(place).name, folder.recipe.read_text(encoding="utf-8"), str(folder.recipe)))
    return Found(loaded, checkpoint, folder)


def _require_finite(model: LanguageModel, found: Found) -> None:
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if not bad:
        return
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    steps = [one.step for one in CheckpointStore(found.folder.checkpoints).all() if one.step < found.checkpoint.step]
    earlier = f"Give an earlier one of {found.folder}: step {', '.join(f'{step:,}' for step in steps)}."
    anew = "There is no earlier one: train again, with a lower optimizer.lr or training.clip."
    raise RunError(
        f"the weights of {found.checkpoint.folder} hold nan or inf ({bad[0]}{more}, of {len(state)} tensors): the run "
        f"had diverged, and what such a model says means nothing. {earlier if steps else anew}"
    )


def read_model(checkpoint: Checkpoint, config: ModelConfig) -> LanguageModel:
    """The model of a checkpoint, on the CPU and in the type it was trained in, whatever strategy and however many
    processes wrote it.

    Optimizer states stay on disk: the memory is that of the weights.
    """
    weights = read_weights(checkpoint)
    model = LanguageModel(config).to(weights["embedding.weight"].dtype)
    model.load_state_dict(weights)
    return model


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state of the `LanguageModel` in a checkpoint, each tensor whole, mapped from disk where one file has it."""
    state = read_state(checkpoint.state)["state_dict"]
    return assembled({name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)})


def _run_of(place: Path) -> Path:
    """The run folder that an absolute path names, itself or by what is in it."""
    if _CHECKPOINT.fullmatch(place.name):
        return place.parent.parent
    if place.name == "checkpoints" and not RunFolder(place).is_run():
        return place.parent
    return place


def _written_like(path: Path, place: Path) -> Path:
    """An absolute path as the user, who wrote `path`, would write it."""
    return place if path.is_absolute() else Path(os.path.relpath(place))


def _sound(named: Checkpoint | None, folder: RunFolder) -> Checkpoint:
    """That checkpoint, or the newest sound one of the run."""
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
