"""Recall by number of pairs or segments and by length, for models that were trained on the task."""

from __future__ import annotations

from dataclasses import replace

from dla_data.counted import counted
from dla_data.synthetic import ChangePoint, Mqar
from dla_train.data.synthetic import VALIDATION_SEED
from dla_train.data.synthetic_config import SyntheticData
from dla_train.errors import UsageError
from dla_train.evaluation.built_in.grid import draw_grid
from dla_train.evaluation.built_in.task import Asked, Result, Task, as_tokens
from dla_train.evaluation.recall import recall

EXAMPLES = 512
"""Examples of each cell if no limit is given."""
_TRAIN = {
    "mqar": "--recipe mqar-gdn-dla",
    "change-point": "--recipe mqar-gdn-dla 'data.task={kind: change_point, segments: [2, 4], needles: 2, shortest: 6, "
    "themes: 16}' data.vocab_size=64 model.mixer.key_dim=8",
}


class RecallGrid(Task):
    """Recall for every size of the recipe's task and for twice its largest, at each length that can hold such examples.

    Args:
        asked: see `Task`; if it gives no lengths, they are one, two and four training windows.
        name: `mqar` or `change-point`.
    Raises:
        UsageError: see `Task`; also if no size has examples at a length.
    """

    def __init__(self, asked: Asked, name: str) -> None:
        super().__init__(asked)
        self.name = name
        data = asked.trained.recipe.data
        self.data = _require(data, name, str(asked.trained.folder))
        self.unit = "pairs" if name == "mqar" else "segments"
        task = self.data.task
        own = task.pairs if isinstance(task, Mqar) else task.segments if isinstance(task, ChangePoint) else ()
        self.sizes = [*sorted(set(own)), 2 * max(own)]
        self.lengths = asked.within_reach([asked.window, 2 * asked.window, 4 * asked.window])
        for length in self.lengths:
            if all(
                why := self._why_not(size, length) for size in reversed(self.sizes)
            ):  # the last is the smallest size
                raise UsageError(f"--lengths has {length:,}, at which {name} has no examples: {why}.")

    def run(self) -> Result:
        """See `Task`."""
        asked = self.asked
        examples = asked.limit or EXAMPLES
        cells: dict[tuple[str, str], float] = {}
        values = []
        there = [(size, length) for length in self.lengths for size in self.sizes if not self._why_not(size, length)]
        for size, length in there:
            (right,) = recall(
                asked.trained.model,
                self._with(size),
                vocab_size=self.data.vocab_size,
                window=length,
                examples=examples,
                seed=VALIDATION_SEED - asked.seed,
            ).values()
            cells[f"{size}", as_tokens(length)] = right
            values.append({self.unit: size, "length": length, "right": right, "examples": examples})
            where = f"{self.name}, {len(values)} of {len(there)}"
            asked.say(f"{where}: {counted(size, self.unit.removesuffix('s'))} in {length:,} tokens, {right:.1%} right")
        rows, columns = [f"{size}" for size in self.sizes], [as_tokens(length) for length in self.lengths]
        rows = [row for row in rows if any((row, column) in cells for column in columns)]
        trained = asked.trained
        return Result(
            name=self.name,
            note=f"Answers right in percent, by {self.unit} and tokens of an example; {counted(examples, 'example')} "
            f"each. The model was trained on {', '.join(map(str, self.sizes[:-1]))} {self.unit} in "
            f"{asked.window:,} tokens.",
            heads=[self.unit, *columns],
            rows=[
                [row, *(f"{100 * cells[row, column]:.1f}" if (row, column) in cells else "" for column in columns)]
                for row in rows
            ],
            values={"trained_window": asked.window, "cells": values},
            draw=lambda figure: draw_grid(
                figure,
                cells,
                rows,
                columns,
                title=f"{self.name}, {trained.title}",
                down=self.unit,
                across="tokens of an example",
            ),
        )

    def _why_not(self, size: int, length: int) -> str:
        """The reason why there are no such examples; empty if there are some."""
        try:
            self._with(size).check(self.data.vocab_size, length)
        except ValueError as error:
            return str(error)
        return ""

    def _with(self, size: int) -> Mqar | ChangePoint:
        task = self.data.task
        if isinstance(task, Mqar):
            return replace(task, pairs=(size,))
        assert isinstance(task, ChangePoint)
        return replace(task, segments=(size,))


def _require(data: object, name: str, folder: str) -> SyntheticData:
    if isinstance(data, SyntheticData) and data.task.kind == name.replace("-", "_"):
        return data
    was = f"the task {data.task.kind}" if isinstance(data, SyntheticData) else "text"
    raise UsageError(
        f"{name} is for models that were trained on it: its tokens are no text, and mean nothing to another model. "
        f"{folder} was trained on {was}. Train one with dla-train fit {_TRAIN[name]}."
    )
