"""What a laptop with macOS does without: Triton, glibc, /proc, affinity of processes, forked workers. It is imitated,
since the tests run on Linux."""

import json
import os
from pathlib import Path

import pytest

from dla_train.cores import usable_cores
from dla_train.errors import RunError
from dla_train.runs.lock import exclusive


def test_a_run_as_on_macos(start_process, micro_recipe, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("alpha beta gamma " * 50)
    brief = ["training.steps=3", "training.accelerator=auto", "training.validate_every=null", "schedule.warmup=1"]
    commands = [
        ["fit", "--recipe", str(micro_recipe), "--run-dir", "run", "data.workers=1", *brief],
        ["generate", "--checkpoint", "run", "--prompt", "alpha"],
        ["prepare", "texts", "--out", "tokens", "--train-tokenizer", "260"],
    ]
    process = start_process(Path(__file__).with_name("like_macos.py"), json.dumps(commands))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "step 3/3" in err
    assert (tmp_path / "run/report.md").is_file()
    assert (tmp_path / "tokens").is_dir()


def test_cores_where_the_system_does_not_say_which(monkeypatch):
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


def test_a_moved_folder_where_there_is_no_proc(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "run" / ".lock", "it") as lock:
        (tmp_path / "run").rename(tmp_path / "moved")

        def gone(path):
            raise FileNotFoundError(2, "No such file or directory", path)

        monkeypatch.setattr(os, "readlink", gone)
        with pytest.raises(RunError, match="it was moved or removed while"):
            lock.require_held()
