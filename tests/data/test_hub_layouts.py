"""Local mirrors of data sets of the hub, laid out as they are there, read by the lines that docs/data.md shows."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from dla_data.readers import Source

FINEWEB_README = """\
---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
"""


def _json_lines_zst(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text, "meta": {"source": path.stem}}) + "\n" for text in texts)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def _parquet(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": texts, "id": [str(n) for n in range(len(texts))], "score": [3.1] * len(texts)})
    pyarrow.parquet.write_table(table, path)


def _texts(source: Source) -> list[str]:
    return [text for reader in source.readers() for _, text in reader.documents()]


def test_long_data_collections_by_a_pattern(tmp_path: Path) -> None:
    for name in ("arxiv_doc_to_abs", "rp_sub"):
        _json_lines_zst(tmp_path / "pretrain" / f"{name}.jsonl.zst", [f"{name} 0", f"{name} 1"])
    _json_lines_zst(tmp_path / "fine-tune" / "booksum.jsonl.zst", ["not wanted"])
    found = _texts(Source(path=str(tmp_path / "pretrain" / "*.jsonl.zst")))
    assert found == ["arxiv_doc_to_abs 0", "arxiv_doc_to_abs 1", "rp_sub 0", "rp_sub 1"]


def test_slimpajama_as_a_directory(tmp_path: Path) -> None:
    for chunk in (1, 2):
        _json_lines_zst(tmp_path / "train" / f"chunk{chunk}" / "example_train_0.jsonl.zst", [f"chunk {chunk}"])
    _json_lines_zst(tmp_path / "validation" / "chunk1" / "example_holdout_0.jsonl.zst", ["not wanted"])
    assert _texts(Source(path=str(tmp_path / "train"))) == ["chunk 1", "chunk 2"]


@pytest.mark.parametrize(("config", "expected"), [(None, ["a", "b", "c"]), ("sample-10BT", ["s"])])
def test_fineweb_edu_by_configuration(config: str | None, expected: list[str], tmp_path: Path) -> None:
    root = tmp_path / "fineweb-edu"
    _parquet(root / "data" / "CC-MAIN-2024-10" / "train-00000.parquet", ["a", "b"])
    _parquet(root / "data" / "CC-MAIN-2024-18" / "train-00000.parquet", ["c"])
    _parquet(root / "sample" / "10BT" / "000_00000.parquet", ["s"])
    (root / "README.md").write_text(FINEWEB_README)
    assert _texts(Source(path=f"hf:{root}", config=config)) == expected
