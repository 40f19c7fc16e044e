"""Reads the folder of an exported model; executes no code of it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dla_train.errors import UsageError
from dla_train.export.weight_files import damaged, read_weight_files
from dla_train.export.write import CONFIG, PREFIX, STEPS
from dla_train.models import LanguageModel, ModelConfig, model_config_from_dict


def exported_config(folder: Path) -> ModelConfig:
    """The configuration of an exported model.

    Raises:
        UsageError: it is a model of another kind. RunError: the folder is damaged.
    """
    try:
        return model_config_from_dict(_content(folder).get("language_model") or {})
    except ValueError as error:
        raise damaged(folder, error) from error


def exported_steps(folder: Path) -> int | None:
    """For how many steps an exported model was trained; None if the folder does not say, as those of older versions.

    Raises:
        UsageError, RunError: see `exported_config`.
    """
    steps = _content(folder).get(STEPS)
    return steps if isinstance(steps, int) else None


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


def load_exported(folder: Path) -> LanguageModel:
    """The model of an exported folder, on the CPU, in evaluation mode and in the dtype it was saved in.

    Raises:
        UsageError: it is a model of another kind. RunError: the folder is damaged.
    """
    state = exported_state(folder)
    # Not the dtype of a threshold, which is float32 in any model.
    model = LanguageModel(exported_config(folder)).to(state["embedding.weight"].dtype)
    model.load_state_dict(state)
    return model.eval()


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(folder, error) from error
    if not isinstance(content, dict) or content.get("model_type") != "dla":
        raise UsageError(f"{folder} holds a model of another kind: its {CONFIG} has no model_type dla.")
    return content
