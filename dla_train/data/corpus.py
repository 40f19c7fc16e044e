"""Builds the data module of the recipe's `data` section."""

from collections.abc import Mapping

from dla_data.corpora import CorpusSource, StdlibCorpus, TextCorpus
from dla_data.errors import DataError
from dla_data.prepare import prepare_corpus
from dla_train.config.load import LoadedRecipe
from dla_train.data.config import StdlibData, TextData
from dla_train.data.places import data_problem
from dla_train.data.prepared import PreparedDataModule, open_prepared
from dla_train.data.prepared_config import PreparedData
from dla_train.data.recipe_data import RecipeData
from dla_train.data.streaming import StreamingDataModule
from dla_train.data.streaming_config import StreamingData
from dla_train.data.synthetic import SyntheticDataModule
from dla_train.data.synthetic_config import SyntheticData
from dla_train.data.windows import WindowsDataModule


def open_data(loaded: LoadedRecipe, verify: bool = True, revisions: Mapping[str, str] | None = None) -> RecipeData:
    """The data that the recipe describes; text of kinds `stdlib` and `text` comes from the cache or is prepared now.

    Args:
        loaded: the recipe. verify: false compares only sizes of prepared shards, whatever the recipe says.
        revisions: which commits of hub data sets to read (`dla_train.data.revisions`); those of other sources are
            looked up.

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
            raise data_problem(loaded, str(error)) from error
    if isinstance(recipe.data, PreparedData):
        return _open_prepared(loaded, recipe.data, verify)
    try:
        corpus = prepare_corpus(_source(recipe.data), recipe.data.vocab_size)
    except DataError as error:
        raise data_problem(loaded, str(error)) from error
    try:
        return WindowsDataModule(corpus, recipe.data, recipe.training, recipe.seed)
    except DataError as error:
        raise loaded.problem("data.window", str(error)) from error


def _open_prepared(loaded: LoadedRecipe, data: PreparedData, verify: bool) -> RecipeData:
    try:
        return PreparedDataModule(open_prepared(data, verify), data, loaded.recipe.training, loaded.recipe.seed)
    except DataError as error:
        raise data_problem(loaded, str(error)) from error


def _source(config: StdlibData | TextData) -> CorpusSource:
    if isinstance(config, TextData):
        return TextCorpus(config.path, config.suffixes)
    return StdlibCorpus()
