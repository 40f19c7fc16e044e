"""Finds the place in the recipe of the value that a data error is about."""

import re
from pathlib import Path

from dla_data.readers import Source
from dla_train.config.load import LoadedRecipe
from dla_train.data.config import TextData
from dla_train.data.prepared_config import PreparedData
from dla_train.data.streaming_config import StreamingData
from dla_train.errors import UsageError

_ABSENT = re.compile(r"no (?:corpus|prepared tokens|source) at (.+?): ")


def data_problem(loaded: LoadedRecipe, text: str) -> UsageError:
    """The error `text`, attributed to the key of `data` that it is about; to none if it is about something outside the
    recipe, such as a cache that cannot be written."""
    data = loaded.recipe.data
    if (match := _ABSENT.search(text)) and not Path(match[1]).is_absolute():
        text += f" A relative path counts from the current folder, {Path.cwd()}."
    if isinstance(data, PreparedData):
        return loaded.problem(_prepared_key(data, text), text)
    if isinstance(data, StreamingData):
        return loaded.problem(_streaming_key(data, text), text)
    if f"{data.vocab_size:,}" in text and "vocabulary" in text:
        return loaded.problem("data.vocab_size", text)
    if isinstance(data, TextData) and data.path in text:
        return loaded.problem("data.path", text)
    return UsageError(text)


def _prepared_key(data: PreparedData, text: str) -> str:
    if "vocabulary is set" in text:
        return "data.vocab_size"
    if "too few for one window" in text:
        return "data.window"
    if data.tokenizer is not None and f"{data.tokenizer} is" in text:
        return "data.tokenizer"
    if data.path is not None:
        return "data.path"
    paths = {name: re.search(rf"{re.escape(source.path)}(?![\w-])", text) for name, source in data.folders.items()}
    found = [(place.start(), name) for name, place in paths.items() if place]
    return f"data.sources.{min(found)[1]}" if found else "data.sources"


def _streaming_key(data: StreamingData, text: str) -> str:
    """The key of the tokenizer, or of the source whose path or name is in the message."""
    if data.tokenizer in text:
        return "data.vocab_size" if "vocabulary is set" in text else "data.tokenizer"
    for name, source in data.sources.items():
        hub = Source(path=source.path).hub
        place = hub.name if hub else source.path.removeprefix("hf:")
        if place in text or text.startswith(f"{name}: "):
            return f"data.sources.{name}"
    return "data"
