"""Which checkpoint a run continues from, and whether it may."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dla_train.checkpoints.manifest import DamagedCheckpoint, Manifest
from dla_train.checkpoints.store import Checkpoint, CheckpointStore
from dla_train.config.show import differences
from dla_train.data.fingerprints import changed_data
from dla_train.errors import RunError, UsageError

_LOGGER = logging.getLogger(__name__)

MAY_CHANGE = (
    "description",
    "checkpoint.",
    "logging.",
    "watchdog.",
    "profile",
    "profile.",
    "report.",
    "data.path",  # the text may have moved; its fingerprint is compared
    "data.sources.*.path",
    "data.sources.*.skip_bad",
    "data.tokenizer",  # likewise
    "data.verify",
    "data.workers",
    "training.steps",
    "training.micro_batch",
    "training.max_minutes",
    "training.max_nonfinite",
    "training.skip_above",
    "training.threads",
    "training.compile",
    "training.fused",
    "training.activation_checkpointing",
    "training.accelerator",
    "training.validate_every",
    "training.validation_windows",
    "strategy",
    "strategy.",
)
"""Keys (patterns, or sections ending in a dot) that may differ when a run continues: they decide how long and how fast
it trains and what it writes, not what is learned from which windows. (`training.steps` does stretch the schedule;
whoever changes it asks for that.)"""


MUST_STAY = ("model.", "optimizer.kind", "initial_weights")
"""Keys that may not differ even in a run that branches off: the saved weights and optimizer states would not fit, and
other initial weights would be ignored."""


AUTO_FROM = "auto:"
"""Prefix of a path given to `--resume`: like auto, but a run without a checkpoint branches off at that path."""


@dataclass(frozen=True)
class ResumePoint:
    """A sound checkpoint, and the newer ones that are damaged."""

    checkpoint: Checkpoint
    manifest: Manifest
    damaged: tuple[Checkpoint, ...] = ()


def newest_sound(store: CheckpointStore) -> ResumePoint | None:
    """The newest checkpoint that is as it was written; warns of every damaged one. None if there is no checkpoint at
    all.

    Raises:
        RunError: there are checkpoints, but all are damaged: the user would not want to start again from nothing.
    """
    damaged: list[Checkpoint] = []
    reasons: list[str] = []
    for checkpoint in store.all():
        try:
            manifest = checkpoint.verify()
        except DamagedCheckpoint as error:
            damaged.append(checkpoint)
            reasons.append(f"{checkpoint.folder.name}: {error}")
            _LOGGER.warning("the checkpoint %s is damaged (%s); trying the one before.", checkpoint.folder, error)
            continue
        return ResumePoint(checkpoint, manifest, tuple(damaged))
    if damaged:
        raise RunError(
            f"every checkpoint in {store.folder} is damaged ({'; '.join(reasons)}). Restore one from a copy, or start "
            "again in another folder with --run-dir."
        )
    return None


def from_path(path: Path, store: CheckpointStore) -> ResumePoint:
    """The checkpoint that `--resume PATH` names: a `step-...` directory, or the newest sound one of a run folder.

    Raises:
        UsageError: there is no checkpoint at `path`, or `store` already has newer ones.
        RunError: the checkpoint is damaged.
    """
    checkpoint = Checkpoint.at(path)
    if checkpoint is not None and path.is_dir():
        try:
            point = ResumePoint(checkpoint, checkpoint.verify())
        except DamagedCheckpoint as error:
            raise RunError(
                f"the checkpoint {path} is damaged: {error}. --resume auto takes the newest sound one."
            ) from error
    else:
        require_checkpoint_at(path)
        found = newest_sound(_store_at(path))
        assert found is not None
        point = found
    newer = [other for other in store.all() if other.step > point.checkpoint.step]
    if newer:
        raise UsageError(
            f"{store.folder} has a newer checkpoint (step {newer[0].step}) than {point.checkpoint.folder}. "
            "To go on from the newest, use --resume auto; to branch off at this one, give a new folder with --run-dir."
        )
    return point


def require_checkpoint_at(path: Path) -> None:
    """Refuse a path that names no checkpoint; reads none.

    Raises:
        UsageError: it is neither a `step-...` directory nor a folder that holds some.
    """
    if not (Checkpoint.at(path) is not None and path.is_dir()) and not _store_at(path).all():
        raise UsageError(
            f"there is no checkpoint at {path}. Give a directory such as runs/tiny/checkpoints/step-00000100 (a copy "
            "has that name, too), or a run folder; `fit --resume` takes never and auto, too."
        )


def _store_at(path: Path) -> CheckpointStore:
    """The checkpoints of a run folder, or those in `path` itself."""
    return CheckpointStore(path / "checkpoints" if (path / "checkpoints").is_dir() else path)


def require_same_experiment(point: ResumePoint, recipe: dict[str, Any]) -> None:
    """Refuse a checkpoint that was made with another recipe.

    Raises:
        UsageError: lists the keys that differ, with both values.
    """
    changed = forbidden_changes(point.manifest.identity.recipe, recipe)
    if not changed:
        return
    model = {key: values for key, values in changed.items() if key.startswith("model.")}
    what = "of another architecture" if model else "of another recipe"
    raise UsageError(
        f"{point.checkpoint.folder} is a checkpoint {what}: {listed(model or changed)}. "
        "Use the recipe that it was made with, or another folder with --run-dir DIR."
    )


def require_fitting_state(point: ResumePoint, recipe: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights or optimizer states are not those of `recipe`, for a run that branches off.

    Raises:
        UsageError: lists the keys that differ, with both values.
    """
    changed = forbidden_changes(point.manifest.identity.recipe, recipe)
    if unfit := {key: values for key, values in changed.items() if _matches(key, MUST_STAY)}:
        if list(unfit) == ["initial_weights"]:
            raise UsageError(
                f"{listed(unfit)}, but a run that branches off has all weights from {point.checkpoint.folder}. Leave "
                "out either initial_weights or --resume PATH."
            )
        model = any(key.startswith("model.") for key in unfit)
        raise UsageError(
            f"{point.checkpoint.folder} is a checkpoint of another {'architecture' if model else 'optimizer'}: "
            f"{listed(unfit)}. A run that branches off may change anything but model and optimizer.kind; to change "
            "these, start at step 0, without --resume: initial_weights=PATH begins with the weights of a run, and "
            "allows another memory."
        )


def require_same_data(
    point: ResumePoint, data: Mapping[str, str], otherwise: str = "start a new run with --run-dir"
) -> None:
    """Refuse to continue with other text: its windows would not be the ones that the finished steps left unseen.

    Args:
        point: what is continued from. data: the fingerprints of the text that is there now.
        otherwise: what to do if the other text is meant.

    Raises:
        UsageError: says what changed.
    """
    for part, (before, now) in changed_data(point.manifest.identity.data, data).items():
        if part.startswith("revision of "):
            raise UsageError(
                f"the {part} changed since {point.checkpoint.folder} was written ({before} there, {now or 'none'} "
                f"here): the text is another one. Write @{before} behind the data set's name, or {otherwise}."
            )
        raise UsageError(
            f"the {part} changed since {point.checkpoint.folder} was written (fingerprint {before[:16]}, now "
            f"{(now or 'none')[:16]}): the text is another one. Restore it, or {otherwise}."
        )


def forbidden_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differing keys that `MAY_CHANGE` does not allow, with both values."""
    return {key: values for key, values in differences(before, now).items() if not _matches(key, MAY_CHANGE)}


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, f"{pattern}*" if pattern.endswith(".") else pattern) for pattern in patterns)


def listed(changed: dict[str, tuple[Any, Any]]) -> str:
    """As text: `optimizer.lr 0.001 there and 0.01 here, ...`."""
    return ", ".join(
        f"{key} {_plainly(before)} there and {_plainly(now)} here" for key, (before, now) in changed.items()
    )


def _plainly(value: Any) -> str:
    return "(absent)" if value is None else str(value)
