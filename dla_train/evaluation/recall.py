"""Recall by size: the share of right answers for each number of pairs or segments alone."""

from dataclasses import replace

import numpy as np

from dla_data.synthetic import ChangePoint, Copy, Mqar
from dla_train.data.synthetic import VALIDATION_SEED
from dla_train.models import LanguageModel
from dla_train.training.answers import answer

_BATCH = 64
_TOKENS = 2**16  # of a batch, unless one example has more


def by_size(task: Mqar | ChangePoint | Copy) -> dict[int, Mqar | ChangePoint | Copy]:
    """The task with each of its sizes alone: numbers of pairs, of segments; a copy has one, 0."""
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
    """Answers right by size, over `examples` examples of each: the same for the same weights and seed.

    Args:
        model: on any device. task: its sizes are asked one by one. vocab_size, window: as in training.
        seed: of the examples; that of the default is never trained on.
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
