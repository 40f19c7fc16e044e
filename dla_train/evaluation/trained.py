"""The model of a run, ready to be asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer
from dla_train.checkpoints.manifest import Manifest
from dla_train.checkpoints.shards import assembled
from dla_train.checkpoints.state_file import read_state
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.config.load import LoadedRecipe
from dla_train.config.recipe import Recipe
from dla_train.data.revisions import held_revisions
from dla_train.errors import RunError, UsageError
from dla_train.evaluation.find import Found, find_trained
from dla_train.models import LanguageModel, ModelConfig
from dla_train.runs.folder import RunFolder

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


def load_trained(place: Path | Found) -> Trained:
    """Read a run folder or its `checkpoints` (the newest sound one), or one of its `checkpoints/step-...`.

    Args:
        place: its path, or what `find_trained` found there.
    Raises:
        UsageError: there is no run, or no checkpoint in it.
        RunError: the checkpoint is damaged, or its weights are not all finite: whatever is asked of them is no answer.
    """
    found = place if isinstance(place, Found) else find_trained(place)
    model = read_model(found.checkpoint, found.loaded.recipe.model)
    _require_finite(model, found)
    identity = Manifest.read(found.checkpoint.folder).identity
    revisions = held_revisions(found.loaded.recipe, identity.recipe, identity.data)
    return Trained(found.loaded, model.eval(), found.checkpoint.step, found.folder, found.checkpoint.folder, revisions)


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
