"""Counts a model's parameters by part."""

from __future__ import annotations

from torch import nn

from dla_train.models import LanguageModel
from dla_train.models.convolution import ShortConvolution
from dla_train.models.mlp import SwiGLU
from dla_train.models.norm import GatedRMSNormDeltaNet, GatedRMSNormMamba2, RMSNorm
from dla_train.models.slot_weight import SlotWeight

_NORMS = (RMSNorm, GatedRMSNormMamba2, GatedRMSNormDeltaNet)


def parameter_parts(model: LanguageModel) -> dict[str, int]:
    """Number of parameters of each part; they add up to the whole model. A tied head counts as part of the embedding.

    Args:
        model: on any device, such as the meta device.
    """
    parts: dict[str, int] = {}
    seen: set[int] = set()
    part_of = {"embedding": "embedding", "head": "head", "norm": "norms"}
    for path, module in model.named_modules():
        part = part_of.get(path.partition(".")[0], _part_of_block(path, module))
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                parts[part] = parts.get(part, 0) + parameter.numel()
    order = (
        "embedding",
        "mixer projections",
        "short convolution",
        "time scales",
        "slot weights",
        "norms",
        "mlp",
        "head",
    )
    return {part: parts[part] for part in (*order, *sorted(set(parts) - set(order))) if part in parts}


def _part_of_block(path: str, module: nn.Module) -> str:
    if isinstance(module, ShortConvolution):
        return "short convolution"
    if isinstance(module, SlotWeight):
        return "slot weights"
    if isinstance(module, _NORMS):
        return "norms"
    if isinstance(module, SwiGLU) or ".mlp." in f"{path}.":
        return "mlp"
    if isinstance(module, nn.Linear):
        return "mixer projections"
    if path.endswith(".memory"):
        return "thresholds"
    return "time scales" if path.endswith(".mixer") else "others"
