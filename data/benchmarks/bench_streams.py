"""Time streamed text: opening, the first batch, tokens per second by workers, and going on at 90 % of an epoch.

    python data/benchmarks/bench_streams.py --path corpus.parquet --tokenizer tokenizer.json

Prints one line per measurement and the machine. Peak memory is that of this process and of its largest worker.
"""

import argparse
import json
import logging
import os
import platform
import resource
import time
from collections.abc import Iterator
from itertools import count

from dla_data.readers import Source
from dla_data.streams.batches import StreamBatches
from dla_data.streams.parts import StreamParts
from dla_data.streams.positions import StreamPositions
from dla_data.streams.reader_text import ReaderText
from dla_data.streams.share import Share
from dla_data.streams.token_stream import StreamState
from dla_data.streams.windows import StreamedSource, StreamedText
from dla_data.tokenizer import load_tokenizer


def main() -> None:
    """Measure, and print."""
    options = _options()
    print(f"machine: {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    began = time.perf_counter()
    text = ReaderText("corpus", Source(path=options.path, text_field=options.text_field).readers(), options.streams)
    streamed = StreamedText(
        [StreamedSource(text=text)],
        load_tokenizer(options.tokenizer),
        window=options.window,
        streams=options.streams,
        seed=0,
    )
    parts = StreamParts(text.shards, options.streams, seed=0)
    print(
        f"corpus: {text.files} files, {(text.bytes or 0) / 1e6:,.1f} MB on disk; {text.shards} shards, each in "
        f"{parts.cut} parts, for {options.streams} streams; opened in {time.perf_counter() - began:.2f} s"
    )
    for workers in options.workers:
        positions = StreamPositions(1, options.streams)
        print(f"{workers} workers: {_run(streamed, positions, workers, options)}")
    print(
        f"peak memory: {_peak(resource.RUSAGE_SELF):,.0f} MB, largest worker {_peak(resource.RUSAGE_CHILDREN):,.0f} MB"
    )

    states = {stream: [state.plain()] for stream, state in near_the_end(text, parts, options.streams, 0.9)}
    print(f"state of all streams at 90 % of an epoch: {len(json.dumps(states)):,} bytes of JSON")
    for workers in options.workers:
        positions = StreamPositions(1, options.streams)
        positions.restore(0, states)
        print(f"going on at 90 %, {workers} workers: {_run(streamed, positions, workers, options)}")
    print(
        f"peak memory: {_peak(resource.RUSAGE_SELF):,.0f} MB, largest worker {_peak(resource.RUSAGE_CHILDREN):,.0f} MB"
    )


def _run(text: StreamedText, positions: StreamPositions, workers: int, options: argparse.Namespace) -> str:
    """Seconds to the first batch and until every stream was read once, and the pace from then on, in words."""
    share = Share(streams=options.streams, global_batch=options.streams, workers=workers)
    batches = StreamBatches(text, share, positions, micro_batch=options.micro_batch, first_step=0, last_step=1 << 20)
    began = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    first = time.perf_counter() - began
    per_step = options.streams // options.micro_batch
    for _ in range(per_step - 1):  # open every stream
        next(iterator)
    opened = time.perf_counter() - began
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        next(iterator)
        taken += 1
    pace = taken * options.micro_batch * options.window / (time.perf_counter() - began)
    del iterator
    return f"first batch after {first:.2f} s, all streams open after {opened:.2f} s, then {pace:,.0f} tokens/s"


def near_the_end(text: ReaderText, parts: StreamParts, streams: int, share: float) -> Iterator[tuple[int, StreamState]]:
    """Each stream's state at `share` of its documents of epoch 0, found without tokenizing."""
    positions = [[position for position, _ in text.documents(shard, None)] for shard in range(text.shards)]
    for stream in range(streams):
        documents = []
        for number in count():
            if (part := parts.part(stream, 0, number)) is None:
                break
            for ordinal in range(part.remainder, len(positions[part.shard]), parts.cut):
                documents.append(StreamState(0, number, ordinal, positions[part.shard][ordinal]))
        yield stream, documents[int(share * len(documents))]


def _peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def processor() -> str:
    """The name of the machine's processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="as data.sources.NAME.path in a recipe")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure each pace")
    return parser.parse_args()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main()
