"""The configuration of a language model of dla-train, in the form that transformers needs."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class DlaConfig(PretrainedConfig):
    """Holds the configuration of a `LanguageModel` as plain values.

    Args:
        language_model: the fields of `ModelConfig`. None only in the default that transformers compares with.
        fields: those of every transformers configuration.
    """

    model_type = "dla"

    def __init__(self, language_model: dict[str, Any] | None = None, **fields: Any) -> None:
        self.language_model = language_model
        if language_model is not None:
            for theirs, ours in (
                ("vocab_size", "vocab_size"),
                ("hidden_size", "hidden"),
                ("num_hidden_layers", "layers"),
                ("tie_word_embeddings", "tie_embeddings"),
            ):
                fields[theirs] = language_model[ours]
        super().__init__(**fields)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
        ):  # some versions leave to us what they do not use
            if name in fields:
                setattr(self, name, fields[name])
