"""Turns the folder of a published checkpoint into an exported model of dla-train."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer, vocabulary_of
from dla_train.config.recipe import Recipe
from dla_train.config.show import to_yaml
from dla_train.config.typed import build, plain
from dla_train.conversion.gated_deltanet import convert_gated_deltanet, is_gated_deltanet
from dla_train.conversion.mamba2 import convert_mamba2, is_mamba2
from dla_train.conversion.source import Source, read_source
from dla_train.conversion.tokenizer import TOKENIZER, with_our_end
from dla_train.errors import UsageError
from dla_train.export.write import write_export
from dla_train.models import LanguageModel, ModelConfig

_KINDS: tuple[
    tuple[Callable[[Mapping[str, Any]], bool], Callable[[Source], tuple[ModelConfig, dict[str, Tensor]]]], ...
] = (
    (is_mamba2, convert_mamba2),
    (is_gated_deltanet, convert_gated_deltanet),
)
_WINDOW = 2048
"""Tokens of a window in the recipe if the checkpoint does not say on how many it was trained."""


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        config: of the model. parameters: how many it has. has_tokenizer: whether the checkpoint has one. end: its name
            for the token that ends documents, if that was another one than ours.
    """

    config: ModelConfig
    parameters: int
    has_tokenizer: bool
    end: str | None


def convert(folder: Path, to: Path) -> Converted:
    """Read the checkpoint in `folder` and write it to the new folder `to`, completely or not at all.

    Raises:
        UsageError: it is a model that dla-train does not have, or `to` cannot be written. RunError: it is damaged.
    """
    source = read_source(folder)
    found = next((how for fits, how in _KINDS if fits(source.config)), None)
    if found is None:
        if source.config.get("model_type") == "dla":
            raise UsageError(f"{folder} is a model of dla-train already: take it as it is, --checkpoint {folder}.")
        kind = source.config.get("model_type") or "/".join(source.config.get("architectures") or ["?"])
        raise UsageError(
            f"{folder} cannot be imported: it is a model of the kind {kind}. Known are mamba2 (state-spaces, "
            "transformers and flash-linear-attention) and gated_deltanet (flash-linear-attention)."
        )
    config, state = found(source)
    source.require_empty()
    model = _model(folder, config, state)
    with tempfile.TemporaryDirectory() as place:
        tokenizer, end, vocabulary = None, None, config.vocab_size
        if (folder / TOKENIZER).is_file():
            text, end = with_our_end(folder)
            tokenizer = Path(place) / TOKENIZER
            tokenizer.write_text(text, encoding="utf-8")
            vocabulary = _vocabulary(tokenizer, folder, config)
        write_export(
            to,
            model,
            tokenizer=tokenizer,
            description=f"The published checkpoint {folder.resolve().name}.",
            step=None,
            recipe=_recipe(source, config, vocabulary),
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Converted(config, parameters, tokenizer is not None, end)


def _model(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> LanguageModel:
    with torch.device("meta"):
        model = LanguageModel(config)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in {**wanted, **state}:
        if name not in wanted or name not in state or wanted[name] != list(state[name].shape):
            given = list(state[name].shape) if name in state else "absent"
            raise UsageError(
                f"{folder} cannot be imported: its weights for {name} are {given} and should be "
                f"{wanted.get(name, 'absent')}; they do not have the shapes of one model."
            )
    # float32 also for float16, in which states may become infinite.
    is_narrow = {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    model = LanguageModel(config).to(torch.bfloat16 if is_narrow else torch.float32)
    model.load_state_dict(state)
    return model.eval()


def _vocabulary(tokenizer: Path, folder: Path, config: ModelConfig) -> int:
    try:
        vocabulary = vocabulary_of(load_tokenizer(tokenizer))
    except DataError as error:
        raise UsageError(f"the tokenizer of {folder} cannot be used: {error}") from error
    if vocabulary > config.vocab_size:
        raise UsageError(
            f"the tokenizer of {folder} makes ids up to {vocabulary - 1:,}, but the model has only "
            f"{config.vocab_size:,}: they do not belong together. Give the right {TOKENIZER}, or take it out of the "
            "folder."
        )
    return vocabulary


def _recipe(source: Source, config: ModelConfig, vocabulary: int) -> str:
    """A recipe that goes on training the model, once tokens are prepared."""
    window = source.config.get("max_position_embeddings")
    values = {
        "description": f"goes on with the published checkpoint {source.folder.resolve().name}",
        "model": plain(config),
        "data": {
            "kind": "prepared",
            "path": "tokens",
            "vocab_size": vocabulary,
            "window": window if isinstance(window, int) and window > 0 else _WINDOW,
        },
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "schedule": {"kind": "cosine", "warmup": 200, "floor": 0.1},
        "training": {"steps": 2000, "global_batch": 64, "micro_batch": 1, "precision": "bf16-mixed"},
    }
    return to_yaml(build(Recipe, values, written={}))
