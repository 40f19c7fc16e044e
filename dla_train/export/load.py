"""Loads a trained model in one call, from an exported folder or a run; executes no code of either."""

import os
from pathlib import Path

from dla_train.evaluation.trained import load_trained
from dla_train.export.exported import load_exported
from dla_train.export.write import CONFIG
from dla_train.models import LanguageModel


def load_model(path: str | os.PathLike[str]) -> LanguageModel:
    """The model of an exported folder, of a run (its newest sound checkpoint) or of one checkpoint.

    Args:
        path: a folder that `dla-train export --to` wrote (or that transformers saved from one, also as shards), a run
            folder such as runs/tiny, or one of its `checkpoints/step-...`.
    Returns:
        the model on the CPU, in evaluation mode and in the dtype it was saved in.
    Raises:
        UsageError: there is no such folder, or neither kind of model in it.
        RunError: the folder or checkpoint is damaged.
    """
    folder = Path(path)
    return load_exported(folder) if (folder / CONFIG).is_file() else load_trained(folder).model
