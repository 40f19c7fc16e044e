"""A micro experiment: real corpus, tokenizer, model, Trainer and command line; twenty steps take a second or two."""

import contextlib
import gc
import io
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forking.process import ForkedProcess, ForkServer

ENVIRONMENT = dict(os.environ)  # as pytest was started; libraries add to it when they are imported

MICRO_RECIPE = """\
description: a micro model for tests
model:
  vocab_size: ${data.vocab_size}
  hidden: 16
  layers: 2
  mixer:
    kind: mamba2
    heads: 2
    head_dim: 8
    state_dim: 8
    memory: {kind: dynamic, capacity: 4, threshold: 0.9}
data: {kind: text, path: CORPUS, vocab_size: 300, window: 24}
optimizer: {kind: adamw, lr: 1e-2}
schedule: {kind: cosine, warmup: 3}
training: {steps: 20, global_batch: 4, micro_batch: 2, accelerator: cpu, validate_every: 5, validation_windows: 4}
checkpoint: {every: 4}
logging: {console_seconds: 0, tensorboard: false}
report: {prompt: alpha beta, max_tokens: 8}
"""


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


def pytest_collection_finish() -> None:
    """Garbage collections need not look through what was imported and collected: it lives as long as the process."""
    gc.freeze()


@pytest.fixture(scope="session")
def text_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of about 6,000 tokens."""
    words = ["alpha", "beta", "gamma", "delta", "kappa", "omega", "state", "slot", "merge", "token"]
    choose = random.Random(0).choice
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n".join(" ".join(choose(words) for _ in range(9)) for _ in range(600)))
    return path


@pytest.fixture(scope="session")
def micro_recipe(text_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe file `micro.yaml`."""
    path = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    path.write_text(MICRO_RECIPE.replace("CORPUS", str(text_corpus)))
    return path


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these tests keep prepared corpora."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(cache_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Run a command in this process, in `tmp_path`: quick, as everything is imported already."""
    import torch

    from dla_train.__main__ import main

    def run(*arguments: object) -> Finished:
        out, err = io.StringIO(), io.StringIO()
        root = logging.getLogger()
        before = root.handlers[:], root.level, warnings.showwarning, torch.get_num_threads(), warnings.filters[:]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main([str(argument) for argument in arguments])
                except SystemExit as exit:  # --help and --version
                    code = int(exit.code or 0)
        finally:
            root.handlers, level, warnings.showwarning, threads, filters = before
            root.setLevel(level)
            warnings.filters[:] = filters  # type: ignore[index]
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Finished(code, out.getvalue(), err.getvalue())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLA_TRAIN_CACHE", str(cache_directory))
    return run


@pytest.fixture
def run_folder(cli: Callable[..., Finished], micro_recipe: Path) -> None:
    """A run folder `run`, of four steps and without validation."""
    done = cli("fit", "--recipe", micro_recipe, "--run-dir", "run", "training.steps=4", "training.validate_every=null")
    assert done.code == 0, done.err


@pytest.fixture
def start_process(cache_directory: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `python ARGUMENTS` in `tmp_path`; for what only an interpreter of its own can show, as a run then begins
    with imports of 13 s. All else: `fork_process`."""
    environment = {**os.environ, "DLA_TRAIN_CACHE": str(cache_directory), "OMP_NUM_THREADS": "1"}

    def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,  # open for as long as the test holds the process, whatever the test's own is
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    return start


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks what `fork_process` starts."""
    log = tmp_path_factory.mktemp("fork-server") / "log.txt"
    with ForkServer(["imports_of_a_run"], ENVIRONMENT, log) as server:
        yield server


@pytest.fixture
def fork_process(
    fork_server: ForkServer, cache_directory: Path, tmp_path: Path
) -> Iterator[Callable[..., ForkedProcess]]:
    """Start `python -m MODULE ...` or `python -c CODE ...` in `tmp_path` as a fork of a process that has imported all
    that a run needs: a process of its own in every other respect. What a test leaves running is killed."""
    started = []

    def start(
        *arguments: object, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **variables: str
    ) -> ForkedProcess:
        variables = {"DLA_TRAIN_CACHE": str(cache_directory), **variables}
        process = fork_server.start(arguments, tmp_path, variables, stdout=stdout, stderr=stderr)
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()
