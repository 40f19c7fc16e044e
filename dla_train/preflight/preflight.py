"""Looks at a recipe on this machine before a long run depends on it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dla_train.config.load import LoadedRecipe
from dla_train.distributed.placement import Placement, find_placement
from dla_train.errors import RelayedError, UsageError
from dla_train.estimate.devices import DEVICES
from dla_train.estimate.estimate import estimate
from dla_train.preflight.check import Check
from dla_train.preflight.judge import judge
from dla_train.preflight.kernels import check_kernels
from dla_train.preflight.meeting import FirstHasEnded, Meeting, met
from dla_train.preflight.stopped import Stopped, stoppable
from dla_train.preflight.trial import REFUSED, Trial, accompany, how_it_ended, run_trial
from dla_train.runs.compilations import told_of_compilations
from dla_train.runs.console import mute_console, quiet_lightning

_LOGGER = logging.getLogger(__name__)

_VALIDATED = 2
"""Micro-batches that each process validates."""
_PATIENCE_SECONDS = 900.0
"""Until the slowest process has compared its kernels."""
_POLL_SECONDS = 0.5


def preflight(loaded: LoadedRecipe, arguments: Sequence[str], folder: Path, steps: int) -> list[Check]:
    """Train a little, stop, go on, and compare kernels with exact results.

    If a launcher has started several processes, all must call this.

    Args:
        loaded: the recipe. arguments: of `dla-train fit`, which name it with its settings.
        folder: for two short runs, which are removed if all is well; what else is there stays.
        steps: how many to train, at least 3.
    Returns:
        What was found; empty on processes other than the first.
    Raises:
        UsageError: recipe and machine do not fit together, or the folder is in use.
        RelayedError: `fit` has refused the recipe, or a signal has ended the preflight; why has been said.
        RunError: the processes have not met.
    """
    quiet_lightning()
    placement = find_placement(loaded)
    training = loaded.recipe.training
    if training.steps <= steps:
        raise loaded.problem(
            "training.steps",
            f"it is {training.steps}; a preflight of {steps} steps needs more. Give fewer --steps (3 at "
            "least), or more training.steps.",
        )
    settings = _settings(loaded, placement)
    trial = Trial(
        arguments=[*arguments, *settings], folder=folder, steps=steps, planned_steps=training.steps, placement=placement
    )
    if placement.rank:
        mute_console()
    with met(placement) as meeting:
        return _beside(loaded, trial, meeting) if placement.rank else _first(loaded, trial, meeting)


def _first(loaded: LoadedRecipe, trial: Trial, meeting: Meeting) -> list[Check]:
    """What the first process does: all that is written and said."""
    folder = trial.folder
    if trial.first.path.exists() or trial.again.path.exists():
        raise UsageError(
            f"{folder} holds the runs of another preflight, which has failed or is under way. Remove it, or give "
            "another folder with --run-dir DIR."
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with stoppable():
        try:
            checks = _looked_at(loaded, trial, meeting)
        except (KeyboardInterrupt, Stopped, RelayedError):
            _remove(trial, made)
            raise
        if all(check.is_right is not False for check in checks):
            _remove(trial, made)
    return checks


def _looked_at(loaded: LoadedRecipe, trial: Trial, meeting: Meeting) -> list[Check]:
    """Everything that the first process finds, and what the others tell it."""
    placement = trial.placement
    first, again = run_trial(trial, _LOGGER.info)
    if first.code == REFUSED:
        raise RelayedError(REFUSED)
    meeting.end_runs()
    on_cpu = not _uses_gpus(loaded)
    checks = judge(
        loaded.recipe,
        trial,
        first,
        again,
        on_cpu=on_cpu,
        estimated=None if on_cpu else estimate(loaded, DEVICES["h100"], placement.world_size, 0.3).footprint.total,
        room=None if on_cpu else torch.cuda.get_device_properties(0).total_memory,
    )
    checks += _kernels(loaded, placement)
    if placement.launcher != "dla-train":
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for rank in range(1, placement.world_size):
            checks += _of_rank(meeting, rank, deadline)
    return checks


def _remove(trial: Trial, made: Sequence[Path]) -> None:
    """Remove both runs, and of the directories above them those that were not there before."""
    for path in (trial.first.path, trial.again.path):
        shutil.rmtree(path, ignore_errors=True)
    for path in made:
        with contextlib.suppress(OSError):  # somebody else has put something there
            path.rmdir()


def _settings(loaded: LoadedRecipe, placement: Placement) -> list[str]:
    """What is different in the two runs: nothing is sent elsewhere, and a validation is short. When they save and
    validate, the trial says."""
    recipe = loaded.recipe
    settings = ["logging.wandb=null", "logging.inspect_every=null", "profile=null", "training.max_minutes=null"]
    if recipe.training.validates:
        readers = placement.world_size // recipe.strategy.context_parallel
        most = _VALIDATED * readers * recipe.training.micro_batch
        settings.append(f"training.validation_windows={min(recipe.training.validation_windows or most, most)}")
        settings.append("training.validate_every=${checkpoint.every}")
    return settings


def _uses_gpus(loaded: LoadedRecipe) -> bool:
    return loaded.recipe.training.accelerator != "cpu" and torch.cuda.is_available()


def _kernels(loaded: LoadedRecipe, placement: Placement) -> list[Check]:
    """Of the devices that this process has to look at: its own, or all of the machine's where it starts the others."""
    devices = [torch.device("cpu")]
    if _uses_gpus(loaded):
        own = range(placement.devices) if placement.launcher == "dla-train" else [placement.local_rank]
        devices = [torch.device("cuda", index) for index in own]
    with told_of_compilations(devices[0].type, _LOGGER.info):
        return check_kernels(loaded.recipe, devices, _LOGGER.info)


def _beside(loaded: LoadedRecipe, trial: Trial, meeting: Meeting) -> list[Check]:
    """What a process does that is not the first: its part of both runs, and its own kernels.

    It ends as if all were well, whatever it finds: at the first failure launchers end all other processes, and so the
    one that is about to say what is wrong.
    """
    placement = trial.placement
    with stoppable(), contextlib.suppress(FirstHasEnded):
        code = accompany(trial, meeting)
        is_refused = code == REFUSED  # it has said why; if the first one was refused, too, that one does not ask
        checks = [] if is_refused else [check for check in _kernels(loaded, placement) if check.is_right is False]
        if code:
            checks.insert(0, Check(what="run", found=how_it_ended(code), is_right=False))
        meeting.tell(placement.rank, checks)
    return []


def _of_rank(meeting: Meeting, rank: int, deadline: float) -> list[Check]:
    """What another process found wrong."""
    while (found := meeting.told(rank)) is None:
        if time.monotonic() > deadline:
            return [Check(what=f"rank {rank}", found="has not said what its kernels compute", is_right=False)]
        time.sleep(_POLL_SECONDS)
    return [Check(what=f"rank {rank}: {check.what}", found=check.found, is_right=check.is_right) for check in found]
