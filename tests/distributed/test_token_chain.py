"""The tokens of every step, through the real Trainer: the same chain for a run left alone, and for one that is killed
three times and goes on with other numbers of ranks and workers each time, for longer than an epoch."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dla_data.readers import Source
from dla_data.shards.prepare import PrepareOptions, prepare_shards
from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.training.module import LanguageModelTraining
from tests.soak import recorded_fit
from tests.soak.history import by_start, read_notes
from tests.soak.stand_in import write_stand_in

STEPS, GLOBAL_BATCH = 60, 8
SETTINGS = (
    f"training.steps={STEPS}", f"training.global_batch={GLOBAL_BATCH}", "training.threads=1", "report.prompt=null",
    "report.bigram=false", "training.validate_every=null", "checkpoint.every=5",
)  # fmt: skip
LEGS = [(1, 1, 9), (2, 2, 23), (4, 1, 38), (1, 4, None)]  # ranks, workers of each, the step at which it is killed


@pytest.fixture(scope="module")
def sections(text_corpus, tmp_path_factory):
    """The recipe's `data` by kind, each of few enough tokens for a second epoch."""
    root = tmp_path_factory.mktemp("text")
    lines = text_corpus.read_text().splitlines()
    for number, (begin, end) in enumerate([(0, 420), (420, 600)]):
        texts = ["\n".join(lines[at : at + 3]) for at in range(begin, end, 3)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (root / f"{number}.jsonl").write_text(rows)
        save_tokenizer(train_tokenizer(lines, 300), root / "tokenizer.json")
        options = PrepareOptions(tokenizer=root / "tokenizer.json", shard_tokens=700, validation_share=0.1)
        prepare_shards([Source(path=str(root / f"{number}.jsonl"))], root / f"tokens-{number}", options)
    return {
        "text": {"kind": "text", "path": str(text_corpus), "vocab_size": 300, "window": 24},
        "prepared": {
            "kind": "prepared",
            "sources": {
                name: {"path": str(root / f"tokens-{number}"), "weight": weight}
                for number, (name, weight) in enumerate([("long", 0.6), ("short", 0.4)])
            },
            "documents": "separate",
            "vocab_size": 300,
            "window": 24,
        },
        "streaming": {
            "kind": "streaming",
            "sources": {
                str(number): {"path": str(root / f"{number}.jsonl"), "weight": 2 - number} for number in (0, 1)
            },
            "tokenizer": str(root / "tokenizer.json"),
            "streams": 16,
            "held_out": 0.1,
            "vocab_size": 300,
            "window": 24,
        },
    }


@pytest.fixture
def straight(cli, monkeypatch):
    """Train without a stop; returns the windows of each step."""

    def run(recipe):
        seen = {}
        original = LanguageModelTraining.training_step

        def step(self, batch, batch_idx):
            seen.setdefault(self.global_step + 1, []).extend(recorded_fit.window_digests(batch))
            return original(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(LanguageModelTraining, "training_step", step)
            done = cli("fit", "--recipe", recipe, "--run-dir", "straight", *SETTINGS)
        assert done.code == 0, done.err
        return seen

    return run


@pytest.fixture
def leg(cache_directory, tmp_path):
    """Start or resume the run `pieces` on so many ranks, kill all of it at a step; returns its notes by rank."""
    notes = tmp_path / "notes"
    notes.mkdir()
    stand_in = tmp_path / "python"
    write_stand_in(stand_in)
    environment = {
        **os.environ,
        "DLA_TRAIN_CACHE": str(cache_directory),
        "SOAK_NOTES": str(notes),
        "SOAK_PYTHON": str(stand_in),
        "OMP_NUM_THREADS": "1",
    }

    def newest(rank):
        starts = by_start(read_notes(notes / f"rank-{rank}.txt"))
        return [note for note in starts[-1] if note.what == "step"] if starts else []

    def run(recipe, ranks, workers, kill_at):
        for file in notes.iterdir():
            file.unlink()
        settings = [*SETTINGS, f"data.workers={workers}", "training.micro_batch=1"]
        if ranks > 1:
            settings.append(f"strategy={{kind: ddp, devices: {ranks}}}")
        with (tmp_path / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, recorded_fit.__file__, "fit", "--recipe", recipe, "--run-dir", "pieces",
                 "--resume", "auto", *settings],
                cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            if kill_at is None:
                assert process.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()
            deadline = time.monotonic() + 240
            while kill_at is not None and not any(note.step >= kill_at for note in newest(0)):
                assert process.poll() is None, (tmp_path / "log.txt").read_text()
                assert time.monotonic() < deadline, "the run does not get there"
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [newest(rank) for rank in range(ranks)]

    return run


def _global_batches(notes, is_interleaved):
    """The windows of each step that all ranks began in full, in the order of the global batch."""
    own = []
    for of_rank in notes:
        steps = {}
        for note in of_rank:
            steps.setdefault(note.step, []).extend(note.detail.split(","))
        own.append(steps)
    share = GLOBAL_BATCH // len(own)
    found = {}
    for step in own[0]:
        pieces = [steps.get(step, []) for steps in own]
        if all(len(piece) == share for piece in pieces):
            turns = zip(*pieces, strict=True) if is_interleaved else pieces
            found[step] = [window for turn in turns for window in turn]
    return found


def _chain(batches):
    link = b""
    for step in sorted(batches):
        link = hashlib.sha256(link + f"{step} {batches[step]}".encode()).digest()
    return link.hex()


@pytest.mark.slow  # eight starts of a process for each kind
@pytest.mark.parametrize("kind", ["streaming", "prepared", "text"])
@pytest.mark.timeout(900)
def test_three_kills_and_other_ranks_and_workers_change_no_token(kind, sections, micro_recipe, straight, leg, tmp_path):
    section = f"data: {json.dumps(sections[kind])}"
    lines = [section if line.startswith("data:") else line for line in micro_recipe.read_text().splitlines()]
    recipe: Path = tmp_path / "chain.yaml"
    recipe.write_text("\n".join(lines))
    expected = straight(recipe)
    assert list(expected) == list(range(1, STEPS + 1))
    windows = [window for batch in expected.values() for window in batch]
    assert len(windows) == STEPS * GLOBAL_BATCH
    assert len(set(windows)) < 0.8 * len(windows) or kind == "streaming", "the test must go beyond the first epoch"

    pieces, redone = {}, 0
    for ranks, workers, kill_at in LEGS:
        done = _global_batches(leg(recipe, ranks, workers, kill_at), is_interleaved=kind == "streaming")
        first = min(done)
        assert first == 1 + 5 * (len(pieces) // 5), "it goes on from the newest checkpoint"
        redone += len(pieces.keys() & done.keys())
        pieces = {step: batch for step, batch in pieces.items() if step < first} | done
    assert _chain(pieces) == _chain(expected)
    assert pieces == expected
