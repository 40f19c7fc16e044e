"""Whether a recipe may be trained in a folder where a run was already begun; reads no checkpoint."""

from pathlib import Path
from typing import Any

from dla_train.checkpoints.resume import forbidden_changes, listed
from dla_train.checkpoints.store import CheckpointStore
from dla_train.config.typed import plain
from dla_train.errors import UsageError
from dla_train.runs.environment import begun_at, has_gone_on
from dla_train.runs.folder import RunFolder
from dla_train.runs.metrics_file import read_rows
from dla_train.runs.saved_recipe import saved_recipe


def is_begun(folder: Path) -> bool:
    """Whether the run of this folder has a checkpoint to continue from."""
    return bool(CheckpointStore(RunFolder(folder).checkpoints).all())


def require_same_recipe(folder: RunFolder, recipe: dict[str, Any]) -> None:
    """Refuse a folder that holds a run of another recipe.

    Args:
        folder: of a run. recipe: as plain values.
    Raises:
        UsageError: lists the keys that differ, with both values.
    """
    saved = saved_recipe(folder)
    if changed := forbidden_changes(plain(saved.recipe), recipe):
        advice = (
            "(and --resume PATH to branch off at a checkpoint), or use the recipe of that run."
            if CheckpointStore(folder.checkpoints).all()
            else f"or use the recipe of that run. It has no checkpoint: if nobody needs its log, delete {folder}."
        )
        raise UsageError(
            f"the run folder {folder} holds a run of another recipe: {listed(changed)}. Choose another folder with "
            f"--run-dir DIR {advice}"
        )


def require_nothing_lost(folder: RunFolder) -> None:
    """Refuse to begin at step 0 if the folder's run came so far that it must have had checkpoints: they were removed,
    perhaps by a clean-up, or are not mounted, and starting anew would overwrite what is left of the run.

    Args:
        folder: of a run that has no checkpoint.
    Raises:
        UsageError: says how far the run had come, and what to do.
    """
    if not folder.is_run():
        return
    every = saved_recipe(folder).recipe.checkpoint.every
    step = max((row["step"] for row in read_rows(folder.metrics)), default=0)
    # Even when written in the background, the first checkpoint is complete before the second is begun.
    steps = step - begun_at(folder.environment)
    came_far = every is not None and steps > 2 * every
    if not (came_far or has_gone_on(folder.environment) or folder.report_text.is_file()):
        return
    raise UsageError(
        f"the run in {folder} came to step {step:,}, and there is no checkpoint in {folder.checkpoints}: they were "
        "removed, or lie where this machine does not find them. Bring them back and go on with --resume auto, or begin "
        f"anew in another folder (--run-dir DIR). If nobody needs what is left of that run, delete {folder}."
    )


def require_no_checkpoint(folder: RunFolder, steps: int) -> None:
    """Refuse to begin a run at step 0 if it already has a checkpoint.

    Args:
        folder: of the run. steps: `training.steps`.
    Raises:
        UsageError: it has one; says how to continue.
    """
    if newest := CheckpointStore(folder.checkpoints).all()[:1]:
        done = newest[0].step
        is_finished = done >= steps and folder.report_text.is_file()  # else its last validation may still be to come
        state = f"finished at step {done}" if is_finished else f"at step {done} of {steps}"
        goes_on = "shows its report again" if is_finished else "goes on with it"
        raise UsageError(
            f"{folder} already holds this run, {state}: --resume auto {goes_on}. "
            "Another run needs another folder: --run-dir DIR."
        )
