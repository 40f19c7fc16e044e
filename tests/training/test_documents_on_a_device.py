"""Batches on their way to a device: the host knows where documents begin, and pins memory for a GPU alone."""

import pytest
import torch

from dla_data.separate_windows import SeparateBatch, SeparateWindow, lay_in_a_row
from dla_data.synthetic import Mqar
from dla_kernels.documents import cu_seqlens_of, ends_of
from dla_train.data.cutting import cut_batch
from dla_train.data.synthetic import SyntheticDataModule
from dla_train.data.synthetic_config import SyntheticData
from dla_train.training.config import TrainingConfig

NOWHERE = torch.device("meta")  # what it would be asked for is not there


@pytest.mark.parametrize("inference", [False, True])
def test_the_ends_are_known_on_arrival_and_after_a_cut(inference):
    windows = [
        SeparateWindow(torch.arange(13), torch.tensor([0, 5])),
        SeparateWindow(torch.arange(13), torch.tensor([0])),
    ]
    batch = lay_in_a_row(windows)
    training = TrainingConfig(steps=1, global_batch=2, micro_batch=2)
    data = SyntheticDataModule(SyntheticData(task=Mqar(pairs=(1,)), vocab_size=16, window=12), training, seed=0)
    with torch.inference_mode(inference):
        moved = data.transfer_batch_to_device(batch, NOWHERE, 0)
        assert moved.tokens.device == moved.cu_seqlens.device == NOWHERE
        assert ends_of(moved.cu_seqlens) == (0, 5, 12, 24)
        cut, plain = cut_batch(moved, 6), cut_batch(batch, 6)
    assert isinstance(cut, SeparateBatch)
    assert isinstance(plain, SeparateBatch)
    assert cut.cu_seqlens.dtype == torch.int32
    assert ends_of(cut.cu_seqlens) == (0, 5, 6, 12, 18, 24)
    assert plain.cu_seqlens.tolist() == [0, 5, 6, 12, 18, 24]


@pytest.mark.parametrize(("accelerator", "pins"), [("auto", True), ("gpu", True), ("cpu", False)])
def test_batches_are_pinned_for_a_gpu_that_is_used(monkeypatch, accelerator, pins):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training = TrainingConfig(steps=1, global_batch=2, micro_batch=2, accelerator=accelerator)
    data = SyntheticDataModule(SyntheticData(task=Mqar(pairs=(1,)), vocab_size=16, window=12), training, seed=0)
    assert data.pins_memory is pins


def test_ends_that_nobody_knows_are_asked_for():
    known = cu_seqlens_of((0, 3, 7), NOWHERE)
    assert ends_of(known) == (0, 3, 7)
    with pytest.raises(NotImplementedError, match="meta"):
        ends_of(known.clone())


def test_on_the_cpu_they_are_read():
    here = cu_seqlens_of((0, 3, 7), torch.device("cpu"))
    here.numpy()[1] = 4  # unknown to torch
    assert ends_of(here) == (0, 4, 7)
