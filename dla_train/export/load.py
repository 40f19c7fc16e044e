"""A trained model in one call, from an exported folder or a run; nothing in either is executed."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dla_train.errors import RunError, UsageError
from dla_train.evaluation.trained import load_trained
from dla_train.export.write import CONFIG, PREFIX, WEIGHTS
from dla_train.models import LanguageModel, ModelConfig, model_config_from_dict


def load_model(path: str | os.PathLike[str]) -> LanguageModel:
    """The model of an exported folder, of a run (its newest sound checkpoint) or of one checkpoint.

    Args:
        path: what `dla-train export --to` made, a run folder such as runs/tiny, or one of its `checkpoints/step-...`.
    Returns:
        the model on the CPU, in evaluation mode and the type it was saved in.
    Raises:
        UsageError: there is no such folder, or neither kind of model in it.
        RunError: what is there is damaged.
    """
    folder = Path(path)
    return _load_exported(folder) if (folder / CONFIG).is_file() else load_trained(folder).model


def exported_config(folder: Path) -> ModelConfig:
    """What an exported model is made of.

    Raises:
        UsageError: it is a model of another kind. RunError: the folder is damaged.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("model_type") != "dla":
            raise UsageError(f"{folder} holds a model of another kind: its {CONFIG} has no model_type dla.")
        return model_config_from_dict(content.get("language_model") or {})
    except ValueError as error:
        raise _damaged(folder, error) from error


def exported_state(folder: Path) -> dict[str, Tensor]:
    """The state of an exported `LanguageModel`, tied weights under both of their names.

    Raises:
        RunError: the folder is damaged.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is incomplete: {WEIGHTS} is missing. Export the model again.") from error
    except (ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    state = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if exported_config(folder).tie_embeddings and "embedding.weight" in state:
        state["head.weight"] = state["embedding.weight"]
    return state


def _load_exported(folder: Path) -> LanguageModel:
    model = LanguageModel(exported_config(folder))
    state = exported_state(folder)
    if "embedding.weight" in state:  # thresholds are float32 in any model
        model.to(state["embedding.weight"].dtype)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{folder} is damaged: its {WEIGHTS} does not fit its {CONFIG} ({error}). Export it again."
        ) from error
    return model.eval()


def _damaged(folder: Path, error: Exception) -> RunError:
    return RunError(f"{folder} is damaged: {error}. Export the model again.")
