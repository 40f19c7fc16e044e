"""What is decided before a run may write anything: the checkpoint to go on from, the text, the device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dla_train.checkpoints.resume import (
    ResumePoint,
    forbidden_changes,
    from_path,
    listed,
    newest_sound,
    require_same_data,
    require_same_experiment,
)
from dla_train.checkpoints.store import CheckpointStore
from dla_train.config.catalog import RecipeFile
from dla_train.config.load import LoadedRecipe, load
from dla_train.config.typed import plain
from dla_train.data.corpus import open_data
from dla_train.data.prepared_config import PreparedData
from dla_train.data.recipe_data import RecipeData
from dla_train.distributed.deepspeed_config import require_known_keys
from dla_train.distributed.ranks import Ranks
from dla_train.errors import UsageError
from dla_train.runs.folder import RunFolder
from dla_train.training.fused import require_liger


@dataclass(frozen=True)
class Start:
    """Everything that training needs, checked.

    Attributes:
        point: the checkpoint to go on from; None begins at step 0.
        data: of the recipe.
    """

    point: ResumePoint | None
    data: RecipeData

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.point.checkpoint.step if self.point else 0


def prepare_start(loaded: LoadedRecipe, folder: RunFolder, store: CheckpointStore, resume: str, ranks: Ranks) -> Start:
    """Check recipe against folder, checkpoint, data and machine; writes nothing into the folder.

    Args:
        loaded: the recipe. folder: locked. store: of the folder. resume: `auto`, `never` or a path.
        ranks: all of them; rank 0 chooses the checkpoint and prepares the text, the others find it prepared.
    Raises:
        UsageError: they do not go together; the message says what to do.
        RunError: all checkpoints are damaged.
    """
    recipe = loaded.recipe
    if recipe.training.accelerator == "gpu" and not torch.cuda.is_available():
        raise loaded.problem("training.accelerator", "it is gpu, but PyTorch sees no GPU here. Use auto or cpu.")
    require_liger(loaded)
    require_known_keys(loaded)
    point = ranks.first(lambda: _resume_point(loaded, folder, store, resume))
    if point and point.checkpoint.step > recipe.training.steps:
        raise loaded.problem(
            "training.steps",
            f"it is {recipe.training.steps}, but {point.checkpoint.folder} is past that. Set more steps.",
        )
    data = _open_data(loaded, ranks)
    if point:
        require_same_data(point, data.fingerprints)
    return Start(point, data)


def _open_data(loaded: LoadedRecipe, ranks: Ranks) -> RecipeData:
    if isinstance(loaded.recipe.data, PreparedData):
        # Nothing is made that others could find: all begin at once, and one for each node reads every byte.
        data = ranks.together(lambda: open_data(loaded, verify=ranks.is_first_of_node))
        ranks.require_equal(dict(data.fingerprints), "the data")
        return data
    opened: list[RecipeData] = []
    ranks.first(lambda: opened.append(open_data(loaded)))
    data = opened[0] if ranks.is_first else open_data(loaded)
    ranks.require_equal(dict(data.fingerprints), "the data")
    return data


def _resume_point(loaded: LoadedRecipe, folder: RunFolder, store: CheckpointStore, resume: str) -> ResumePoint | None:
    recipe = plain(loaded.recipe)
    if folder.is_run():
        _require_same_recipe(folder, recipe)
    if resume == "never":
        if newest := store.all()[:1]:
            done, steps = newest[0].step, loaded.recipe.training.steps
            state = f"finished at step {done}" if done >= steps else f"at step {done} of {steps}"
            goes_on = "shows its report again" if done >= steps else "goes on with it"
            raise UsageError(
                f"{folder} already holds this run, {state}: --resume auto {goes_on}. "
                "Another run needs another folder: --run-dir DIR."
            )
        return None
    if resume == "auto" or Path(resume).resolve() == folder.path.resolve():
        point = newest_sound(store)
    else:
        point = from_path(Path(resume), store)
    if point:
        require_same_experiment(point, recipe)
    return point


def _require_same_recipe(folder: RunFolder, recipe: dict) -> None:
    saved = load(RecipeFile(folder.path.name, folder.recipe.read_text(encoding="utf-8"), str(folder.recipe)))
    if changed := forbidden_changes(plain(saved.recipe), recipe):
        raise UsageError(
            f"the run folder {folder} holds a run of another recipe: {listed(changed)}. Choose another folder with "
            "--run-dir DIR, or use the recipe of that run."
        )
