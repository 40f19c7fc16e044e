"""Multi-state linear attention: a plan says which tokens share a state, a reader reads all states (see README.md)."""

from dla_kernels.cache import Cache
from dla_kernels.dynamic import dynamic_linear_attention
from dla_kernels.layers import (
    add_skip,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)
from dla_kernels.plan import Plan, SegmentState
from dla_kernels.positional_plans import fenwick_plan, fixed_plan, single_plan
from dla_kernels.reader import multi_state_attention
from dla_kernels.segmentation import segment

__all__ = [
    "Cache",
    "Plan",
    "SegmentState",
    "add_skip",
    "dynamic_linear_attention",
    "fenwick_plan",
    "fixed_plan",
    "gated_rms_norm",
    "l2_normalize",
    "multi_state_attention",
    "rms_norm",
    "scale_heads",
    "segment",
    "shifted_softplus",
    "short_convolution",
    "single_plan",
    "swiglu",
]
