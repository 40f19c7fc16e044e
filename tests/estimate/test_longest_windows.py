"""The longest window that is said to fit does, and one that is longer does not."""

import re

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
    assert "16,777,216 or longer" in cli("estimate", "--recipe", "mqar-gdn-single", "--device", "h200").out
