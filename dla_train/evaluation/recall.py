"""Recall by size: the share of correct answers, separately for each number of pairs or segments."""

from dataclasses import replace

import numpy as np

from dla_data.synthetic import ChangePoint, Copy, Mqar
from dla_train.data.synthetic import VALIDATION_SEED
from dla_train.models import LanguageModel
from dla_train.training.answers import answer

_BATCH = 64
_TOKENS = 2**16  # in a batch, unless a single example has more


def by_size(task: Mqar | ChangePoint | Copy) -> dict[int, Mqar | ChangePoint | Copy]:
    """The task with each of its sizes alone, by size: number of pairs or of segments; for a copy task, only 0."""
    if isinstance(task, Mqar):
        return {pairs: replace(task, pairs=(pairs,)) for pairs in task.pairs}
    if isinstance(task, ChangePoint):
        return {segments: replace(task, segments=(segments,)) for segments in task.segments}
    return {0: task}


def recall(
    model: LanguageModel,
    task: Mqar | ChangePoint | Copy,
    *,
    vocab_size: int,
    window: int,
    examples: int,
    seed: int = VALIDATION_SEED,
) -> dict[int, float]:
    """Share of correct answers by size, over `examples` examples each; reproducible for the same weights and seed.

    Args:
        model: on any device. task: its sizes are evaluated one by one. vocab_size, window: as in training.
        seed: of the examples; those of the default are never trained on.
    Raises:
        ValueError: there are no examples of these sizes.
    """  # fmt: skip
    device = next(model.parameters()).device
    found: dict[int, float] = {}
    batch = max(1, min(_BATCH, _TOKENS // window))
    for size, alone in by_size(task).items():
        right = answers = 0
        for start in range(0, examples, batch):
            indices = np.arange(start, min(start + batch, examples), dtype=np.int64)
            made = alone.examples(vocab_size, window, seed, indices)
            said = answer(model, made._replace(inputs=made.inputs.to(device), targets=made.targets.to(device)))
            right += int(said.is_right.sum())
            answers += len(said.is_right)
        found[size] = right / answers
    return found
