"""Loads a trained model in one call, from an exported folder or a run; executes no code of either."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from dla_train.errors import UsageError
from dla_train.evaluation.trained import load_trained
from dla_train.export.weight_files import damaged, read_weight_files
from dla_train.export.write import CONFIG, PREFIX
from dla_train.models import LanguageModel, ModelConfig, model_config_from_dict


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
    return _load_exported(folder) if (folder / CONFIG).is_file() else load_trained(folder).model


def exported_config(folder: Path) -> ModelConfig:
    """The configuration of an exported model.

    Raises:
        UsageError: it is a model of another kind. RunError: the folder is damaged.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("model_type") != "dla":
            raise UsageError(f"{folder} holds a model of another kind: its {CONFIG} has no model_type dla.")
        return model_config_from_dict(content.get("language_model") or {})
    except ValueError as error:
        raise damaged(folder, error) from error


def exported_state(folder: Path) -> dict[str, Tensor]:
    """The state of an exported `LanguageModel`, tied weights under both of their names.

    Raises:
        RunError: the folder is damaged.
    """
    config = exported_config(folder)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in read_weight_files(folder).items()}
    if config.tie_embeddings and "embedding.weight" in state:
        state["head.weight"] = state["embedding.weight"]
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in LanguageModel(config).state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in state.items()}
    for name in {**wanted, **given}:
        if given.get(name) != wanted.get(name):
            shapes = f"{name} is {given.get(name, 'absent')} and should be {wanted.get(name, 'absent')}"
            raise damaged(folder, f"its weights do not fit its {CONFIG}: {shapes}")
    return state


def _load_exported(folder: Path) -> LanguageModel:
    state = exported_state(folder)
    # Not the dtype of a threshold, which is float32 in any model.
    model = LanguageModel(exported_config(folder)).to(state["embedding.weight"].dtype)
    model.load_state_dict(state)
    return model.eval()
