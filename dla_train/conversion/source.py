"""The folder of a published checkpoint: its configuration, weights and tokenizer; executes no code of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dla_train.errors import RunError, UsageError
from dla_train.export.weight_files import WEIGHTS, has_weight_files, read_weight_files

PICKLED = "pytorch_model.bin"


@dataclass
class Source:
    """A checkpoint whose weights are taken out one by one, so that in the end it shows whether any was left over.

    Attributes:
        folder: where it lies. config: what its `config.json` says. weights: those that were not taken yet, by name.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: dict[str, Tensor] = field(repr=False)

    def take(self, name: str) -> Tensor:
        """A weight that must be there.

        Raises:
            UsageError: it is not.
        """
        if name not in self.weights:
            raise UsageError(f"{self.folder} has no weight {name}, which a model of its kind has; nothing was written.")
        return self.weights.pop(name)

    def count_layers(self, prefix: str) -> int:
        """How many layers there are whose weights begin with `prefix`, a number and a dot."""
        numbers = [name.removeprefix(prefix).split(".")[0] for name in self.weights if name.startswith(prefix)]
        return len({number for number in numbers if number.isdigit()})

    def require(self, key: str, *allowed: Any, default: Any = None) -> None:
        """Refuse a setting that our models do not have.

        Args:
            key: of the configuration. allowed: the values that are the same model here. default: the value if the key
                is missing.
        Raises:
            UsageError: it has another value.
        """
        value = self.config.get(key, default)
        if value not in allowed:
            shown = " or ".join(json.dumps(one) for one in allowed)
            raise UsageError(
                f"{self.folder} cannot be imported: its config.json has {key} {json.dumps(value)}, and models of "
                f"dla-train know {shown} alone."
            )

    def require_empty(self) -> None:
        """Refuse a checkpoint of which not every weight was taken.

        Raises:
            UsageError: names the weights.
        """
        if self.weights:
            names = sorted(self.weights)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(
                f"{self.folder} cannot be imported: it has weights that the model has no place for "
                f"({', '.join(names[:3])}{more})."
            )


def read_source(folder: Path) -> Source:
    """Read `config.json`, and `model.safetensors` or `pytorch_model.bin`, whole or in shards.

    Raises:
        UsageError: the folder holds no checkpoint. RunError: it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no published model: it has no config.json. Give the folder that a model's files were "
            "downloaded to."
        )
    return Source(folder, read_table(path), _weights(folder))


def read_table(path: Path) -> dict[str, Any]:
    """The content of a JSON file that is a table of keys.

    Raises:
        RunError: it is not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no table of keys")
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Download it again.") from error
    return content


def _weights(folder: Path) -> dict[str, Tensor]:
    remedy = "Download it again."
    if has_weight_files(folder, WEIGHTS):
        return read_weight_files(folder, remedy)
    if has_weight_files(folder, PICKLED):
        return read_weight_files(folder, remedy, PICKLED, _read_pickled)
    raise UsageError(f"{folder} has no weights: neither {WEIGHTS} nor {PICKLED}, with or without an index.")


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except RuntimeError as error:
        raise ValueError(next(iter(str(error).splitlines()), "it cannot be read")) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # A pickle is a little program. What torch says of it advises to trust it.
        raise ValueError("it is cut off, or does not hold weights alone") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise ValueError("it holds no weights by name")
    return found
