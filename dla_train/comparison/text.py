"""The comparison as Markdown tables that are aligned on a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dla_data.counted import counted
from dla_train.comparison.compared import Compared
from dla_train.estimate.text import table
from dla_train.report.text import parameter_count

NOTHING = "-"
_NOT_COMPARED = ("description",)


def render(runs: Sequence[Compared]) -> str:
    """What the runs reached, and what their recipes differ in."""
    parts = ["# Comparison", _results(runs)]
    if any(run.planned_steps is not None and run.step < run.planned_steps for run in runs):
        parts.append("Runs with a step like 3 of 4 are not finished.")
    parts += [
        f"{_in_a_cell(run.name)}: {counted(run.left_out, 'row')} of metrics.csv left out, without tokens or loss to "
        "read."
        for run in runs
        if run.left_out
    ]
    parts += [_unread(run) for run in runs if run.unread is not None]
    changed = differing(runs)
    if changed:
        rows = [(key, *(_short(run.recipe.get(key, NOTHING)) for run in runs)) for key in changed]
        parts.append(table(("key", *(_in_a_cell(run.name) for run in runs)), rows, frozenset()))
    elif all(run.recipe for run in runs):
        parts.append("Their recipes are the same.")
    return "\n\n".join(parts) + "\n"


def differing(runs: Sequence[Compared]) -> list[str]:
    """The keys that do not have the same value in all recipes that can be read, in their order there."""
    recipes = [run.recipe for run in runs if run.recipe]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    return [
        key
        for key in keys
        if key not in _NOT_COMPARED
        and any(recipe.get(key, NOTHING) != recipes[0].get(key, NOTHING) for recipe in recipes)
    ]


def common_validation(runs: Sequence[Compared]) -> int | None:
    """The largest number of tokens after which every run has validated; None if there is none."""
    shared = set.intersection(*({tokens for tokens, _ in run.validation} for run in runs))
    return max(shared, default=None)


def _results(runs: Sequence[Compared]) -> str:
    units = {run.unit for run in runs}
    per = f", nats per {runs[0].unit}" if len(units) == 1 else ", nats"
    columns: dict[str, list[str]] = {
        "run": [_in_a_cell(run.name) for run in runs],
        "parameters": [NOTHING if run.parameters is None else parameter_count(run.parameters) for run in runs],
        "step": [_step(run) for run in runs],
        "tokens": [f"{run.tokens:,}" for run in runs],
        f"training loss{per}": [_number(run.training_loss, ".4f") for run in runs],
        f"validation loss{per}": [_number(run.validation[-1][1] if run.validation else None, ".4f") for run in runs],
    }
    if len(units) > 1:
        columns["per"] = [run.unit for run in runs]
    at = common_validation(runs)
    if at is not None and any(run.validation[-1][0] != at for run in runs):
        columns[f"after {at:,} tokens"] = [_number(dict(run.validation)[at], ".4f") for run in runs]
    further = {
        "answers right": [_number(run.answers_right, ".1%") for run in runs],
        "tokens/s": [_number(run.tokens_per_second, ",.0f") for run in runs],
        "device memory, GB": [_number(run.device_memory_gb, ".2f") for run in runs],
        "boundary rate": [_number(run.boundary_rate, ".1%") for run in runs],
        "slots in use": [_number(run.slots_in_use, ".1f") for run in runs],
    }
    columns |= {name: cells for name, cells in further.items() if set(cells) != {NOTHING}}
    rows = list(zip(*columns.values(), strict=True))
    return table(tuple(columns), rows, frozenset(range(1, len(columns))))


def _unread(run: Compared) -> str:
    if run.recipe:
        what = (
            "this version cannot read the recipe, so its parameters are not counted, and its keys are compared as they "
            "are written there. The version that trained it can."
        )
    else:
        what = "the recipe cannot be read, so its parameters are not counted, and its keys are not compared."
    return f"{_in_a_cell(run.name)}: {what} ({_in_a_cell(run.unread or '')})"


def _step(run: Compared) -> str:
    is_all = run.planned_steps in (None, run.step)
    return f"{run.step:,}" if is_all else f"{run.step:,} of {run.planned_steps:,}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _short(value: Any) -> str:
    """A value as it may be written in a recipe, on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)  # bytes, too
    text = _in_a_cell(text)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _in_a_cell(text: str) -> str:
    """On one line, and with no bar that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
