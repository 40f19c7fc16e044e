"""The longest window that is said to fit does, and one that is longer does not."""

import re
from pathlib import Path

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.devices import SAFE_SHARE, device_named
from dla_train.estimate.estimate import Estimate, estimate
from dla_train.estimate.longest import STEP

DEVICE = device_named("a100-40gb")


def estimated(name: str, *settings: str) -> Estimate:
    return estimate(load(find(name), list(settings)), DEVICE, 1, 0.3)


@pytest.mark.parametrize("way", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["mamba2-dla-370m", "gdn-dla-hybrid-130m", "transformer-130m"])
def test_one_step_longer_does_not_fit(name, way):
    longest = estimated(name).longest[way]
    assert longest % STEP == 0
    room = SAFE_SHARE * DEVICE.memory
    settings = ["training.micro_batch=1", f"training.activation_checkpointing={way}"]
    for window, fits in ((longest, True), (longest + STEP, False)):
        found = estimated(name, *settings, f"data.window={window}")
        assert (found.footprint.total <= room) == fits
        assert found.longest[way] == longest, "whatever the recipe's own window and micro-batch"


def test_devices_can_share_the_longest_window():
    sharing = ["strategy={kind: ddp, context_parallel: 3}", "data.window=6144"]
    recipe = load(find("gdn-dla-130m"), sharing)
    for way, longest in estimate(recipe, DEVICE, None, 0.3).longest.items():
        assert longest % (3 * STEP) == 0
        room = SAFE_SHARE * DEVICE.memory
        settings = [*sharing, "training.micro_batch=1", f"training.activation_checkpointing={way}"]
        for window, fits in ((longest, True), (longest + 3 * STEP, False)):
            found = estimate(load(find("gdn-dla-130m"), [*settings, f"data.window={window}"]), DEVICE, None, 0.3)
            assert found.devices == 3
            assert (found.footprint.total <= room) == fits


def test_what_is_shown(cli):
    rows = re.findall(
        r"^\| (none|selective|full) +\| +(.*?) \|$", cli("estimate", "--recipe", "tiny").out, re.MULTILINE
    )
    assert [way for way, _ in rows] == ["none", "selective", "full"]
    assert all(int(tokens.replace(",", "")) > 100_000 for _, tokens in rows)
    compiled = cli("estimate", "--recipe", "tiny", "training.compile=true").out
    assert "| selective" not in compiled, "which is refused with compile"
    huge = cli("estimate", "--recipe", "gdn-1.3b", "--device", "rtx-4090").out
    assert huge.count("none fits") == 3
    single = ("estimate", "--recipe", "mqar-gdn-single", "--device", "h200")
    assert "16,777,216 or longer" in cli(*single).out
    shared = cli(*single, "strategy={kind: ddp, context_parallel: 3}", "model.mixer.heads=3", "data.window=258").out
    assert "16,779,264 or longer" in shared, "the first multiple of 3,072 that is as long"


def test_the_table_of_shared_windows_is_what_is_estimated():
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert [shared for shared, *_ in rows] == ["1", "2", "4", "8"]
    for shared, *longest in rows:
        recipe = load(find("mamba2-dla-780m"), [f"strategy={{kind: fsdp, context_parallel: {shared}}}"])
        found = estimate(recipe, device_named("h200"), 8, 0.3).longest
        assert [f"{tokens:,}" for tokens in found.values()] == longest
