"""dla_kernels is usable where torch is the only package at hand, and loads no other before it is needed."""

import subprocess
import sys
import textwrap
from pathlib import Path

ABSENT = ["triton", "numba", "lightning", "datasets", "omegaconf", "deepspeed", "tokenizers", "torchmetrics"]

BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {ABSENT!r} else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run_without_packages(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter in which the packages named in ABSENT cannot be imported."""
    command = [sys.executable, "-I", "-c", BLOCK + textwrap.dedent(code)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_packages_are_really_absent(tmp_path: Path) -> None:
    for package in ABSENT:
        result = run_without_packages(f"import {package}", tmp_path)
        assert result.returncode == 1
        assert f"No module named '{package}'" in result.stderr


def test_dla_kernels_imports_with_torch_alone(tmp_path: Path) -> None:
    code = """
        import dla_kernels
        for name in dla_kernels.__all__:
            getattr(dla_kernels, name)
        assert not {name.partition(".")[0] for name in sys.modules} & {"triton", "numba"}
    """
    result = run_without_packages(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_definition_and_the_torch_reader_run_with_torch_alone(tmp_path: Path) -> None:
    code = """
        import torch
        from dla_kernels import multi_state_attention, segment
        q, k, v = (torch.randn(1, 20, 2, 8) for _ in range(3))
        weight = torch.ones(1, 20, 2, 4)
        plan = segment(k, v, capacity=4, threshold=0.6, backend="reference")
        for backend in ("reference", "torch"):
            o, _ = multi_state_attention(q, k, v, weight, plan, backend=backend)
            assert o.shape == v.shape and torch.isfinite(o).all()
    """
    result = run_without_packages(code, tmp_path)
    assert result.returncode == 0, result.stderr
