"""`make profile-gpu ARGS=--layer` without a GPU: its step trains a whole layer, with kernels or with torch around the
op."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.kernels.executor.launch import executing


@pytest.fixture
def layer_step(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "kernels/benchmarks")
    return importlib.import_module("layer_step")


def test_kernels_or_torch_around_the_op(layer_step):
    step = layer_step.layer_step("mamba2", tokens=5, slots=2, device="cpu")
    around = {"convolution_kernel", "gated_norm_backward_kernel", "swiglu_kernel"}
    with executing("sm_90") as ran:
        with layer_step.torch_around_the_op():
            in_torch = step()
        assert not ran & around
        in_kernels = step()
        assert ran >= around
    assert len(in_kernels) == 15
    for one, other in zip(in_torch, in_kernels, strict=True):
        assert torch.isfinite(other).all()
        assert (one - other).norm() < 0.1 * one.norm() + 1e-6


def test_shapes_of_no_layer_are_refused(layer_step):
    with pytest.raises(SystemExit, match="mamba2, gdn of the paper's models; given square"):
        layer_step.layer_step("square", tokens=5, slots=2, device="cpu")
