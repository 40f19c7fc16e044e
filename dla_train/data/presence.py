"""Whether the text of a recipe exists, as far as that can be checked without reading it and without torch."""

from pathlib import Path

from dla_data.corpora import text_documents
from dla_data.errors import DataError
from dla_data.readers import Source
from dla_data.shards.prepared_manifest import PreparedManifest
from dla_data.tokenizer import load_tokenizer
from dla_train.config.load import LoadedRecipe
from dla_train.data.config import TextData
from dla_train.data.places import data_problem
from dla_train.data.prepared_config import PreparedData
from dla_train.data.streaming_config import StreamingData


def require_text(loaded: LoadedRecipe) -> None:
    """Look for the files and folders that the recipe's `data` names; hub data sets are not checked.

    Raises:
        UsageError: one is missing, or holds no files of a known kind; says where it was set.
    """
    data = loaded.recipe.data
    try:
        if isinstance(data, TextData):
            text_documents(data.path, data.suffixes)
        elif isinstance(data, PreparedData):
            for source in data.folders.values():
                PreparedManifest.read(Path(source.path))
        elif isinstance(data, StreamingData):
            if not Path(data.tokenizer).is_file():
                load_tokenizer(data.tokenizer)  # raises the error
            for one in data.sources.values():
                source = Source(path=one.path, text_field=one.text_field, config=one.config, split=one.split)
                if source.hub is None and not source.path.startswith("hf:"):
                    source.readers()
    except DataError as error:
        raise data_problem(loaded, str(error)) from error
