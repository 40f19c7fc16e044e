"""From the recipe's `data` section to a data module."""

import re
from collections.abc import Mapping

from dla_data.corpora import CorpusSource, StdlibCorpus, TextCorpus
from dla_data.errors import DataError
from dla_data.prepare import prepare_corpus
from dla_data.readers import Source
from dla_train.config.load import LoadedRecipe
from dla_train.data.config import StdlibData, TextData
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData
from dla_train.data.recipe_data import RecipeData
from dla_train.data.streaming import StreamingDataModule
from dla_train.data.streaming_config import StreamingData
from dla_train.data.synthetic import SyntheticDataModule
from dla_train.data.synthetic_config import SyntheticData
from dla_train.data.windows import WindowsDataModule
from dla_train.errors import UsageError


def open_data(loaded: LoadedRecipe, verify: bool = True, revisions: Mapping[str, str] | None = None) -> RecipeData:
    """The data that the recipe describes; text that must be prepared comes from the cache or is prepared now.

    Args:
        loaded: the recipe. verify: false compares only sizes of prepared shards, whatever the recipe says.
        revisions: commits to read of data sets of the hub (`dla_train.data.revisions`); the others are looked up.

    Raises:
        UsageError: the text is missing, not UTF-8, or too little for vocabulary or window; says where that was set.
    """
    recipe = loaded.recipe
    if isinstance(recipe.data, SyntheticData):
        return SyntheticDataModule(recipe.data, recipe.training, recipe.seed)
    if isinstance(recipe.data, StreamingData):
        try:
            return StreamingDataModule(recipe.data, recipe.training, recipe.seed, revisions)
        except DataError as error:
            raise _streaming_problem(loaded, recipe.data, str(error)) from error
    if isinstance(recipe.data, PreparedData):
        return _open_prepared(loaded, recipe.data, verify)
    try:
        corpus = prepare_corpus(_source(recipe.data), recipe.data.vocab_size)
    except DataError as error:
        raise _data_problem(loaded, str(error)) from error
    try:
        return WindowsDataModule(corpus, recipe.data, recipe.training, recipe.seed)
    except DataError as error:
        raise loaded.problem("data.window", str(error)) from error


def _open_prepared(loaded: LoadedRecipe, data: PreparedData, verify: bool) -> RecipeData:
    try:
        return PreparedDataModule(open_prepared(data, verify), data, loaded.recipe.training, loaded.recipe.seed)
    except DataError as error:
        raise loaded.problem(_prepared_key(data, str(error)), str(error)) from error


def _prepared_key(data: PreparedData, text: str) -> str:
    """Where the value was written that the message is about."""
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


def _source(config: StdlibData | TextData) -> CorpusSource:
    if isinstance(config, TextData):
        return TextCorpus(config.path, config.suffixes)
    return StdlibCorpus()


def _data_problem(loaded: LoadedRecipe, text: str) -> UsageError:
    """Say where the value was written that the message is about; a cache that cannot be written is in no recipe."""
    data = loaded.recipe.data
    if f"{data.vocab_size:,}" in text and "vocabulary" in text:
        return loaded.problem("data.vocab_size", text)
    if isinstance(data, TextData) and data.path in text:
        return loaded.problem("data.path", text)
    return UsageError(text)


def _streaming_problem(loaded: LoadedRecipe, data: StreamingData, text: str) -> UsageError:
    """The same for streamed text: the tokenizer, or the source whose path or name is in the message."""
    if data.tokenizer in text:
        return loaded.problem("data.vocab_size" if "vocabulary is set" in text else "data.tokenizer", text)
    for name, source in data.sources.items():
        hub = Source(path=source.path).hub
        place = hub.name if hub else source.path.removeprefix("hf:")
        if place in text or text.startswith(f"{name}: "):
            return loaded.problem(f"data.sources.{name}", text)
    return loaded.problem("data", text)
