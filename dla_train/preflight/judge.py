"""What the two runs of a trial say about the recipe on this machine."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dla_data.counted import counted
from dla_train.config.recipe import Recipe
from dla_train.estimate.text import gigabytes
from dla_train.preflight.check import Check
from dla_train.preflight.trial import Ran, Trial, how_it_ended
from dla_train.report.text import duration
from dla_train.runs.metrics_file import TIMES, TRAIN, key_of
from dla_train.slurm.request import JobRequest

MOST_DRIFT = 1e-4
"""Relative difference that a loss may have when its step is trained again on a GPU, where sums of other libraries'
kernels (the embedding's gradient, softmax attention's) have no fixed order."""


def judge(
    recipe: Recipe,
    trial: Trial,
    first: Ran,
    again: Ran | None,
    *,
    on_cpu: bool,
    estimated: int | None,
    room: int | None,
) -> list[Check]:
    """Everything that can be said.

    Args:
        on_cpu: whether the runs were on the CPU, where going on must give the same bits.
        estimated: bytes of a device's memory, by the estimate; room: bytes that it has. None on the CPU.
    """
    trained = [row for row in first.rows if row["split"] == TRAIN]
    checks = [_run(first, trained)]
    if trained:
        checks.append(_speed(recipe, trained))
        if estimated is not None and room is not None:
            checks.append(_memory(trained, estimated, room))
    if trial.checkpoint.is_dir():
        checks.append(_checkpoint(recipe, trial))
    if first.stop_seconds is not None:
        checks.append(_stop(first))
    if again is not None:
        checks.append(_going_on(trial, first, again, on_cpu=on_cpu))
    return checks


def _run(ran: Ran, trained: list[dict[str, Any]]) -> Check:
    if not ran.ended_well:
        text = f"{how_it_ended(ran.code)} after {counted(len(trained), 'step')}; what it said is above"
        return Check(what="run", found=text, is_right=False)
    if not trained:
        return Check(what="run", found="ended before a step was done", is_right=False)
    lost = [row["step"] for row in trained if not math.isfinite(row.get("loss", math.nan))]
    if lost:
        return Check(what="run", found=f"the loss of step {lost[0]} is no number", is_right=False)
    begin, end = trained[0], trained[-1]
    text = f"{counted(len(trained), 'step')}; training loss {begin['loss']:.4f}, then {end['loss']:.4f}"
    if skipped := end.get("skipped"):
        text += f"; {counted(skipped, 'step')} skipped, because no finite gradient or a spike"
    return Check(what="run", found=text, is_right=not skipped)


def _speed(recipe: Recipe, trained: list[dict[str, Any]]) -> Check:
    """The median of steps after the first, which waits for compilers."""
    steps = trained[1:] or trained
    speed = statistics.median(row["tokens_per_second"] for row in steps)
    seconds = recipe.training.global_batch * recipe.data.window / speed
    text = f"{speed:,.0f} tokens/s, {seconds:.3g} s a step"
    if shares := [row["mfu"] for row in steps if "mfu" in row]:
        text += f", mfu {statistics.median(shares):.1%}"
    whole = duration(recipe.training.steps * seconds)
    return Check(what="speed", found=f"{text}; all {recipe.training.steps:,} steps would take {whole}")


def _memory(trained: list[dict[str, Any]], estimated: int, room: int) -> Check:
    most = max(row.get("device_memory_gb", 0.0) for row in trained)
    text = f"{most:.2f} GB of {gigabytes(room)}; {gigabytes(estimated)} by the estimate"
    return Check(what="memory of a device", found=text)


def _checkpoint(recipe: Recipe, trial: Trial) -> Check:
    size = _bytes_in(trial.checkpoint)
    free = shutil.disk_usage(trial.folder).free + _bytes_in(trial.first.path) + _bytes_in(trial.again.path)
    number = _most_checkpoints(recipe)
    text = (
        f"{gigabytes(size)}; up to {number:,} at a time take {gigabytes(number * size)}, and {gigabytes(free)} are free"
    )
    return Check(what="checkpoint", found=text, is_right=number * size <= free)


def _bytes_in(folder: Path) -> int:
    """Of all files there; what this preflight has written will be free again."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _most_checkpoints(recipe: Recipe) -> int:
    """Those that are kept, and the one that is being written; but no more than the run saves."""
    config, steps = recipe.checkpoint, recipe.training.steps
    number = config.keep_last + 1
    if config.every is None:
        return number
    if config.keep_every is not None:
        number += steps // math.lcm(config.every, config.keep_every)
    return min(number, -(-steps // config.every))


def _stop(ran: Ran) -> Check:
    assert ran.stop_seconds is not None
    warned = JobRequest.warn_seconds
    text = f"{ran.stop_seconds:.1f} s from SIGUSR1 to the end, with the step's end and a checkpoint"
    is_right = ran.stop_seconds < warned
    if not is_right:
        text += f"; a Slurm job is warned {warned} s before its time limit: submit it with a larger --warn-seconds"
    return Check(what="stop", found=text, is_right=is_right)


def _going_on(trial: Trial, first: Ran, again: Ran, *, on_cpu: bool) -> Check:
    what = "going on"
    if not again.ended_well:
        text = f"from step {trial.saved_step}: {how_it_ended(again.code)}; what it said is above"
        return Check(what=what, found=text, is_right=False)
    pairs = list(_same_steps(first, again, after=trial.saved_step))
    if not pairs:
        return Check(what=what, found=f"no step after step {trial.saved_step} was trained again", is_right=False)
    steps = f"from step {trial.saved_step}, {counted(len(pairs), 'step')} once more"
    changed = list(dict.fromkeys(name for one, other in pairs for name in _changed(one, other)))
    if not changed:
        return Check(what=what, found=f"{steps}: the same to the last bit", is_right=True)
    drift = max(_drift(one.get("loss", math.nan), other.get("loss", math.nan)) for one, other in pairs)
    if "loss" in changed:
        text = f"{steps}: losses differ by up to {drift:.1e} of themselves"
    else:
        text = f"{steps}: the same losses, but not the same {', '.join(changed)}"
    if on_cpu:
        return Check(what=what, found=f"{text}, where the CPU should give the same bits", is_right=False)
    return Check(what=what, found=text, is_right=drift <= MOST_DRIFT)


def _same_steps(first: Ran, again: Ran, after: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of training that both runs have, of later steps than `after`."""
    others = {key_of(row): row for row in again.rows}
    for row in first.rows:
        if row["split"] == TRAIN and row["step"] > after and key_of(row) in others:
            yield row, others[key_of(row)]


def _changed(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the columns that differ, times aside; by their text, in which one nan is as the other."""
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in TIMES and repr(one.get(name)) != repr(other.get(name))]


def _drift(one: float, other: float) -> float:
    """Relative difference of two losses; inf if only one of them is a number."""
    if math.isnan(one) and math.isnan(other):
        return 0.0
    drift = abs(other - one) / (abs(one) or 1.0)
    return math.inf if math.isnan(drift) else drift
