"""From the recipe's `data` section to token files."""

from dla_data.corpora import CorpusSource, StdlibCorpus, TextCorpus
from dla_data.manifest import TokenManifest
from dla_data.prepare import PreparedCorpus, prepare_corpus
from dla_train.data.config import DataConfig, TextData


def prepare(config: DataConfig) -> PreparedCorpus:
    """The tokens that `config` describes, from the cache or made now.

    Raises:
        DataError: the text is missing, empty, not UTF-8 or too little for the vocabulary.
    """
    return prepare_corpus(_source(config), config.vocab_size)


def fingerprints(corpus: PreparedCorpus) -> dict[str, str]:
    """What must stay equal while a run is stopped, by name."""
    manifest: TokenManifest = corpus.train.manifest
    return {"tokenizer": manifest.tokenizer, "training text": manifest.files["tokens.bin"].sha256}


def _source(config: DataConfig) -> CorpusSource:
    if isinstance(config, TextData):
        return TextCorpus(config.path, config.suffixes)
    return StdlibCorpus()
