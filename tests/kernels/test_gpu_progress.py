"""`make test-gpu` continues where it stopped; checked with tests that need no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pathlib, time
def test_first(): time.sleep(0.2)
def test_second(): assert not pathlib.Path("broken").exists()
def test_third(): pass
"""


@pytest.fixture
def call(tmp_path: Path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "tests.kernels.gpu_progress", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        return ended.returncode, ended.stdout

    return run


def test_stops_in_time_and_goes_on(call):
    code, said = call("--minutes=0.001")
    assert code == pytest.ExitCode.INTERRUPTED
    assert "1 passed" in said
    assert "the same command goes on from here" in said
    code, said = call()
    assert code == 0
    assert "2 passed, 1 deselected" in said
    code, said = call()  # nothing is left to do, which is a success
    assert code == 0
    assert "3 deselected" in said
    assert "3 passed" in call("--anew")[1]


def test_several_processes_go_on_too(call, tmp_path):
    (tmp_path / "broken").touch()
    code, said = call("-n2")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 2 passed" in said
    (tmp_path / "broken").unlink()
    code, said = call("-n2")
    assert code == 0
    assert "1 passed" in said
    code, said = call("-n2")  # nothing is left to do
    assert code == 0
    assert "no tests ran" in said


def test_several_processes_stop_in_time(call):
    code, said = call("-n1", "--minutes=0.0001")
    assert code == pytest.ExitCode.INTERRUPTED
    assert "the same command goes on from here" in said


def test_a_broken_gpu_ends_the_call_and_does_not_come_first_again(call, tmp_path):
    (tmp_path / "test_some.py").write_text("""
import sys, types
gpu = types.SimpleNamespace(is_initialized=lambda: True, synchronize=lambda: None)
sys.modules["torch"] = types.SimpleNamespace(cuda=gpu)
def test_first():
    def refuse(): raise RuntimeError("an illegal memory access was encountered")
    gpu.synchronize = refuse
    refuse()
def test_second(): gpu.synchronize()
def test_third(): gpu.synchronize()
""")
    code, said = call()
    assert code == pytest.ExitCode.INTERRUPTED
    assert "1 failed" in said
    assert "passed" not in said.splitlines()[-1]
    assert "the GPU takes no more work after test_some.py::test_first" in said
    code, said = call()
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 2 passed" in said


def test_a_failed_test_runs_again(call, tmp_path):
    (tmp_path / "broken").touch()
    code, said = call()
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 2 passed" in said
    (tmp_path / "broken").unlink()
    code, said = call()
    assert code == 0
    assert "1 passed, 2 deselected" in said
