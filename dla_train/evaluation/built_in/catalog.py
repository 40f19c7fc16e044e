"""The built-in tasks by name. This module does not import torch, so that names are checked before anything is
loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dla_train.evaluation.built_in.task import Asked, Task

BUILT_IN = {
    "perplexity-by-position": "loss by place in the window, far beyond the training window if wanted",
    "needles": "RULER's single 1 to 3, multi-key, multi-query and multi-value needles, by length",
    "mqar": "associative recall by number of pairs and length, for models trained on it (recipes mqar-*)",
    "change-point": "recall across changes of subject by number of segments and length, for models trained on it",
}
"""Each task, and what it measures."""


def open_task(name: str, asked: Asked) -> Task:
    """The task `name` of `BUILT_IN`, ready to run.

    Raises:
        UsageError: the task cannot be run on this model, or not at these lengths, or the text cannot be read.
    """
    if name == "perplexity-by-position":
        from dla_train.evaluation.built_in.position import PerplexityByPosition

        return PerplexityByPosition(asked)
    if name == "needles":
        from dla_train.evaluation.built_in.needles import Needles

        return Needles(asked)
    from dla_train.evaluation.built_in.recall_grid import RecallGrid

    return RecallGrid(asked, name)
