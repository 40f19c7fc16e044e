"""Streamed and prepared text compared with what a model on the CPU consumes: pace by workers, resuming, memory.

    dla-train prepare corpus.parquet --out tokens --tokenizer tokenizer.json
    python data/benchmarks/bench_data_modules.py --text corpus.parquet --tokens tokens

Both are opened as a recipe's data, through their DataModules. The model is the largest recipe that asks for no GPU,
trained for a few steps. For the memory, streaming gets a corpus of 20 times the budget, made here of the same text;
prepared tokens have the budget of a twentieth of their size. Memory is what the process holds beyond its imports,
without the files that are mapped and can be dropped at any time.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from bench_streams import near_the_end, processor

from dla_data.readers import Source
from dla_data.streams.parts import StreamParts
from dla_data.tokenizer import load_tokenizer, vocabulary_of
from dla_train.config.catalog import find, shipped
from dla_train.config.load import LoadedRecipe, load
from dla_train.data.corpus import open_data
from dla_train.data.streaming import StreamingDataModule
from dla_train.models import LanguageModel
from dla_train.runs.metrics_file import TRAIN, read_rows

_TIMES = 20  # how many times the budget a corpus is large
_STEPS = 12  # of the model, of which the first ones are left out


def main() -> None:
    """Measure, and print one line for each."""
    options = _options()
    print(f"machine: {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {_load()}")
    prepared = f"data={{kind: prepared, path: {options.tokens}, verify: false, "
    kinds = {
        "prepared": prepared,
        "prepared, documents apart": f"{prepared}documents: separate, ",
        "streaming": _streaming(options, options.text),
    }
    print(f"text: {_size(options.text):,.0f} MB on disk, tokens: {_size(options.tokens):,.0f} MB on disk")
    pace = _model_pace(options)
    for kind, section in kinds.items():
        for workers in options.workers:
            print(
                f"{kind}, {workers} workers: {_pace(_loaded(section, options, workers), options.seconds, pace)}",
                flush=True,
            )
    for kind, section in kinds.items():
        print(f"{kind}, going on at 90 %: {_at_90_percent(_loaded(section, options, 0))}", flush=True)
    spawn = multiprocessing.get_context("spawn")  # a process that has freed no memory yet
    with spawn.Pool(1, maxtasksperchild=1) as pool, tempfile.TemporaryDirectory() as folder:
        large = _write_large(options.text, Path(folder) / "large.jsonl", _TIMES * options.budget)
        for kind, section, path in [
            ("prepared", kinds["prepared"], options.tokens),
            ("streaming", _streaming(options, large), large),
        ]:
            budget = _size(path) / _TIMES
            grown = pool.apply(_memory, (section, options))
            verdict = "within" if grown <= budget else "ABOVE"
            print(
                f"{kind}, memory: {grown:,.1f} MB for {_size(path):,.0f} MB on disk, {verdict} the budget of a "
                f"{_TIMES}th, {budget:,.1f} MB"
            )
    print(_load())


def _streaming(options: argparse.Namespace, text: str) -> str:
    source = f"{{path: {text}, text_field: {options.text_field}}}"
    tokenizer = f"{options.tokens}/tokenizer.json"
    return (
        f"data={{kind: streaming, tokenizer: {tokenizer}, streams: {options.streams}, sources: {{corpus: {source}}}, "
    )


def _loaded(section: str, options: argparse.Namespace, workers: int) -> LoadedRecipe:
    """A recipe with that data and endless steps."""
    vocabulary = vocabulary_of(load_tokenizer(f"{options.tokens}/tokenizer.json"))
    rest = f"vocab_size: {vocabulary}, window: {options.window}, workers: {workers}}}"
    batch = (f"training.global_batch={options.streams}", f"training.micro_batch={options.micro_batch}")
    return load(find("tiny"), [section + rest, *batch, "training.steps=1000000", "training.validation_windows=4"])


def _opened(loaded: LoadedRecipe, step: int = 0) -> Any:
    """The DataModule as a trainer on one process would hold it."""
    data = open_data(loaded)
    training = loaded.recipe.training
    accumulate = training.global_batch // training.micro_batch
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, world_size=1, global_step=step, accumulate_grad_batches=accumulate
    )
    return data


def _pace(loaded: LoadedRecipe, seconds: float, model: float) -> str:
    """Seconds to the first batch and tokens per second once every stream is open, in words."""
    began = time.perf_counter()
    batches = iter(_opened(loaded).train_dataloader())
    next(batches)
    first = time.perf_counter() - began
    training = loaded.recipe.training
    for _ in range(training.global_batch // training.micro_batch - 1):
        next(batches)
    began, taken = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        taken += 1
    pace = taken * training.micro_batch * loaded.recipe.data.window / (time.perf_counter() - began)
    del batches
    return f"first batch after {first:.2f} s, then {pace:,.0f} tokens/s, {pace / model:,.0f} times what the model takes"


def _at_90_percent(loaded: LoadedRecipe) -> str:
    """How long a run resumed at 90 % waits, in words; finding where it stands is not timed."""
    data, step = _opened(loaded), 0
    if isinstance(data, StreamingDataModule):
        (text,) = data._texts
        parts = StreamParts(text.shards, data.config.streams, loaded.recipe.seed)
        states = {stream: [state.plain()] for stream, state in near_the_end(text, parts, data.config.streams, 0.9)}
    else:
        step, states = int(0.9 * data.order.window_count / loaded.recipe.training.global_batch), None
    began = time.perf_counter()
    data = _opened(loaded, step)
    opened = time.perf_counter() - began
    if states is not None:
        data.load_state_dict({"step": step, "streams": states})
    batches = iter(data.train_dataloader())
    next(batches)
    return f"opened after {opened:.2f} s, first batch after {time.perf_counter() - began:.2f} s"


def _memory(section: str, options: argparse.Namespace) -> float:
    """MB by which the memory of this process grows while it opens the data and takes batches from all streams."""
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    loaded = _loaded(section, options, 0)
    before, most = _anonymous(), 0.0
    batches = iter(_opened(loaded).train_dataloader())
    began, taken = time.perf_counter(), 0
    while taken < 2 * options.streams // options.micro_batch or time.perf_counter() - began < options.seconds:
        next(batches)
        taken += 1
        most = max(most, _anonymous())
    return most - before


def _anonymous() -> float:
    """MB of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def _model_pace(options: argparse.Namespace) -> float:
    """Tokens per second of the largest recipe that trains without a GPU."""
    recipes = [load(file) for file in shipped()]
    sizes: dict[str, int] = {}
    for loaded in recipes:
        if loaded.recipe.training.accelerator != "gpu":
            with torch.device("meta"):
                model = LanguageModel(loaded.recipe.model)
            sizes[loaded.name] = sum(parameter.numel() for parameter in model.parameters())
    name = max(sizes, key=lambda name: sizes[name])
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"training.steps={_STEPS}", "schedule.warmup=1", "report.prompt=null", "report.bigram=false"]
        command = [sys.executable, "-m", "dla_train", "fit", "--recipe", name, "--run-dir", f"{folder}/run", *settings]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        rows = read_rows(Path(folder) / "run" / "metrics.csv")
    pace = median(row["tokens_per_second"] for row in rows if row["split"] == TRAIN and row["step"] > _STEPS // 3)
    print(f"model: {name}, the largest recipe for the CPU ({sizes[name]:,} parameters), takes {pace:,.0f} tokens/s")
    return pace


def _write_large(text: str, path: Path, megabytes: float) -> str:
    """The same documents as JSON lines, again and again with another first line, until there are so many megabytes."""
    documents = [text for reader in Source(path=text).readers() for _, text in reader.documents()]
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            file.write(json.dumps({"text": f"# {number}\n{documents[number % len(documents)]}"}) + "\n")
            number += 1
    return str(path)


def _size(path: str) -> float:
    """MB on disk of a file, or of all below a folder."""
    root = Path(path)
    files = [root] if root.is_file() else [file for file in root.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}; above 1, cores were shared with other work"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="as data.sources.NAME.path in a recipe")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--tokens", required=True, help="what `dla-train prepare` made of it")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure each pace")
    parser.add_argument("--budget", type=float, default=150.0, help="MB of memory for streaming (default: 150)")
    return parser.parse_args()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main()
