"""Streams: the same windows in the same order for any ranks, workers and interruptions, and nothing lost or twice."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dla_data.errors import DataError, raise_or_return
from dla_data.mixture import Mixture
from dla_data.streams.batches import StreamBatches
from dla_data.streams.parts import StreamParts
from dla_data.streams.positions import StreamPositions
from dla_data.streams.share import Share
from dla_data.streams.token_stream import StreamState, TokenStream
from dla_data.streams.windows import StreamedSource, StreamedText, StreamWindows
from dla_data.tokenizer import encode_pieces, train_tokenizer

WINDOW, GLOBAL_BATCH, STREAMS = 20, 8, 16


class InMemory:
    """Documents in shards; positions are ordinals, and every document read is counted."""

    def __init__(self, name, shards):
        self.name = name
        self.texts = shards
        self.read = 0

    @property
    def shards(self):
        return len(self.texts)

    def documents(self, shard, start):
        for ordinal in range(start or 0, len(self.texts[shard])):
            self.read += 1
            yield ordinal, self.texts[shard][ordinal]


def _shards(name, shards, documents, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 60, size=(shards, documents))
    return [
        [
            " ".join(f"{name}{shard}.{number}.{word}" for word in range(lengths[shard, number]))
            for number in range(documents)
        ]
        for shard in range(shards)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(texts) for texts in _shards("a", 4, 20)], 300)


@pytest.fixture
def text(tokenizer):
    """A mixture of a source with more shards than streams and one with fewer."""
    sources = [
        StreamedSource(text=InMemory("many", _shards("a", 32, 2)), weight=0.6),
        StreamedSource(text=InMemory("few", _shards("b", 2, 16)), weight=0.4),
    ]
    return StreamedText(sources, tokenizer, window=WINDOW, streams=STREAMS, seed=3)


def _not_a_text(text):
    return False


def _run(text, states, first, last, world_size=1, workers=0, micro_batch=2, global_batch=GLOBAL_BATCH, before=None):
    """The global batches of steps `first` to `last`, put together from all ranks, and the states after them; `before`
    them so many windows."""
    by_rank, saved = [], {}
    for rank in range(world_size):
        positions = StreamPositions(len(text.sources), text.streams)
        if states is not None:
            positions.restore(first, {int(stream): state for stream, state in json.loads(states).items()})
        share = Share(streams=STREAMS, global_batch=global_batch, rank=rank, world_size=world_size, workers=workers)
        batches = StreamBatches(
            text, share, positions, micro_batch=min(micro_batch, share.per_step), first_step=first, last_step=last,
            windows_before=before,
        )  # fmt: skip
        windows = torch.cat(list(batches))
        assert len(windows) == (last - first) * share.per_step
        by_rank.append(windows.unflatten(0, (last - first, -1)))
        saved |= positions.at(last, share.owned_streams())
    whole = torch.stack(by_rank, dim=2).flatten(1, 2)  # [steps, global batch, window + 1], ranks in turn
    return whole, json.dumps(saved)


def _chain(batches):
    digest = hashlib.sha256()
    for batch in batches:
        digest = hashlib.sha256(digest.digest() + batch.numpy().tobytes())
    return digest.hexdigest()


def test_any_ranks_and_workers_give_the_same_chain_of_batches(text):
    straight, _ = _run(text, None, 0, 6)
    for world_size, workers in [(2, 0), (4, 0), (8, 0), (1, 1), (1, 4), (2, 4), (4, 2)]:
        other, _ = _run(text, None, 0, 6, world_size, workers)
        assert _chain(other) == _chain(straight), f"{world_size} ranks, {workers} workers"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_steps_of_another_batch_go_on_where_the_others_ended(text, world_size, workers):
    straight, _ = _run(text, None, 0, 6)
    before, states = _run(text, None, 0, 3)
    half = GLOBAL_BATCH // 2
    after, _ = _run(text, states, 3, 9, world_size, workers, global_batch=half, before=3 * GLOBAL_BATCH)
    windows = torch.cat([before.flatten(0, 1), after.flatten(0, 1)])
    assert torch.equal(windows, straight.flatten(0, 1))


def test_ranks_share_what_follows_a_number_of_windows_that_they_do_not_divide(text):
    straight, _ = _run(text, None, 0, 6)
    before, states = _run(text, None, 0, 3, micro_batch=1, global_batch=5)
    after, _ = _run(text, states, 3, 6, world_size=2, global_batch=8, before=15)
    expected = straight.flatten(0, 1)[15 : 15 + 3 * 8].unflatten(0, (3, 8))
    assert torch.equal(before.flatten(0, 1), straight.flatten(0, 1)[:15])
    for found, wanted in zip(after.tolist(), expected.tolist(), strict=True):
        assert sorted(found) == sorted(wanted), "window 15 is the second rank's, which comes last here"


def test_workers_that_are_not_forked_give_the_same_windows(tokenizer):
    """Such a worker has a pickled copy of the tokenizer; Python 3.14 starts them so by default."""
    documents = [[f"before <|endoftext|> after {number}" for number in range(8)] for _ in range(4)]
    source = StreamedSource(text=InMemory("literal", documents))
    text = StreamedText([source], tokenizer, window=WINDOW, streams=4, seed=0)

    def windows(workers):
        share = Share(streams=4, global_batch=4, workers=workers)
        loader = DataLoader(
            StreamWindows(text, share, StreamPositions(1, 4), 0, 12),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
        )
        return [raise_or_return(item).tokens.tolist() for item in loader]

    assert windows(2) == windows(0)


def test_a_run_cut_up_with_other_ranks_and_workers_goes_on_to_the_last_token(text):
    steps = 200
    straight, end = _run(text, None, 0, steps)
    epochs = [state[0] for of_sources in json.loads(end).values() for state in of_sources]
    assert min(epochs) >= 1, "the test must go beyond the first epoch"

    pieces, states, first = [], None, 0
    for last, world_size, workers in [(7, 1, 2), (30, 2, 1), (31, 4, 0), (32, 4, 4), (90, 2, 0), (steps, 1, 4)]:
        batches, states = _run(text, states, first, last, world_size, workers, micro_batch=1 + last % 2)
        pieces.append(batches)
        first = last
    assert _chain(torch.cat(pieces)) == _chain(straight)
    assert json.loads(states) == json.loads(end)


def test_each_epoch_holds_every_document_once_and_in_another_order(tokenizer):
    source = InMemory("few", _shards("b", 3, 60))
    parts = StreamParts(source.shards, STREAMS, seed=1)
    epochs = [
        [
            (part.shard, ordinal)
            for stream in range(STREAMS)
            for part in itertools.takewhile(bool, (parts.part(stream, epoch, number) for number in itertools.count()))
            for ordinal in range(part.remainder, 60, parts.cut)
        ]
        for epoch in range(3)
    ]
    everything = sorted((shard, ordinal) for shard in range(3) for ordinal in range(60))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("shards", [1, 2, 3, 15, 16, 17, 61, 64, 65, 1000])
def test_parts_are_dealt_out_evenly(shards):
    parts = StreamParts(shards, 64, seed=0)
    numbers = range(parts.cut * shards // 64 + 2)
    owned = [sum(parts.part(stream, 0, number) is not None for number in numbers) for stream in range(64)]
    assert sum(owned) == shards * parts.cut
    assert min(owned) >= 1
    assert max(owned) * 64 <= 1.125 * sum(owned)


def test_a_stream_is_its_documents_one_after_another(tokenizer):
    """Against the plain definition: all documents of the parts, each with its end, cut at multiples of the window."""
    source = InMemory("few", _shards("b", 3, 60))
    parts = StreamParts(source.shards, STREAMS, seed=1)
    tokens = []
    for number in itertools.count():
        if (part := parts.part(5, 0, number)) is None:
            break
        for document in source.texts[part.shard][part.remainder :: parts.cut]:
            tokens += [*tokenizer.encode(document).ids, 0]
    stream = TokenStream(source, parts, 5, tokenizer, StreamState(), repeat=False)
    for begin in range(0, len(tokens) - WINDOW, WINDOW):
        assert stream.take(WINDOW).tolist() == tokens[begin : begin + WINDOW + 1]
    with pytest.raises(DataError, match="few is at its end for stream 5 of 16, and it is not to be repeated"):
        stream.take(WINDOW)


def test_a_long_document_is_entered_at_the_piece_where_the_stream_stood(tokenizer, monkeypatch):
    monkeypatch.setattr("dla_data.tokenizer._PIECE_CHARACTERS", 400)
    long = "\n".join(f"line {number} of a long document" for number in range(200))
    source = InMemory("long", [[long, "short"]])
    parts = StreamParts(1, 1, seed=0)
    stream = TokenStream(source, parts, 0, tokenizer, StreamState())
    for _ in range(40):
        stream.take(WINDOW)
    assert 0 < stream.state.character < len(long)
    assert stream.state.dropped < 400
    resumed = TokenStream(
        source, parts, 0, tokenizer, StreamState.from_plain(json.loads(json.dumps(stream.state.plain())))
    )
    for _ in range(200):
        assert resumed.take(WINDOW).tolist() == stream.take(WINDOW).tolist()
    pieces = [ids for _, ids, _ in encode_pieces(tokenizer, long)]
    assert len(pieces) > 10
    assert np.concatenate(pieces).tolist() == tokenizer.encode(long).ids


def test_going_on_reads_no_document_before_the_one_under_way(tokenizer):
    source = InMemory("few", _shards("b", 1, 2000))
    parts = StreamParts(1, 1, seed=0)
    stream = TokenStream(source, parts, 0, tokenizer, StreamState())
    while stream.state.document < 1800:
        stream.take(WINDOW)
    source.read = 0
    TokenStream(source, parts, 0, tokenizer, stream.state).take(WINDOW)
    assert source.read <= 10


def test_held_out_texts_are_in_no_window(tokenizer):
    texts = [[f"keep {number}" if number % 3 else f"drop {number}" for number in range(100)]]
    text = StreamedText(
        [StreamedSource(text=InMemory("t", texts))],
        tokenizer,
        window=WINDOW,
        streams=STREAMS,
        seed=0,
        wanted=lambda text: text.startswith("keep"),
    )
    batches, _ = _run(text, None, 0, 20)
    assert "keep" in tokenizer.decode(batches.flatten().tolist())
    assert "drop" not in tokenizer.decode(batches.flatten().tolist())


def test_a_mixture_holds_its_weights_everywhere(text):
    mixture = Mixture([0.6, 0.25, 0.1, 0.05], STREAMS)
    assert (mixture.shares, mixture.cycle) == ([12, 5, 2, 1], 20)
    chosen = np.array([mixture.source(window) for window in range(20 * STREAMS * 3)])
    counts = np.cumsum(chosen[:, None] == np.arange(4), axis=0)
    for windows in (0, 1, 7, 16, 100, 333, len(chosen)):
        expected = counts[windows - 1] if windows else np.zeros(4, int)
        assert mixture.counts(windows).tolist() == expected.tolist()
    ideal = np.arange(1, len(chosen) + 1)[:, None] * np.array(mixture.shares) / mixture.cycle
    assert np.abs(counts - ideal).max() < 5, "at every moment, not in the mean alone"
    by_stream = chosen.reshape(-1, STREAMS)[:20]
    for source, share in enumerate(mixture.shares):
        assert ((by_stream == source).sum(axis=0) == share).all(), "every stream sees all sources by their weights"


def test_golden_values_of_mixtures_and_parts_hold_in_every_version():
    # A change here changes which text every streaming run reads next: none could be resumed any more.
    assert Mixture([0.5, 0.3, 0.2], 4).sources(0, 24).tolist() == [
        0, 1, 2, 0, 2, 1, 0, 0, 0, 1, 0, 2, 1, 2, 0, 0, 1, 0, 0, 1, 1, 0, 2, 1,
    ]  # fmt: skip
    assert Mixture([1, 1, 2], 1).sources(0, 8).tolist() == [2, 0, 1, 2, 2, 0, 1, 2], "of equal ones, the first"
    assert Mixture([1 / 3, 1 / 7, 0.5], 1).shares == [3415, 1463, 5122], "rounded to a cycle of 10,000"
    parts = StreamParts(3, streams=4, seed=5)
    assert parts.cut == 4
    dealt = [[tuple(parts.part(stream, epoch, 0)) for stream in range(4)] for epoch in range(2)]
    assert dealt == [[(0, 2), (2, 1), (2, 3), (0, 3)], [(1, 3), (1, 1), (0, 2), (2, 2)]]


@pytest.mark.parametrize("streams", [1, 7, 64])
@pytest.mark.parametrize("weights", [[1], [1, 1], [0.333, 0.667], [1 / 3, 1 / 7, 0.5], [5] * 8])
def test_counts_are_those_of_the_windows(weights, streams):
    mixture = Mixture(weights, streams)
    chosen = [mixture.source(window) for window in range(3000)]
    for windows in (1, 63, 64, 65, 1000, 3000):
        assert mixture.counts(windows).tolist() == np.bincount(chosen[:windows], minlength=len(weights)).tolist()
    shares = np.array(weights) / sum(weights)
    assert np.abs(np.bincount(chosen, minlength=len(weights)) - 3000 * shares).max() < 30


@pytest.mark.parametrize("weights", [[], [0.5, 0.0], [1, -1], [1, float("nan")], [1, 1e-6]])
def test_weights_that_cannot_be_met_are_refused(weights):
    with pytest.raises(DataError, match="weight"):
        Mixture(weights, 4)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"world_size": 3, "streams": 9}, "global_batch 8 is not a multiple of 3 ranks"),
        ({"workers": 3}, "16 streams cannot be shared by 1 rank x 3 workers: 3 does not divide 16"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not among 2 ranks"),
        ({"workers": -1}, "workers at least 0"),
    ],
)
def test_shares_that_do_not_divide_are_refused(numbers, message):
    with pytest.raises(DataError, match=message):
        Share(**{"streams": 16, "global_batch": 8, **numbers})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_documents_is_said_plainly_from_workers_too(tokenizer, workers):
    text = StreamedText(
        [StreamedSource(text=InMemory("tiny", [["one", "two"]]))], tokenizer, window=4, streams=STREAMS, seed=0,
        wanted=_not_a_text,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"^tiny has no documents: stream \d+ of 16 found none in 448 epochs\. Give"):
        _run(text, None, 0, 40, workers=workers)


def test_few_documents_are_found_by_all_streams_however_often_an_epoch_has_none(tokenizer):
    one = StreamedSource(text=InMemory("one", [["the only text that there is"]]))
    windows, _ = _run(StreamedText([one], tokenizer, window=4, streams=STREAMS, seed=0), None, 0, 40)
    assert windows.shape == (40, GLOBAL_BATCH, 5)


def test_positions_of_other_streams_or_sources_are_refused(text):
    _, states = _run(text, None, 0, 1)
    other = StreamPositions(1, STREAMS)
    with pytest.raises(DataError, match="that of 16 streams, and the recipe sets 16 streams of 1 source"):
        other.restore(1, {int(stream): state for stream, state in json.loads(states).items()})
    with pytest.raises(DataError, match="position of the data at step 7 is not known"):
        other.at(7, range(1))
