"""Weights with which a new run begins: those of another run or of an exported model, instead of random ones.

This serves to continue training with another schedule or longer windows, or to give a trained backbone another memory.
Everything except the memory must fit. A memory that does not fit begins with weight one for every slot, so that a
single-state model continues as the same function.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint
from dla_train.checkpoints.resume import listed
from dla_train.checkpoints.store import Checkpoint
from dla_train.config.load import LoadedRecipe
from dla_train.config.show import differences
from dla_train.config.typed import plain
from dla_train.errors import UsageError
from dla_train.evaluation.trained import find_trained, read_weights
from dla_train.export.exported import exported_config, exported_state
from dla_train.models import LanguageModel, ModelConfig
from dla_train.models.mixer_config import memory_of
from dla_train.models.slot_weight import SlotWeight
from dla_train.runs.folder import RunFolder

_LOGGER = logging.getLogger(__name__)

_KEY = "initial_weights"
_MEMORY = ".memory."  # in the names of a memory's weights
_MOVES_THRESHOLDS = ("learn_threshold", "calibrate_rate", "calibrate_steps", "steer")
_MEMORY_KEYS = ("model.mixer.memory.", "model.hybrid.mixer.memory.")


@dataclass(frozen=True)
class InitialWeights:
    """An intact model whose weights fit the recipe; the weights are not read yet.

    Attributes:
        path: of the checkpoint or exported folder. config: of its model. tokenizer: its own; None if its tokens are not
            text. checkpoint: None for an exported model.
    """

    path: Path
    config: ModelConfig
    tokenizer: Path | None
    checkpoint: Checkpoint | None

    def fill(self, model: LanguageModel) -> None:
        """Give `model`, which is initialized and on the CPU, these weights; the log says which are not used."""
        given = exported_state(self.path) if self.checkpoint is None else read_weights(self.checkpoint)
        takes_memory = _is_same_memory(self.config, model.config)
        state = {name: value for name, value in given.items() if takes_memory or _MEMORY not in name}
        changed = _changed(self.config, model.config, with_memory=takes_memory)
        new_thresholds = _new_thresholds(self.config, model.config) if takes_memory else set[str]()
        model.load_state_dict(
            {name: value for name, value in state.items() if name not in new_thresholds}, strict=False
        )
        if not takes_memory:
            for module in model.modules():
                if isinstance(module, SlotWeight):
                    torch.nn.init.zeros_(module.weight)  # every slot weighs 1, whatever the plan
        but = "" if takes_memory else f" (but for the {_memory(model.config)} memory, which begins as one state)"
        _LOGGER.info("initial weights: those of %s%s", self.path, but)
        if changed:
            thresholds = ", from which its thresholds begin" if new_thresholds else ""
            if not thresholds and any(key.rpartition(".")[2] in _MOVES_THRESHOLDS for key in changed):
                thresholds = "; its thresholds begin where those weights have them"
            _LOGGER.warning(
                "these weights were trained with other settings: %s. Those of the recipe hold%s.",
                listed(changed),
                thresholds,
            )


def find_initial_weights(loaded: LoadedRecipe) -> InitialWeights | None:
    """What `initial_weights` names, checked against the recipe's model; None where it is null.

    Raises:
        UsageError: there is no model, or it does not fit. RunError: it is damaged.
    """
    if loaded.recipe.initial_weights is None:
        return None
    path = Path(loaded.recipe.initial_weights)
    try:
        found = _find(path)
    except UsageError as error:
        raise loaded.problem(_KEY, str(error)) from error
    if unfit := _unfit(found.config, loaded.recipe.model):
        changed = listed(_changed(found.config, loaded.recipe.model, with_memory=False))
        raise loaded.problem(
            _KEY,
            f"the weights of {found.path} do not fit this model: {unfit} ({changed}). Give those keys the values that "
            "they have there; only the memories of mixers and settings without weights may differ.",
        )
    return found


def require_same_tokenizer(loaded: LoadedRecipe, weights: InitialWeights, tokenizer: Path | None) -> None:
    """Refuse weights that were trained with another tokenizer.

    Raises:
        UsageError: the tokenizers differ, or one of them cannot be read.
    """
    if weights.tokenizer is None or tokenizer is None:
        return
    try:
        there, here = (tokenizer_fingerprint(load_tokenizer(path)) for path in (weights.tokenizer, tokenizer))
    except DataError as error:
        raise UsageError(str(error)) from error
    if there != here:
        raise loaded.problem(
            _KEY,
            f"the model of {weights.path} was trained with another tokenizer ({weights.tokenizer}), so its embeddings "
            "belong to other tokens. Prepare the text with that one: dla-train prepare --tokenizer "
            f"{weights.tokenizer} ..., and data.kind prepared or streaming.",
        )


def _find(path: Path) -> InitialWeights:
    folder = RunFolder(path)
    if folder.is_export():
        tokenizer = folder.tokenizer if folder.tokenizer.is_file() else None
        return InitialWeights(path, exported_config(path), tokenizer, None)
    found = find_trained(path)
    tokenizer = found.folder.tokenizer if found.folder.tokenizer.is_file() else None
    return InitialWeights(found.checkpoint.folder, found.loaded.recipe.model, tokenizer, found.checkpoint)


def _unfit(there: ModelConfig, here: ModelConfig) -> str:
    """Describes the first weights that do not fit; "" if all fit."""
    if here.tie_embeddings and not there.tie_embeddings:
        return "it has one matrix for embedding and head, and they have two"
    given, wanted = _shapes(there), _shapes(here)
    for name in {**wanted, **given}:
        if _MEMORY not in name and given.get(name) != wanted.get(name):
            shown = [list(shape) if shape else "absent" for shape in (given.get(name), wanted.get(name))]
            return f"{name} is {shown[0]} there and {shown[1]} here"
    return ""


def _is_same_memory(there: ModelConfig, here: ModelConfig) -> bool:
    """Whether the weights of each slot have the same meaning in both models."""
    old, new = ([getattr(memory_of(mixer), "kind", None) for mixer in config.mixers] for config in (there, here))
    if old != new:
        return False
    given, wanted = ({n: s for n, s in _shapes(config).items() if _MEMORY in n} for config in (there, here))
    return given == wanted


def _new_thresholds(there: ModelConfig, here: ModelConfig) -> set[str]:
    """Names of the thresholds that begin at another value here than there."""
    old, new = ([getattr(memory_of(mixer), "threshold", None) for mixer in config.mixers] for config in (there, here))
    return {
        f"blocks.{index}.mixer{_MEMORY}threshold"
        for index, (before, now) in enumerate(zip(old, new, strict=True))
        if before != now
    }


def _memory(config: ModelConfig) -> str:
    return " and ".join(dict.fromkeys(memory.kind for memory in config.memories))


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LanguageModel(config).state_dict().items()}


def _changed(there: ModelConfig, here: ModelConfig, *, with_memory: bool) -> dict[str, tuple[Any, Any]]:
    """Differing keys of the recipe, with both values."""
    changed = differences(plain(there), plain(here), "model.")
    kinds = {key: values for key, values in changed.items() if key in ("model.mixer.kind", "model.hybrid.mixer.kind")}
    if kinds:  # nothing else of two mixers can be compared
        return kinds
    left_out = ("model.init_std",) if with_memory else ("model.init_std", *_MEMORY_KEYS)
    return {key: values for key, values in changed.items() if not key.startswith(left_out)}
