"""How fast `dla-train prepare` is with one and two workers, against `tokenizers` alone in as many processes.

    python data/benchmarks/prepare_throughput.py [--megabytes 24] [--repeats 3]

The text is the source of Python's standard library as JSON lines, the tokenizer byte-level BPE of 8,192 entries. Each
repeat runs the four one after another; the best of each counts, because other work on the machine only ever slows one
down. Preparing includes everything: starting processes, reading, parsing, encoding, checksums, writing and flushing.
`tokenizers` alone in two processes, half of the text each, that share nothing is what two cores of this machine can do:
where they share caches and memory with each other or with somebody else, it is less than twice one.
Processor time is shown too: it says what the work costs where the cores are shared with other work.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # "alone" is one core, as a worker is

from dla_data.corpora import stdlib_documents
from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

_PIECES = 64  # texts per call of `tokenizers` alone


def main() -> None:
    """Print megabytes of text per second, and the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=24, help="of text (default: 24)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the best counts (default: 3)")
    options = parser.parse_args()
    texts = _texts(options.megabytes * 1_000_000)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        save_tokenizer(train_tokenizer(texts[:400], 8192), folder / "tokenizer.json")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        print(f"{size:.1f} MB of text, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
        best: dict[str, float] = {}
        for repeat in range(options.repeats):
            costs: dict[str, _Cost] = {}
            for workers in (1, 2):
                costs[f"tokenizers, {workers} process{'es'[: 2 * workers - 2]}"] = _alone(folder, texts, workers)
            for workers in (1, 2):
                costs[f"prepare, {workers} worker{'s'[: workers - 1]}"] = _prepare(folder, workers, repeat)
            for what, cost in costs.items():
                best[what] = max(size / cost.seconds, best.get(what, 0.0))
                print(
                    f"{what:<24} {size / cost.seconds:5.2f} MB/s, processor time {cost.encoding:.1f} s encoding and "
                    f"{cost.rest:.1f} s reading and writing: {cost.cores:.2f} cores busy",
                    flush=True,
                )
    alone, pair, one, two = best.values()
    print(f"best: one worker {one / alone:.0%} of tokenizers alone; two workers {two / one:.2f} x one")
    print(f"two processes of tokenizers alone {pair / alone:.2f} x one; two workers {two / pair:.0%} of them")
    print(f"load after {os.getloadavg()[0]:.1f}: above 1, cores were shared with other work")


def _texts(size: int) -> list[str]:
    """The standard library, again and again with another first line, until there are `size` bytes."""
    texts: list[str] = []
    round_number = 0
    while size > 0:
        for document in stdlib_documents():
            if document.text.strip() and size > 0:
                texts.append(f"# {round_number} {document.name}\n{document.text}")
                size -= len(texts[-1])
        round_number += 1
    return texts


class _Cost(NamedTuple):
    """Elapsed seconds, and processor seconds in children that encode and in this process."""

    seconds: float
    encoding: float
    rest: float = 0.0

    @property
    def cores(self) -> float:
        """Cores kept busy: other work on the machine makes everything longer, but changes this little."""
        return (self.encoding + self.rest) / self.seconds


def _alone(folder: Path, texts: list[str], processes: int) -> _Cost:
    """From when all processes are ready to when the last one is done; what they cost together."""
    start = multiprocessing.get_context("spawn")
    ready, costs = start.Barrier(processes + 1), start.SimpleQueue()
    path = folder / "tokenizer.json"
    encoders = [start.Process(target=_encode, args=(path, texts[n::processes], ready, costs)) for n in range(processes)]
    for encoder in encoders:
        encoder.start()
    ready.wait()
    began = time.perf_counter()
    processor = sum(costs.get() for _ in encoders)
    seconds = time.perf_counter() - began
    for encoder in encoders:
        encoder.join()
    return _Cost(seconds, processor)


def _encode(path: Path, texts: list[str], ready: Barrier, costs: "multiprocessing.SimpleQueue[float]") -> None:
    tokenizer = load_tokenizer(path)
    ready.wait()
    processor = time.process_time()
    for begin in range(0, len(texts), _PIECES):
        tokenizer.encode_batch_fast(texts[begin : begin + _PIECES], add_special_tokens=False)
    costs.put(time.process_time() - processor)


def _prepare(folder: Path, workers: int, repeat: int) -> _Cost:
    out = folder / f"out-{repeat}-{workers}"
    options = PrepareOptions(tokenizer=folder / "tokenizer.json", workers=workers, shard_tokens=2_000_000)
    began, before = time.perf_counter(), os.times()
    prepare_shards([Source(path=str(folder / "text.jsonl"))], out, options)
    seconds, after = time.perf_counter() - began, os.times()
    reading = after.user + after.system - before.user - before.system
    encoding = after.children_user + after.children_system - before.children_user - before.children_system
    return _Cost(seconds, encoding, reading)


if __name__ == "__main__":
    main()
