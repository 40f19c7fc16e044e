"""`dla-train prepare` as a user meets it: killed, out of space, with wrong input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forking.process import ForkedProcess

ARGUMENTS = ["--train-tokenizer", "300", "--shard-tokens", "2000", "--validation-share", "0.1"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A JSON lines file of 3 MB in 1,500 documents."""
    choose = random.Random(0).choice
    words = ["alpha", "beta", "gamma", "delta", "kappa", "omega", "state", "slot", "merge", "token"]
    path = tmp_path / "source.jsonl"
    rows = ({"text": " ".join(choose(words) for _ in range(350))} for _ in range(1500))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_and_gone_on_with_gives_the_same_bytes(
    source: Path,
    tmp_path: Path,
    start_process: Callable[..., subprocess.Popen[str]],
    fork_process: Callable[..., ForkedProcess],
) -> None:
    command = ["-m", "dla_train", "prepare", source, "--workers", 2, *ARGUMENTS, "--out"]
    process = start_process(*command, "killed")
    shards = tmp_path / "killed" / "shards"
    while len(list(shards.glob("0*"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    helpers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert helpers
    assert not (tmp_path / "killed" / "manifest.json").exists()

    for out in ("killed", "straight"):
        process = fork_process(*command, out)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert stdout is not None
        assert stderr is not None
        assert "1," in stdout
        assert ("going on after" in stderr) == (out == "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "straight")
    assert not any(Path(f"/proc/{pid}").exists() for pid in helpers)  # nothing outlives the one that was killed


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(source: Path, tmp_path: Path) -> None:
    limit = 16  # kB per file: the tokenizer fits, a shard does not
    command = [sys.executable, "-m", "dla_train", "prepare", str(source), "--workers", "1", *ARGUMENTS]
    command[command.index("2000")] = "1000000"
    shell = f"ulimit -f {limit * 2}; exec {' '.join(command)} --out out"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "cannot write out/shards/000000: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_one_sentence(cli: Callable, source: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"content": "x"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "one.txt").write_text("a text")
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind/weights.bin").touch()
    out = ["--out", tmp_path / "out"]
    for arguments, said in [
        ([source, *out], "one of the arguments --tokenizer --train-tokenizer is required"),
        ([source, "--train-tokenizer", "300"], "the following arguments are required: --out"),
        (["nothing/here/at/all", "--train-tokenizer", "300", *out], "no source at nothing/here/at/all"),
        ([tmp_path / "bad.jsonl", "--train-tokenizer", "257", *out], "line 2: it has no field 'text'. Fields present"),
        ([source, "--train-tokenizer", "300", "--workers", "0", *out], "error: --workers is 0; it must be"),
        ([source, "--train-tokenizer", "-5", *out], "error: --train-tokenizer is -5; it must be at least 257 (the 256"),
        (["empty.jsonl", "--train-tokenizer", "300", *out], "no documents in empty.jsonl: there is nothing to prepare"),
        ([source, "--train-tokenizer", "300", "--out", ""], "--out: the name of the folder is empty"),
        (["", "--train-tokenizer", "300", *out], "a source has no name: its path is an empty text"),
        (["one.txt", "--train-tokenizer", "300", "--validation-share", "0.999", *out], "the only document fell to val"),
        (["kind", "--train-tokenizer", "300", *out], "no data in kind: of its 1 file none ends in .jsonl"),
        ([source, "--train-tokenizer", "300", "--shard-tokens", "0", *out], "error: --shard-tokens is 0; it must be"),
        ([source, "--train-tokenizer", "300", "--validation-share", "1", *out], "error: --validation-share is 1.0; it"),
        ([source, "--tokenizer", tmp_path / "bad.jsonl", *out], "bad.jsonl is not a tokenizer file"),
        ([source, "--train-tokenizer", "300", "data.window=3", *out], "takes no settings (given data.window=3)"),
    ]:
        finished = cli("prepare", *arguments)
        assert finished.code == 2
        assert said in finished.err
        assert "Traceback" not in finished.err
        assert "training a tokenizer of -5" not in finished.err


def test_a_folder_that_fit_cannot_validate_on_is_warned_of(cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"line {n} of text"}) + "\n" for n in range(20)))
    how = ["--train-tokenizer", "257", "--workers", "1"]
    none = cli("prepare", "text.jsonl", "--out", "none", "--validation-share", "0", *how)
    assert none.code == 0
    assert "warning: no document was held out for validation (--validation-share is 0)" in none.err
    some = cli("prepare", "text.jsonl", "./text.jsonl", "--out", "some", "--validation-share", "0.3", *how)
    assert some.code == 0
    assert "no document was held out" not in some.err
    assert f"warning: {tmp_path}/text.jsonl is read 2 times, because several sources name it" in some.err


def test_skipped_rows_are_reported(cli: Callable, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"line {number} of text"}) for number in range(20)]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "broken"]))
    arguments = ["--out", "out", "--train-tokenizer", "257", "--workers", "1", "--skip-bad", "1"]
    finished = cli("prepare", "bad.jsonl", *arguments)
    assert finished.code == 0, finished.err
    assert finished.out.startswith("out: 1 shard, vocabulary of 257\n")
    assert "left out 1 bad row, listed in out/manifest.json:\n" in finished.out
    assert "bad.jsonl, line 21: it is not JSON" in finished.out
    assert os.path.exists("out/manifest.json")
