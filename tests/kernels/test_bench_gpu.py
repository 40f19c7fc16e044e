"""`make bench-gpu` without a GPU: every case at a tiny shape, interpreted, with a clock that only counts."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.interpret

SCRIPT = Path(__file__).parents[2] / "kernels/benchmarks/bench_gpu.py"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module, on the CPU, without bfloat16, which the interpreter cannot compute. `bench.calls` counts
    what was timed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bench_cases", raising=False)
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", script)  # where dataclasses look
    spec.loader.exec_module(script)
    script.calls, script.warmed = [], []

    def timed(run):
        run()
        script.calls.append(run)
        return [0.002, 0.001, 0.009], 5_000_000

    small = {"key_dim": 16, "value_dim": 16}
    cases = script.bench_cases
    cases.SHAPES = {
        "mamba2": cases.Shape(heads=1, groups=1, delta=False, **small),
        "gdn": cases.Shape(heads=1, groups=1, delta=True, **small),
    }
    cases.LENGTHS, cases.DEVICE, cases.TYPE, script.CHECKED = (16,), "cpu", torch.float32, 16
    script.timed = timed
    script.compile_beside, script.warm = script.warm, lambda chosen, until: script.warmed.append(len(chosen))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return script


@pytest.fixture
def call(bench, monkeypatch, tmp_path):
    """Runs the script with arguments and returns the rows of its file."""
    from dla_kernels.reader.fused import configs

    def run(*arguments):
        bench.calls.clear()
        monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--out", str(tmp_path), *arguments])
        with configs.override(tile=16, long=16):
            assert bench.main() == 0
        return json.loads((tmp_path / "nvidia-h200.json").read_text())["rows"]

    return run


def test_every_case_runs_and_none_twice(bench, call, capsys, tmp_path):
    rows = call()
    assert list(rows) == [case.name for case in bench.cases()]
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    assert all(name.startswith("fla ") for name in failed), failed
    row = rows["dla30 mamba2 16 forward"]
    assert {name: row[name] for name in ("seconds", "calls", "extra_bytes")} == {
        "seconds": 0.002, "calls": 3, "extra_bytes": 5_000_000,
    }  # fmt: skip
    assert row["error"] < 1e-5
    assert row["times_floor"] == pytest.approx(0.002 / (2 * 30 * 16 * 16 * 16 / 989e12))
    table = (tmp_path / "nvidia-h200.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n") == 2 + len(rows)
    assert len({line.count("|") for line in table.splitlines()}) == 1, "rows of different width"

    assert bench.warmed == [len(rows)]

    assert call() == rows
    assert not bench.calls
    assert len(bench.warmed) == 1, "there was nothing left to compile for"
    call("--anew", "--only", "sdpa mamba2")
    assert len(bench.calls) == 2


def test_it_stops_in_time_and_goes_on(bench, call, capsys):
    call("--only", "sdpa gdn 16 forward")
    assert list(call("--only", "sdpa", "--minutes", "1e-9")) == ["sdpa gdn 16 forward"]
    assert "time is up; call again to go on" in capsys.readouterr().out
    assert len(call("--only", "sdpa")) == 4
    assert len(bench.calls) == 3


def test_compiling_for_another_process_calls_everything(bench, call, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "check", asked.append)
    monkeypatch.setattr(bench, "call_of", lambda case: lambda: bench.calls.append(case.name))
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--warm", "dla30,gdn"])
    assert bench.main() == 0
    expected = [case.name for case in bench.cases() if (case.method, case.shape) == ("dla30", "gdn")]
    assert bench.calls == [case.name for case in asked] == expected
    assert len(expected) == 8


def test_what_is_wrong_or_fails_gets_no_time(bench, call, monkeypatch):
    monkeypatch.setattr(bench, "check", lambda case: 0.5)
    row = call("--only", "dla30 gdn 16 forward")["dla30 gdn 16 forward"]
    assert row["failed"] == "error 5.0e-01 above 0.03: not timed"
    assert "seconds" not in row
    assert not bench.calls
    monkeypatch.setattr(bench, "check", lambda case: float("nan"))
    assert "not timed" in call("--anew", "--only", "dla15 gdn 16 forward")["dla15 gdn 16 forward"]["failed"]

    def refuse(case):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench, "check", refuse)
    rows = call("--anew", "--only", "mamba2 16 segment", "gdn 16 segment")
    assert [row["failed"] for row in rows.values()] == ["RuntimeError: out of memory"] * 2


def test_a_gpu_that_takes_no_more_work_ends_the_call(bench, call, monkeypatch, capsys):
    """The case that broke it is recorded as failed; the next call continues with the one after it."""
    asked = []

    def refuse():
        raise torch.AcceleratorError("an illegal memory access was encountered")

    def measure(case):
        asked.append(case.direction)
        if case.direction == "forward":
            monkeypatch.setattr(torch.cuda, "synchronize", refuse)
            monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
            refuse()
        return {**row, "direction": case.direction}

    row = call("--only", "sdpa gdn 16 forward")["sdpa gdn 16 forward"]
    monkeypatch.setattr(bench, "measure", measure)
    rows = call("--anew", "--only", "sdpa mamba2")
    assert asked == ["forward"]
    assert "illegal memory access" in rows["sdpa mamba2 16 forward"]["failed"]
    assert "call again to go on with the next" in capsys.readouterr().out
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    assert len(call("--only", "sdpa mamba2")) == 2
    assert asked == ["forward", "training"]


def test_compiling_stops_in_time(bench, monkeypatch):
    """A process that never ends is killed, and the others with it."""
    ended = []

    class Endless:
        def __init__(self, command, **options):
            self.command = command

        def wait(self, timeout=None):
            if timeout is not None:
                raise bench.subprocess.TimeoutExpired(self.command, timeout)

        def kill(self):
            ended.append(self.command[-1])

    monkeypatch.setattr(bench.subprocess, "Popen", Endless)
    bench.compile_beside([case for case in bench.cases() if case.method == "dla30"], bench.clock.monotonic())
    assert ended == ["dla30,mamba2", "dla30,gdn"]


def test_times_of_other_kernels_are_not_mixed_in(bench, call, monkeypatch, capsys):
    before = call("--only", "sdpa gdn 16 forward")
    monkeypatch.setattr(bench, "versions_here", lambda: {"kernels": "others"})
    assert call("--only", "sdpa gdn 16 training").keys() != before.keys()
    assert "with other versions or other kernels: beginning anew" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_so(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    assert bench.main() == 1
    assert "no CUDA device: nothing to time" in capsys.readouterr().err
