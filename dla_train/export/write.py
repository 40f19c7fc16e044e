"""Writes the folder of an exported model."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dla_data.atomic import new_directory
from dla_data.counted import counted
from dla_data.errors import DataError
from dla_data.tokenizer import END_OF_DOCUMENT, load_tokenizer
from dla_train.errors import UsageError
from dla_train.export.model_code import model_code
from dla_train.export.place import require_empty
from dla_train.export.weight_files import WEIGHTS
from dla_train.models import LanguageModel

CONFIG = "config.json"
STEPS = "trained_steps"
"""Key of CONFIG: for how many steps the model was trained."""
PREFIX = "model."
"""Prefix of the weights' names: `LanguageModel` is the attribute `model` of the class that transformers loads."""

_CARD = """\
# {name}

{description}

A language model{training}, with {parameters:,} parameters in {dtype}.

```python
from dla_train import load_model  # with dla-train installed: no code from this folder is run

model = load_model("{name}")
```

```python
from transformers import AutoModelForCausalLM  # with transformers and dla_kernels: runs the code in this folder

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```
"""


def write_export(
    folder: Path, model: LanguageModel, *, tokenizer: Path | None, description: str, step: int | None, recipe: str
) -> None:
    """Write `folder`, completely or not at all.

    Args:
        folder: new or empty. model: on any device. tokenizer: a `tokenizer.json`; None for tokens that are not text.
        description: for the model card. step: of the checkpoint; None if dla-train has not trained it.
        recipe: the text of its recipe.
    Raises:
        UsageError: the folder holds something or cannot be written, or the tokenizer cannot be read.
    """
    require_empty(folder)
    weights = exported_weights(model)
    config = model.config
    try:
        own = None if tokenizer is None else load_tokenizer(tokenizer)
        end = None if own is None else own.token_to_id(END_OF_DOCUMENT)
        with new_directory(folder, replace=True) as unfinished:
            _save(weights, unfinished / WEIGHTS)
            for name, source in model_code().items():
                (unfinished / name).write_text(source, encoding="utf-8")
            dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
            _write_json(unfinished / CONFIG, _config(dataclasses.asdict(config), dtype, end, step))
            shutil.copymode(unfinished / CONFIG, unfinished / WEIGHTS)  # safetensors lets only the owner read
            _write_json(unfinished / "generation_config.json", {} if end is None else _ends(end))
            if tokenizer is not None and own is not None:
                shutil.copyfile(tokenizer, unfinished / "tokenizer.json")
                if own.num_special_tokens_to_add(False):
                    _take_text_alone(unfinished / "tokenizer.json")
                _write_json(unfinished / "tokenizer_config.json", _tokenizer_config(end))
            (unfinished / "recipe.yaml").write_text(recipe, encoding="utf-8")
            card = _CARD.format(
                name=folder.name,
                description=description,
                training="" if step is None else f" trained with dla-train for {counted(step, 'step')}",
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                dtype=dtype,
            )
            (unfinished / "README.md").write_text(card, encoding="utf-8")
    except DataError as error:
        raise UsageError(str(error)) from error


def _save(weights: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # An error of the operating system is given only as text: `(os error 28)`, before safetensors 0.6 `code: 28`.
        if (number := re.search(r"\b(?:os error|code:) (\d+)\b", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def exported_weights(model: LanguageModel) -> dict[str, Tensor]:
    """Tensors for the file, by name; of tied weights only the embedding."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del state["head.weight"]
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}


def _config(language_model: dict[str, Any], dtype: str, end: int | None, step: int | None) -> dict[str, Any]:
    return {
        "model_type": "dla",
        "architectures": ["DlaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_dla.DlaConfig",
            "AutoModelForCausalLM": "modeling_dla.DlaForCausalLM",
        },
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before version 5 of transformers
        **({} if end is None else _ends(end)),
        **({} if step is None else {STEPS: step}),
        "language_model": language_model,
    }


def _ends(end: int) -> dict[str, int]:
    """The token that ends documents also precedes them, and serves as padding."""
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def _tokenizer_config(end: int | None) -> dict[str, Any]:
    special = {} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_DOCUMENT)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": torch.iinfo(torch.int64).max,
        "model_input_names": ["input_ids", "attention_mask"],  # before version 5 token_type_ids are given by default
        "split_special_tokens": True,  # what looks like one in a text is text, as in training and for `generate`
        **special,
    }


def _take_text_alone(path: Path) -> None:
    """Keep transformers from putting tokens around each text, such as `<s>`, as the tokenizer's file has it: dla-train
    trains without them, so the model has never seen them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "post_processor": None}, ensure_ascii=False), encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
