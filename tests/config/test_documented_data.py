"""The `data` sections that the pages show are recipes, and what they read from the hub is read from a mirror of it."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard

from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data
from dla_train.data.prepared_config import PreparedData
from dla_train.data.streaming_config import StreamingData

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = [
    yaml.safe_load(block)["data"]
    for page in ("data.md", "streaming.md")
    for block in re.findall(r"^```yaml\n(data:\n.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
]
WHOLE = [block for block in BLOCKS if "kind" in block]
TEXTS = [f"{number}: alpha beta gamma delta kappa omega " * 3 for number in range(60)]


def test_the_pages_show_both_kinds():
    assert [block["kind"] for block in WHOLE] == ["prepared", "prepared", "streaming"]


@pytest.mark.parametrize("block", WHOLE, ids=["prepared", "mixed", "streaming"])
def test_a_section_is_one_of_a_recipe(block):
    data = load(find("tiny"), [f"data={json.dumps(block)}", "training.validation_windows=8"]).recipe.data
    assert isinstance(data, PreparedData | StreamingData)
    assert data.window == block["window"]
    assert set(data.sources or ()) == set(block.get("sources", ()))


def _mirror(root):
    """The three data sets of the page, in the layout of the hub."""
    lines = "".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in TEXTS).encode()
    for path in ("togethercomputer/Long-Data-Collections/pretrain/rp_sub", "corpora/SlimPajama-627B/train/chunk1/a"):
        (root / path).parent.mkdir(parents=True)
        (root / f"{path}.jsonl.zst").write_bytes(zstandard.compress(lines))
    edu = root / "HuggingFaceFW" / "fineweb-edu"
    (edu / "sample" / "10BT").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), edu / "sample" / "10BT" / "000_00000.parquet")
    header = {"configs": [{"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]}]}
    (edu / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n")


def test_the_streamed_data_sets_are_read_from_a_mirror(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _mirror(tmp_path)
    save_tokenizer(train_tokenizer(TEXTS, 270), tmp_path / "tokenizer.json")
    block = dict(WHOLE[-1])
    block["sources"] = {
        name: source if source["path"].startswith("corpora/") else {**source, "path": f"hf:{source['path']}"}
        for name, source in block["sources"].items()
    }
    block |= {"window": 32, "streams": 4, "workers": 0, "held_out": 0.2}
    settings = ["training.global_batch=10", "training.micro_batch=10", "training.validation_windows=3"]
    data = open_data(load(find("tiny"), [f"data={json.dumps(block)}", *settings]))
    monkeypatch.setattr(data, "trainer", type("Alone", (), {"global_step": 0, "global_rank": 0, "world_size": 1}))
    batch = next(iter(data.train_dataloader()))
    assert batch.shape == (10, 33)
    assert data.consumed(1).by_source == {"edu": 3 * 32, "long": 5 * 32, "pajama": 2 * 32}
