"""Speed in metrics.csv: tokens, FLOPs by the estimate's own function, and MFU where the device is known."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from dla_train.callbacks.checkpointing import Checkpointing
from dla_train.callbacks.device_memory import DeviceMemory
from dla_train.callbacks.throughput import Throughput
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.devices import DEVICES
from dla_train.estimate.flops import training_flops
from dla_train.estimate.peak import peak_flops
from dla_train.runs.metrics_file import read_rows

GPU = torch.device("cuda", 0)


def test_a_run_on_the_cpu_logs_tokens_and_flops_per_second_and_no_mfu(cli, micro_recipe, tmp_path):
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert done.code == 0, done.err
    recipe = load(find(str(micro_recipe))).recipe
    rows = [row for row in read_rows(tmp_path / "runs" / "micro" / "metrics.csv") if row["split"] == "train"]
    for row in rows:
        per_token = training_flops(recipe.model, recipe.data.window)
        assert row["flops_per_second"] == pytest.approx(row["tokens_per_second"] * per_token)
        assert "mfu" not in row
    assert "MFU" not in done.err
    assert " tokens/s  0" in done.err


def test_a_checkpoint_that_is_completed_in_a_validation_is_taken_off_once(cli, micro_recipe, monkeypatch, tmp_path):
    def slow(self, *arguments):
        time.sleep(0.2)
        self.seconds += 0.2

    monkeypatch.setattr(Checkpointing, "on_validation_batch_start", slow)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4", "training.validate_every=2")
    assert done.code == 0, done.err
    rows = [row for row in read_rows(tmp_path / "runs" / "micro" / "metrics.csv") if row["split"] == "train"]
    assert max(row["tokens_per_second"] for row in rows) < 10**7


def test_memory_is_the_most_since_the_step_before(monkeypatch):
    now = {"peak": 0}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: now.update(peak=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: now["peak"])
    memory = DeviceMemory()
    assert memory.of_step() == {}
    memory.start(torch.device("cpu"))
    assert memory.of_step() == {}
    now["peak"] = 10**12  # of what came before the training
    memory.start(GPU)
    for peak in (41_200_000_000, 39_000_000_000):
        now["peak"] = max(now["peak"], peak)
        assert memory.of_step() == {"device_memory_gb": peak / 1e9}


def test_a_run_on_a_gpu_shows_its_memory(cli, micro_recipe, monkeypatch, tmp_path):
    peaks = iter([41.2, 43.25, 42.0, 42.0])
    monkeypatch.setattr(DeviceMemory, "of_step", lambda self: {"device_memory_gb": next(peaks)})
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert done.code == 0, done.err
    assert " tokens/s, 41.20 GB  0" in done.err
    assert "| device memory " in done.out
    assert "| 43.25 GB at most " in done.out
    rows = [row for row in read_rows(tmp_path / "runs" / "micro" / "metrics.csv") if row["split"] == "train"]
    assert [row["device_memory_gb"] for row in rows] == [41.2, 43.25, 42.0, 42.0]


def test_mfu_is_the_share_of_all_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    speed = Throughput(tokens_per_step=524_288, flops_per_token=lambda step: 7e9 + step, precision="bf16-mixed")
    speed.start(GPU, devices=8)
    row = speed.of_step(0, 2.0)
    assert row["tokens_per_second"] == 262_144
    assert row["flops_per_second"] == 262_144 * 7e9
    assert row["mfu"] == pytest.approx(262_144 * 7e9 / (8 * 989e12))
    assert speed.of_step(5, 2.0)["flops_per_second"] == 262_144 * (7e9 + 5)


def test_a_run_on_a_known_device_shows_mfu(cli, micro_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("dla_train.callbacks.throughput.peak_flops", lambda device, precision: 1e12)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=4")
    assert "% MFU" in done.err
    row = read_rows(tmp_path / "runs" / "micro" / "metrics.csv")[0]
    assert row["mfu"] == pytest.approx(row["flops_per_second"] / 1e12)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_device_is_known_by_the_name_that_cuda_gives_it(monkeypatch, product, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: product)
    assert peak_flops(GPU, "bf16-mixed") == DEVICES[name].bf16


def test_lightnings_table_serves_for_other_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A10G")
    assert peak_flops(GPU, "bf16-mixed") == 125e12


def test_an_unknown_device_has_no_peak_and_says_nothing(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Accelerator X")
    assert peak_flops(GPU, "bf16-mixed") is None
    assert not recwarn
    assert peak_flops(torch.device("cpu"), "32-true") is None


def test_every_device_of_the_table_has_sensible_figures():
    for device in DEVICES.values():
        assert device.product == device.product.lower()
        for field in dataclasses.fields(device):
            value = getattr(device, field.name)
            assert isinstance(value, str) or value > 1e9
        assert device.bf16 > device.fp32
