"""The model of a run, or an exported one, ready to be evaluated."""

from collections.abc import Callable, Mapping
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
from dla_train.evaluation.find import Found, FoundExport, find_trained
from dla_train.export.exported import exported_steps, load_exported
from dla_train.models import LanguageModel, ModelConfig
from dla_train.runs.folder import RunFolder

_PREFIX = "model."  # of the weights in the state of the LightningModule


@dataclass(frozen=True)
class Trained:
    """A model and where it comes from.

    Attributes:
        loaded: the run folder's recipe, resolved. model: on the CPU, in evaluation mode. step: of the checkpoint; None
            for an exported model of which it is not known.
        folder: of the run, or the exported one. checkpoint: the folder that was read. revisions: commits of the hub
            data sets that the model was trained on, by source, as far as they are known.
        data: fingerprints of what it was trained on, as `RecipeData.fingerprints`; empty for an exported model.
    """

    loaded: LoadedRecipe
    model: LanguageModel
    step: int | None
    folder: RunFolder
    checkpoint: Path
    revisions: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The recipe that the model was trained with."""
        return self.loaded.recipe

    @property
    def title(self) -> str:
        """The folder and, if it is known, the step."""
        return f"{self.folder}" if self.step is None else f"{self.folder}, step {self.step:,}"

    @property
    def tokenizer_path(self) -> Path | None:
        """The run's tokenizer; None for a model whose tokens are not text."""
        return self.folder.tokenizer if self.folder.tokenizer.is_file() else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run used.

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


def load_trained(place: Path | Found | FoundExport) -> Trained:
    """Read the newest sound checkpoint of a run folder or its `checkpoints`, a `checkpoints/step-...` itself, or an
    exported model.

    Args:
        place: the path of a run or checkpoint, or what `find_model` found.
    Raises:
        UsageError: there is no run, or it has no checkpoint.
        RunError: the checkpoint is damaged, or its weights are not all finite, so that results would be meaningless.
    """
    if isinstance(place, FoundExport):
        folder = place.folder.path
        model = load_exported(folder)
        _require_finite(model, folder, lambda: "Export an earlier checkpoint of the run.")
        return Trained(place.loaded, model, exported_steps(folder), place.folder, folder)
    found = place if isinstance(place, Found) else find_trained(place)
    checkpoint = found.checkpoint
    model = read_model(checkpoint, found.loaded.recipe.model)
    _require_finite(model, checkpoint.folder, lambda: _earlier(found))
    identity = Manifest.read(checkpoint.folder).identity
    revisions = held_revisions(found.loaded.recipe, identity.recipe, identity.data)
    return Trained(
        found.loaded, model.eval(), checkpoint.step, found.folder, checkpoint.folder, revisions, identity.data
    )


def _require_finite(model: LanguageModel, place: Path, advice: Callable[[], str]) -> None:
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if not bad:
        return
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise RunError(
        f"the weights of {place} hold nan or inf ({bad[0]}{more}, of {len(state)} tensors): the run had diverged, and "
        f"what such a model says means nothing. {advice()}"
    )


def _earlier(found: Found) -> str:
    steps = [one.step for one in CheckpointStore(found.folder.checkpoints).all() if one.step < found.checkpoint.step]
    if not steps:
        return "There is no earlier one: train again, with a lower optimizer.lr or training.clip."
    return f"Give an earlier one of {found.folder}: step {', '.join(f'{step:,}' for step in steps)}."


def read_model(checkpoint: Checkpoint, config: ModelConfig) -> LanguageModel:
    """The model of a checkpoint, on the CPU and in the dtype it was trained in; any strategy and number of processes
    may have written it.

    Optimizer states stay on disk, so that memory is needed only for the weights.
    """
    weights = read_weights(checkpoint)
    model = LanguageModel(config).to(weights["embedding.weight"].dtype)
    model.load_state_dict(weights)
    return model


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state of the `LanguageModel` in a checkpoint, with whole tensors; memory-mapped if a single file holds
    them."""
    state = read_state(checkpoint.state)["state_dict"]
    return assembled({name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)})
