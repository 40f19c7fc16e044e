"""No kernel touches foreign memory: NVIDIA's memcheck on one small case of each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_CASE = Path(__file__).with_name("sanitizer_case.py")
_SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(_SANITIZER is None, reason="needs compute-sanitizer (CUDA toolkit) on PATH")
def test_memcheck_finds_nothing():
    # Each tensor gets an allocation of its own: inside PyTorch's large blocks an overrun would go unseen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [_SANITIZER, "--tool=memcheck", "--error-exitcode=9", "--launch-timeout=0", sys.executable, str(_CASE)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    said = f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    assert ended.returncode == 0, said
    assert "every kernel ran" in ended.stdout, said
    assert "ERROR SUMMARY: 0 errors" in ended.stdout + ended.stderr, said
