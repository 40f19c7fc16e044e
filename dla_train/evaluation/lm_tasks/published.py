"""The paper's figures for a group of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, Mamba2Config

_FILE = Path(__file__).parent / "published.yaml"
AVERAGE = "average"
"""The entry among a group's tasks that holds the paper's mean over them."""
_TITLES = {
    "transformer": "Transformer",
    "mamba2": "Mamba-2",
    "mamba2-loglinear": "+ Log-Linear",
    "mamba2-dla": "+ DLA",
    "gdn": "Gated DeltaNet",
    "gdn-loglinear": "+ Log-Linear",
    "gdn-dla": "+ DLA",
}


@dataclass(frozen=True)
class Published:
    """The paper's figures for one group and one backbone.

    Attributes:
        table: its name in the paper. metric: what it shows. size: of its models.
        columns: by model, the figures by task, in percent.
    """

    table: str
    metric: str
    size: str
    columns: dict[str, dict[str, float]]


def published(group: str, model: ModelConfig) -> Published | None:
    """The paper's figures for this group and this model's backbone; None for a group that is not in the paper, and for
    hybrid models, which are not in it either."""
    file = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    found = file["groups"].get(group)
    if found is None or model.hybrid is not None:
        return None
    backbone = _backbone(model)
    columns = {
        _TITLES[row]: dict(zip(found["tasks"], figures, strict=True))
        for row, figures in found["rows"].items()
        if row.partition("-")[0] == backbone
    }
    return Published(found["table"], found["metric"], file["sizes"][backbone], columns)


def _backbone(model: ModelConfig) -> str:
    if isinstance(model.mixer, AttentionConfig):
        return "transformer"
    return "mamba2" if isinstance(model.mixer, Mamba2Config) else "gdn"
