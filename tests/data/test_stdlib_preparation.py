"""The corpus that the demonstration trains on, prepared for real (about 20 seconds on one core)."""

from pathlib import Path

from dla_data.corpora import StdlibCorpus
from dla_data.ngram import BigramModel
from dla_data.prepare import prepare_corpus
from dla_data.windows import PackedWindows


def test_the_standard_library_is_enough_to_train_on(tmp_path: Path) -> None:
    prepared = prepare_corpus(StdlibCorpus(), 4096, tmp_path)
    assert 2_500_000 < prepared.train.tokens < 4_500_000
    assert 0.03 < prepared.validation.tokens / prepared.train.tokens < 0.07
    assert len(PackedWindows(prepared.train, 16_384)) > 100
    windows = PackedWindows(prepared.validation, 256)
    tokens = prepared.validation.read(0, len(windows) * 256 + 1)
    loss = BigramModel.fit(prepared.train.read(0, prepared.train.tokens), 4096).nll(tokens[:-1], tokens[1:])
    assert 3.8 < loss < 4.8
