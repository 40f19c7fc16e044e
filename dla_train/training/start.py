"""What is decided before a run may write anything: the checkpoint to continue from, the text, the device."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dla_train.checkpoints.begun import require_no_checkpoint, require_nothing_lost, require_same_recipe
from dla_train.checkpoints.resume import (
    AUTO_FROM,
    ResumePoint,
    forbidden_changes,
    from_path,
    newest_sound,
    require_fitting_state,
    require_same_data,
    require_same_experiment,
)
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.config.extras import require_extras
from dla_train.config.load import LoadedRecipe
from dla_train.config.show import differences
from dla_train.config.typed import plain
from dla_train.data.corpus import open_data
from dla_train.data.fingerprints import changed_data, changed_validation
from dla_train.data.prepared_config import PreparedData
from dla_train.data.recipe_data import RecipeData
from dla_train.data.revisions import held_revisions, revisions_in
from dla_train.distributed.deepspeed_config import require_known_keys
from dla_train.distributed.ranks import Ranks
from dla_train.errors import UsageError
from dla_train.runs.environment import last_start
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import VALIDATION, key_of, read_rows
from dla_train.training.fused import require_liger
from dla_train.training.initial_weights import InitialWeights, find_initial_weights, require_same_tokenizer

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Everything that training needs, checked.

    Attributes:
        point: the checkpoint to continue from; None begins at step 0.
        branch: how the run differs from the run whose checkpoint that is; None if the checkpoint is its own.
        weights: those with which step 0 begins; None if they are random, or if there is a checkpoint.
        data: the recipe's data.
        is_validated: whether the run that wrote the checkpoint has the result of a validation of its step, also one
            that was still to come when it was written.
    """

    point: ResumePoint | None
    branch: "Branch | None"
    weights: InitialWeights | None
    data: RecipeData
    is_validated: bool

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.point.checkpoint.step if self.point else 0

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on from a checkpoint of its own, rather than begins, at step 0 or by branching off."""
        return self.point is not None and self.branch is None


@dataclass(frozen=True)
class Branch:
    """A run that continues from the checkpoint of another run.

    Attributes:
        changed: settings that differ, with the values there and here, except those that any resumed run may change.
        beginning: where its data begins, in words, if that is not what the other run would have read next.
    """

    changed: dict[str, tuple[Any, Any]]
    beginning: str | None


def prepare_start(loaded: LoadedRecipe, folder: RunFolder, store: CheckpointStore, resume: str, ranks: Ranks) -> Start:
    """Check recipe against folder, checkpoint, data and machine; writes nothing into the folder.

    Args:
        loaded: the recipe. folder: locked. store: of the folder. resume: `auto`, `auto:PATH`, `never` or a path.
        ranks: all of them; rank 0 chooses the checkpoint and prepares the text, the others find it prepared.
    Raises:
        UsageError: they do not fit together; the message says what to do.
        RunError: all checkpoints are damaged.
    """
    recipe = loaded.recipe
    if recipe.training.accelerator == "gpu" and not torch.cuda.is_available():
        raise loaded.problem("training.accelerator", "it is gpu, but PyTorch sees no GPU here. Use auto or cpu.")
    require_extras(loaded)
    require_liger(loaded)
    require_known_keys(loaded)
    point = ranks.first(lambda: _resume_point(loaded, folder, store, resume))
    if point:
        _require_steps_left(loaded, point, is_branch=not store.holds(point.checkpoint))
    weights = None if point else ranks.first(lambda: find_initial_weights(loaded))
    data = _open_data(loaded, ranks, point)
    if point and point.manifest.consumed:
        data.begun = point.manifest.consumed
    if weights is not None:
        ranks.first(lambda: require_same_tokenizer(loaded, weights, data.tokenizer_path))
    branch = None
    if point and not store.holds(point.checkpoint):
        branch = _branch(point, plain(recipe), data)
    elif point:
        require_same_data(point, data.fingerprints)
    if point:
        _say_revisions(point, data)
        if recipe.training.validates:
            _say_validation_text(point, data)
    is_validated = point is not None and ranks.first(lambda: _is_validated(point.checkpoint, folder, branch))
    return Start(point, branch, weights, data, is_validated)


def check_beginning(loaded: LoadedRecipe, store: CheckpointStore, branch_from: Path | None) -> None:
    """Check what a run that will be started elsewhere begins with, unless it has a checkpoint of its own.

    Args:
        loaded: the recipe. store: of its folder. branch_from: a checkpoint or run folder of another run, or None.
    Raises:
        UsageError: it is not there or does not fit the recipe. RunError: it is damaged.
    """
    if store.all():
        return
    if branch_from is None:
        find_initial_weights(loaded)
        return
    point = from_path(branch_from, store)
    require_fitting_state(point, plain(loaded.recipe))
    _require_steps_left(loaded, point, is_branch=True)


def _require_steps_left(loaded: LoadedRecipe, point: ResumePoint, is_branch: bool) -> None:
    done, steps = point.checkpoint.step, loaded.recipe.training.steps
    if done > steps:
        raise loaded.problem(
            "training.steps", f"it is {steps}, but {point.checkpoint.folder} is past that. Set more steps."
        )
    if is_branch and done == steps:
        raise loaded.problem(
            "training.steps",
            f"it is {steps}, and {point.checkpoint.folder} has all of them: a run that branches off there would train "
            "nothing. Set more steps.",
        )


def _branch(point: ResumePoint, recipe: dict[str, Any], data: RecipeData) -> Branch:
    before = point.manifest.identity.recipe
    if not any(key.startswith("data.") for key in differences(before, recipe)):
        require_same_data(point, data.fingerprints, "name the other text in the recipe's data section")
    changed = forbidden_changes(before, recipe)
    is_other_order = any(key == "seed" or key.startswith("data.") for key in changed)
    is_other_text = bool(changed_data(point.manifest.identity.data, data.fingerprints))
    return Branch(changed, data.begin_anew(point.checkpoint.step) if is_other_order or is_other_text else None)


def _is_validated(checkpoint: Checkpoint, folder: RunFolder, branch: Branch | None) -> bool:
    run = folder if branch is None else RunFolder(checkpoint.folder.absolute().parent.parent)
    return (checkpoint.step, VALIDATION) in map(key_of, read_rows(run.metrics))


def _say_validation_text(point: ResumePoint, data: RecipeData) -> None:
    for part in changed_validation(point.manifest.identity.data, data.fingerprints):
        _LOGGER.warning(
            "the %s changed since %s was written: validation losses from here on are not comparable with those before",
            part,
            point.checkpoint.folder,
        )


def _say_revisions(point: ResumePoint, data: RecipeData) -> None:
    noted = revisions_in(point.manifest.identity.data)
    for name, commit in revisions_in(data.fingerprints).items():
        if name not in noted and f"text of data.sources.{name}" in point.manifest.identity.data:
            _LOGGER.warning(
                "%s does not say which commit of data.sources.%s was read: going on with %s, which may be another one",
                point.checkpoint.folder,
                name,
                commit,
            )


def _open_data(loaded: LoadedRecipe, ranks: Ranks, point: ResumePoint | None = None) -> RecipeData:
    if isinstance(loaded.recipe.data, PreparedData):
        # Nothing is prepared for other ranks to find, so all open the data at once; one per node verifies every byte.
        data = ranks.together(lambda: open_data(loaded, verify=ranks.is_first_of_node))
        ranks.require_equal(dict(data.fingerprints), "the data")
        return data
    opened: list[RecipeData] = []

    def open_first() -> dict[str, str]:
        before = point.manifest.identity if point else None
        held = held_revisions(loaded.recipe, before.recipe, before.data) if before else {}
        opened.append(open_data(loaded, revisions=held))
        return revisions_in(opened[0].fingerprints)

    revisions = ranks.first(open_first)
    data = opened[0] if ranks.is_first else open_data(loaded, revisions=revisions)
    ranks.require_equal(dict(data.fingerprints), "the data")
    return data


def _resume_point(loaded: LoadedRecipe, folder: RunFolder, store: CheckpointStore, resume: str) -> ResumePoint | None:
    recipe = plain(loaded.recipe)
    if folder.is_run():
        require_same_recipe(folder, recipe)
    if resume == "never":
        require_no_checkpoint(folder, loaded.recipe.training.steps)
        require_nothing_lost(folder)
        return None
    base = resume.removeprefix(AUTO_FROM) if resume.startswith(AUTO_FROM) else None
    if resume == "auto" or base is not None or Path(resume).resolve() == folder.path.resolve():
        point = newest_sound(store)
        if point is None:
            require_nothing_lost(folder)
        if point is None and base is not None:
            point = from_path(Path(base), store)
        if point is None:
            _require_begun_at_0(folder)
    else:
        point = from_path(Path(resume), store)
    if point:
        (require_same_experiment if store.holds(point.checkpoint) else require_fitting_state)(point, recipe)
    return point


def _require_begun_at_0(folder: RunFolder) -> None:
    """Refuse to restart a run at step 0 if it began from a checkpoint: whoever resumes it does not want fresh
    weights."""
    last = last_start(folder.environment)
    if last is not None and (step := last["first_step"]) > 0:
        raise UsageError(
            f"this run was branched off at step {step}, and there is no checkpoint in {folder.checkpoints}: give "
            f"--resume PATH again (the last start was: {last['command']}), or choose another folder with --run-dir DIR "
            "to begin at step 0."
        )
