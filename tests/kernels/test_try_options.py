"""`make try-gpu` without a GPU: which options are tried, and that launches get them."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.runtime.jit import JITFunction  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "kernels/benchmarks/try_options.py"


@triton.jit
def some_kernel(x):
    pass


@triton.jit
def other_kernel(x):
    pass


@pytest.fixture
def try_options(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    for name in ("bench_cases", "layer_step", "profile_gpu", "try_options"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("try_options")
    yield module
    for name in ("bench_cases", "layer_step", "profile_gpu", "try_options"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def launches(monkeypatch):
    """The options of launches, which do nothing."""
    found: list[tuple[str, dict[str, Any]]] = []

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append((self.__name__, kwargs))

    monkeypatch.setattr(JITFunction, "run", run)
    return found


def test_kernels_named_get_the_options_and_others_theirs(try_options, launches):
    run = JITFunction.run
    with try_options.launched_with({"some_kernel": {"num_stages": 2, "maxnreg": 168}}) as seen:
        some_kernel[(1,)](1, num_stages=1, num_warps=4)
        other_kernel[(1,)](1, num_stages=1)
    some_kernel[(1,)](1, num_stages=1)
    assert seen == {"some_kernel"}
    assert JITFunction.run is run
    (_, first), (_, second), (_, third) = launches
    assert (first["num_stages"], first["num_warps"], first["maxnreg"]) == (2, 4, 168)
    assert second["num_stages"] == third["num_stages"] == 1
    assert "maxnreg" not in second


def test_open_questions_are_of_kernels_that_there_are(try_options):
    sources = "\n".join(path.read_text() for path in (SCRIPT.parents[1] / "dla_kernels").rglob("*.py"))
    for text in try_options.OPEN:
        for kernel in try_options.parsed(text):
            assert f"def {kernel}(" in sources, kernel


@pytest.mark.parametrize("text", ["", "some_kernel", "some_kernel:", ":num_stages=2", "some_kernel:num_stages=two"])
def test_a_trial_that_is_none_says_how_one_looks(try_options, text):
    with pytest.raises(argparse.ArgumentTypeError, match="for example keys_backward_kernel:maxnreg=168"):
        try_options.parsed(text)


def test_wrong_results_and_missing_kernels_get_no_time(try_options, launches, monkeypatch):
    monkeypatch.setattr(try_options, "kernels_of", lambda step: {"some_kernel": (1.5, 1)})
    right, wrong = [torch.ones(3)], [torch.tensor([1.0, 1.0, float("nan")])]

    def step_giving(result):
        def step():
            some_kernel[(1,)](1)
            return result

        return step

    options = {"some_kernel": {"num_stages": 2}}
    assert try_options.trial(step_giving(right), options, right) == {"some_kernel": 1.5}
    assert "WRONG" in try_options.trial(step_giving(wrong), options, right)
    missing = try_options.trial(step_giving(right), options | {"no_kernel": {"num_stages": 2}}, right)
    assert "no such kernel in this step: no_kernel" in missing


def test_without_a_gpu_it_says_so():
    ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (1, "no CUDA device: nothing to time\n")
